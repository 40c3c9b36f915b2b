"""A few weights kept as floats, the others rounded column after column (SpQR, Dettmers et al. 2023).

What it costs the layer's output to lose a weight, after the weights after it have made up for it, is

    s_ij = (w_ij - q(w_ij))^2 / [H^-1]_jj,   q(w) = 0,      H = mean of x x^T, damped        (section 3.1, equation 2)

The ``share`` of the weights with the largest s are outliers: stored as floats in sparse form, while their code means 0. The others are
quantized as by gptq, with scales searched without the outliers; an outlier takes up errors of columns before it, and hands on what its
type does not hold.
Where the paper takes a first rounding for q, and leaves group statistics out one weight at a time, 0 does for both: what is large widens
the range of its group (docs/algorithms/spqr.md has the figures). The paper's second quantization, of the scales, is not done here.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from qcompiler.algorithms import gptq, mse
from qcompiler.algorithms.hessian import Factor, factor
from qcompiler.errors import SchemeError
from qcompiler.quant.outliers import Outliers, outlier_bytes
from qcompiler.quant.scheme import QuantScheme
from qcompiler.quant.statistics import InputStatistics
from qcompiler.quant.tensor import CorrectedTensor

Float = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class SpqrOptions(gptq.GptqOptions):
    """Which weights are kept, and as of gptq how the others are rounded.

    Attributes:
        share: of the weights, kept as floats; at least one is.
    Raises:
        SchemeError: a value that makes no sense.
    """

    share: float = 0.01

    def __post_init__(self) -> None:
        gptq.GptqOptions.__post_init__(self)  # super() knows the class that slots replace
        if not 0 < self.share <= 0.5:
            raise SchemeError(f"share: {self.share}; give a share of the weights, such as 0.01, at most 0.5")


def stored_bytes(options: SpqrOptions, scheme: QuantScheme, n: int, k: int) -> int:
    """Bytes of the outliers beside an [N, K] weight; their type is that of the scales."""
    return outlier_bytes(_count(options.share, n, k), n, k, scheme.scale_dtype)


def quantize(
    weight: npt.NDArray[Any],
    statistics: InputStatistics | None,
    scheme: QuantScheme,
    options: SpqrOptions | None = None,
) -> CorrectedTensor:
    """Codes, and the weights that are kept beside them.

    Args:
        weight: [N, K] of any floating point type.
        statistics: with the Hessian; without one, or where nothing was driven, the largest weights are outliers, and the others are rounded
            as by mse.
        scheme: how the codes will be stored.
        options: the share of outliers, and those of gptq.
    Raises:
        SchemeError: the weight holds NaN or infinity, or the scheme has float zero points.
        CalibrationError: the Hessian does.
    """
    options = options or SpqrOptions()
    if scheme.has_float_zero_points:
        raise SchemeError("spqr: no code means 0 with a float zero point; set zero_point: int, or use gptq")
    values = np.array(weight, np.float32)
    if not np.isfinite(values).all():
        raise SchemeError("the weight holds NaN or infinity; it cannot be quantized")
    known = (
        statistics is not None and statistics.hessian is not None and np.diagonal(statistics.hessian).any()
    )
    plan = factor(statistics, options.damping, options.device) if known and statistics is not None else None
    mask = _largest(sensitivity(values, plan), _count(options.share, *values.shape))
    if plan is not None and statistics is not None:
        base, kept = gptq.round_together(values, statistics, scheme, options, mask)
    else:
        # A zero is exact whatever the scale, so an outlier set to 0 has no say in the search, and its code is the zero point.
        base, kept = mse.quantize(np.where(mask, 0, values), statistics, scheme, options.search), values
    assert kept is not None  # there is a mask
    return CorrectedTensor(base, outliers=Outliers.at(mask, kept, scheme.scale_dtype))


def sensitivity(values: Float, plan: Factor | None) -> Float:
    """s_ij for each weight, float32 [N, K]; without a factor its square."""
    squares: Float = np.square(values)
    if plan is None:
        return squares
    inverse = np.empty(plan.order.size, np.float32)  # the diagonal of H^-1 = U^T U
    inverse[plan.order] = np.square(plan.spread) @ (1 / plan.remaining[plan.order])
    squares /= inverse
    return squares


def _largest(scores: Float, count: int) -> npt.NDArray[np.bool_]:
    """Where the ``count`` largest are; of equal ones the first."""
    flat = scores.ravel()
    limit = np.partition(flat, flat.size - count)[flat.size - count]
    mask: npt.NDArray[np.bool_] = flat > limit
    mask[np.flatnonzero(flat == limit)[: count - int(mask.sum())]] = True
    return mask.reshape(scores.shape)


def _count(share: float, n: int, k: int) -> int:
    return max(1, round(share * n * k))
