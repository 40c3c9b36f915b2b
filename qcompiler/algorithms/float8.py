"""rtn for weights of 8-bit floats: scale = max |w| / 448 (57344 for e5m2), the nearest number (Micikevicius et al. 2022, section 4)."""

from typing import Any

import numpy as np
import numpy.typing as npt

from qcompiler.algorithms.arrays import row_blocks
from qcompiler.algorithms.rtn import RtnOptions
from qcompiler.errors import SchemeError
from qcompiler.quant.float8 import Float8Tensor, nearest_codes, scale_of
from qcompiler.quant.scheme import Granularity, QuantScheme
from qcompiler.quant.statistics import InputStatistics


def round_to_nearest(
    weight: npt.NDArray[Any],
    statistics: InputStatistics | None,
    scheme: QuantScheme,
    options: RtnOptions | None = None,
) -> Float8Tensor:
    """The numbers nearest to the weight [N, K], with scales that bring its largest magnitude to the format's.

    Args:
        weight: of any floating point type; it may be a view of a mapped file: it is read in blocks of rows.
        statistics, options: not used.
        scheme: how the weight will be stored.
    Raises:
        SchemeError: the weight holds NaN or infinity.
    """
    n, k = weight.shape
    largest = np.empty((n, 1), np.float32)
    for rows in row_blocks(weight):
        largest[rows] = np.abs(weight[rows].astype(np.float32)).max(axis=1, keepdims=True, initial=0)
    if not np.isfinite(largest).all():
        raise SchemeError("the weight holds NaN or infinity; it cannot be quantized")
    if scheme.granularity is Granularity.TENSOR:
        largest = largest.max(keepdims=True, initial=0).reshape(1, 1)
    scale = scale_of(largest, scheme.dtype, scheme.scale_dtype)
    codes = np.empty((n, k), np.uint8)
    for rows in row_blocks(weight):
        shares = weight[rows].astype(np.float32) / (scale if len(scale) == 1 else scale[rows])
        codes[rows] = nearest_codes(shares, scheme.dtype)
    return Float8Tensor(scheme, codes, scale)
