"""The Hessian of a layer's output error, factored for algorithms that round one column after another.

With H = mean of x x^T damped to be positive definite, and columns in order p,

    H^-1 [p, p] = U^T U,  U upper triangular        (Frantar et al. 2023, GPTQ, equation 3 and section 3.3)

row j of U / U_jj says how the rounding error of column j is best made up for by the columns after it, and
1 / U_jj^2 what then remains: the mean square of channel j that the channels after it cannot explain.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from array_api_compat import is_torch_array

from qcompiler.algorithms.arrays import Device, fetch, place
from qcompiler.errors import CalibrationError
from qcompiler.quant.affine import Array
from qcompiler.quant.statistics import InputStatistics

# Share of the mean diagonal added to the diagonal. The paper's 0.01 fits 16 x 512 tokens too closely (docs/algorithms/gptq.md).
DAMPING = 0.1
_GROWTH = 10.0  # of the damping, each time the matrix turns out not to be positive definite
_MOST_DAMPING = 1e3

Float = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Factor:
    """What rounding column after column needs.

    Attributes:
        order: int [K], the columns by falling mean square.
        spread: float32 [K, K] lower triangular with ones on its diagonal, in that order: column i takes up
            ``spread[i, j]`` times the error of column j < i.
        remaining: float32 [K], in the weight's own order: 1 / U_jj^2.
        damping: the share of the mean diagonal that was added; more than was asked for where that did not do.
    """

    order: npt.NDArray[np.int64]
    spread: Float
    remaining: Float
    damping: float


def factor(statistics: InputStatistics, damping: float, device: Device) -> Factor:
    """The factor of the statistics' Hessian, kept with them: query, key and value read one input.

    Args:
        damping: the share of the mean diagonal to add to the diagonal.
    Raises:
        CalibrationError: no Hessian, one with NaN or infinity, or one that no damping makes positive definite.
    """
    known = statistics.derived.get((factor, damping, device))
    if known is None:
        known = statistics.derived[factor, damping, device] = _factor(statistics, damping, device)
    found: Factor = known
    return found


def _factor(statistics: InputStatistics, damping: float, device: Device) -> Factor:
    if statistics.hessian is None:
        raise CalibrationError("the Hessian of the layer's input is missing; calibrate with it")
    if not np.isfinite(statistics.hessian).all():
        raise CalibrationError("the Hessian holds NaN or infinity; check the calibration data")
    diagonal = np.diagonal(statistics.hessian)
    order = np.argsort(-diagonal, kind="stable")
    mean = max(float(diagonal.mean()), 1e-30)
    # U is upper triangular where H = V V^T with V = U^-1 upper: a Cholesky factorization from the last column on.
    backward = statistics.hessian[np.ix_(order[::-1], order[::-1])]
    backward /= np.float32(mean)
    share, added = damping, 0.0
    while share <= _MOST_DAMPING:
        backward[np.diag_indices_from(backward)] += np.float32(share - added)
        added = share
        lower = _cholesky(place(backward, device))
        if lower is None:
            lower = _cholesky(backward.astype(np.float64))
        if lower is not None:
            del backward
            return _from_cholesky(lower, order, mean, share)
        share = max(share * _GROWTH, 1e-4)
    raise CalibrationError(
        "the Hessian is not positive definite with any damping; check the calibration data"
    )


def _from_cholesky(lower: Array, order: npt.NDArray[np.int64], mean: float, damping: float) -> Factor:
    backward = fetch(_inverse(lower))[::-1, ::-1]  # U, upper triangular
    pivots = np.diagonal(backward)
    remaining = np.empty(order.shape, np.float32)
    remaining[order] = mean / np.square(pivots)
    spread = np.ascontiguousarray(backward.T, dtype=np.float32)
    spread /= pivots
    return Factor(order, spread, remaining, damping)


def _cholesky(matrix: Array) -> Array | None:
    """Lower factor, or None where the matrix is not positive definite."""
    if is_torch_array(matrix):
        import torch

        lower, failed = torch.linalg.cholesky_ex(matrix)
        return None if bool(failed) or not bool(torch.isfinite(lower).all()) else lower
    try:
        return np.linalg.cholesky(matrix)
    except np.linalg.LinAlgError:
        return None


def _inverse(lower: Array) -> Array:
    """Of a lower triangular matrix."""
    if is_torch_array(lower):
        import torch

        one = torch.eye(lower.shape[0], dtype=lower.dtype, device=lower.device)
        return torch.linalg.solve_triangular(lower, one, upper=False, out=one)
    return np.linalg.inv(lower)
