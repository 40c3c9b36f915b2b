"""Round to nearest: the range of each group, its scale, the nearest codes. Needs no data.

    scale = (max w - min w) / (2^b - 1),  code = round(w / scale) + zero_point      (symmetric: max |w| / 2^(b - 1))
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from array_api_compat import array_namespace

from qcompiler.algorithms.arrays import BLOCK, Device, fetch, place, row_blocks
from qcompiler.quant.affine import Array, quantize_codes, range_to_scale, to_groups
from qcompiler.quant.scheme import Granularity, QuantScheme
from qcompiler.quant.statistics import InputStatistics
from qcompiler.quant.tensor import AffineTensor


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
        weight: [N, K] of any floating point type; it may be a view of a mapped file, and is read in blocks of rows.
        statistics: not used.
    Raises:
        SchemeError: the weight holds NaN or infinity.
    """
    device = (options or RtnOptions()).device
    blocks = list(row_blocks(weight, BLOCK))
    scale = np.empty(scheme.scale_shape(*weight.shape), np.float32)
    zero_point = None if scheme.symmetric else np.empty(scale.shape, np.uint8)
    codes = np.empty(weight.shape, np.uint8)
    whole = tensor_range(weight, scheme, device) if scheme.granularity is Granularity.TENSOR else None
    for rows in blocks:
        block = place(weight[rows], device)
        s, z = range_to_scale(*(whole or group_range(block, scheme)), scheme)
        codes[rows] = fetch(quantize_codes(block, s, z, scheme))
        where = slice(None) if whole else rows
        scale[where] = fetch(s)
        if zero_point is not None:
            zero_point[where] = fetch(z)
    return AffineTensor(scheme, codes, scale, zero_point)


def group_range(block: Array, scheme: QuantScheme) -> tuple[Array, Array]:
    """Smallest and largest weight of each group, [n, G] twice, from rows [n, K]; what pads a short group counts as 0."""
    xp = array_namespace(block)
    grouped = to_groups(block, scheme)
    return xp.min(grouped, axis=-1), xp.max(grouped, axis=-1)


def tensor_range(weight: npt.NDArray[Any], scheme: QuantScheme, device: Device) -> tuple[Array, Array]:
    """Smallest and largest weight of the whole [N, K], [1, 1] twice, read in blocks."""
    ranges = [group_range(place(weight[rows], device), scheme) for rows in row_blocks(weight)]
    lo = np.stack([fetch(low).min() for low, _ in ranges]).min()
    hi = np.stack([fetch(high).max() for _, high in ranges]).max()
    return place(np.full((1, 1), lo), device), place(np.full((1, 1), hi), device)
