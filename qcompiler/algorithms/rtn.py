"""Round to nearest: the range of each group, its scale, the nearest codes. Needs no data.

scale = (max w - min w) / (2^b - 1),    code = round(w / scale) + zero_point
symmetric: scale = -w* / 2^(b - 1),     w* the weight of largest magnitude, so that it is code 0 exactly
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from array_api_compat import array_namespace

from qcompiler.algorithms.arrays import Device, fetch, place, row_blocks
from qcompiler.algorithms.sweep import sweep_rows
from qcompiler.quant.affine import Array, quantize_codes, range_to_scale, to_groups
from qcompiler.quant.affine_tensor import AffineTensor
from qcompiler.quant.scheme import Granularity, QuantScheme
from qcompiler.quant.statistics import InputStatistics

FindScale = Callable[[Array], tuple[Array, Array | None]]
"""Scales and zero points (None when symmetric) for float32 rows [n, K], as range_to_scale gives them."""


@dataclass(frozen=True, slots=True)
class RtnOptions:
    """Where the maths runs."""

    device: Device = "cpu"


def quantize(
    weight: npt.NDArray[Any],
    statistics: InputStatistics | None,
    scheme: QuantScheme,
    options: RtnOptions | None = None,
) -> AffineTensor:
    """The codes nearest to the weight, with scales that cover each group's range.

    Args:
        weight: [N, K] of any floating point type; it may be a view of a mapped file: it is read in blocks of
            rows.
        statistics: not used.
        scheme: how the weight will be stored.
        options: where the maths runs.
    Raises:
        SchemeError: the weight holds NaN or infinity.
    """
    if scheme.groups_rows:
        return quantize(weight.T, None, scheme.turned, options).turned
    device = (options or RtnOptions()).device
    if scheme.granularity is Granularity.TENSOR:
        scale, zero_point = range_to_scale(*tensor_range(weight, device), scheme)
        return quantize_rows(weight, scheme, lambda rows: (scale, zero_point), device)
    return quantize_rows(
        weight, scheme, lambda rows: range_to_scale(*group_range(rows, scheme), scheme), device
    )


def quantize_rows(
    weight: npt.NDArray[Any], scheme: QuantScheme, find_scale: FindScale, device: Device
) -> AffineTensor:
    """The codes nearest to the weight [N, K] for the scales that ``find_scale`` gives, a chunk of rows at a
    time."""
    scale = np.empty(scheme.scale_shape(*weight.shape), np.float32)
    kind = np.float32 if scheme.has_float_zero_points else np.uint8
    zero_point = None if scheme.symmetric else np.empty(scale.shape, kind)
    codes = np.empty(weight.shape, np.uint8)

    def work(chunk: Array, here: "slice[int, int, Any]") -> None:
        s, z = find_scale(chunk)
        codes[here] = fetch(quantize_codes(chunk, s, z, scheme))
        shared = slice(None) if scheme.granularity is Granularity.TENSOR else here
        scale[shared] = fetch(s)
        if zero_point is not None:
            zero_point[shared] = fetch(z)

    sweep_rows(weight, work, device)
    return AffineTensor(scheme, codes, scale, zero_point)


def group_range(rows: Array, scheme: QuantScheme) -> tuple[Array, Array]:
    """Smallest and largest weight of each group, [n, G] twice, of rows [n, K]; short groups are filled up
    with 0."""
    xp = array_namespace(rows)
    grouped = to_groups(rows, scheme)
    return xp.min(grouped, axis=-1), xp.max(grouped, axis=-1)


def tensor_range(weight: npt.NDArray[Any], device: Device) -> tuple[Array, Array]:
    """Smallest and largest weight of the whole [N, K], [1, 1] twice, read in blocks."""
    ends = np.empty((0, 2), np.float32)
    for rows in row_blocks(weight):
        block = np.asarray(weight[rows], np.float32)
        ends = np.vstack([ends, [[block.min(), block.max()]]])  # NaN stays NaN; Python's min would lose it
    return place(ends[:, :1].min(keepdims=True), device), place(ends[:, 1:].max(keepdims=True), device)
