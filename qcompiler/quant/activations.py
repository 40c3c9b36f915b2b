"""How the activations of a product are rounded to 8 bits, as numbers.

    token:  a[m, k] = round(x[m, k] / s[m]),             s[m] = max_k |x[m, k]| / 127
    tensor: a[m, k] = round(x[m, k] / s) + z in 0..255,  s = (max x - min x) / 255,  z = round(-min x / s)

``token`` has one scale for each row, symmetric about 0; ``tensor`` one scale and zero point for all rows, over a range that holds 0. Both
are found anew in every run; the second is DynamicQuantizeLinear. ``static`` is ``tensor`` with the range that calibration saw. What a range
means in codes is in ``ranges``.
"""

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from qcompiler.quant.ranges import Range, code_limits

Activations = Literal["none", "token", "tensor", "static"]
"""What rounds the activations of a product; with none they stay as they are."""

STEPS = 127
"""The largest code of a row, symmetric about 0."""
SMALLEST = np.float32(1e-36)
"""Of the largest activation of a row, or of a block of one: up to it all of them count as 0."""

FloatArray = npt.NDArray[np.float32]


def rounded_rows(x: npt.NDArray[Any]) -> FloatArray:
    """What rows [.., K] of any float type are after rounding with a scale each (ZeroQuant's token-wise; Yao et al. 2022, section 4.1).

    NaN or infinity makes the whole row NaN.
    """
    values = np.asarray(x, np.float32)
    largest = np.abs(values).max(axis=-1, keepdims=True, initial=0)
    with np.errstate(invalid="ignore"):
        codes = np.rint(values * (np.float32(STEPS) / np.maximum(largest, SMALLEST)))
        found: FloatArray = codes * (largest / np.float32(STEPS))
    return found


def rounded_tensor(x: npt.NDArray[Any], lowest: float, highest: float) -> FloatArray:
    """What a tensor of any float type and shape is after rounding with one scale for the range [lowest, highest], widened to hold 0.

    What lies outside is clipped.

    Raises:
        ValueError: the range is not finite.
    """
    scale, zero_point = Range(lowest, highest).scale_and_zero_point(8, signed=False, symmetric=False)
    first, last = code_limits(8, signed=False)
    codes = np.clip(np.rint(np.asarray(x, np.float32) / scale) + zero_point, first, last)
    found: FloatArray = (codes - np.float32(zero_point)) * scale
    return found
