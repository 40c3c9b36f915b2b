"""Scales that minimise the squared error of each group, weighted by how strongly each input channel is driven.

    argmin over scale, zero point of  sum_k h_k (w_k - Q(w_k))^2,      h = diag(H) = mean of x^2

Both ends of the range are shrunk independently over a grid (an asymmetric range that need not hold its outliers), the
best pair is kept, and given its codes c the scale is refitted in closed form, s = <h w c> / <h c c>. Without
statistics every channel weighs the same.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from array_api_compat import array_namespace

from qcompiler.algorithms.arrays import CHUNK, Device, fetch, place, row_blocks
from qcompiler.algorithms.rtn import RtnOptions, group_range
from qcompiler.algorithms.rtn import quantize as rtn_quantize
from qcompiler.quant.affine import Array, quantize_codes, range_to_scale
from qcompiler.quant.scheme import Granularity, QuantScheme
from qcompiler.quant.statistics import InputStatistics
from qcompiler.quant.tensor import AffineTensor


@dataclass(frozen=True, slots=True)
class MseOptions:
    """How the ranges are searched.

    Attributes:
        steps: how many shrunk positions are tried for each end of the range.
        shrink: the smallest range tried, as a share of the full one.
        weighted: weigh the error by the channels' mean squares when there are statistics.
        device: where the maths runs.
    """

    steps: int = 8
    shrink: float = 0.6
    weighted: bool = True
    device: Device = "cpu"


def quantize(
    weight: npt.NDArray[Any],
    statistics: InputStatistics | None,
    scheme: QuantScheme,
    options: MseOptions | None = None,
) -> AffineTensor:
    """Placeholder search: full ranges."""
    return rtn_quantize(weight, statistics, scheme, RtnOptions((options or MseOptions()).device))
