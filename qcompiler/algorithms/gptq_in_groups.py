"""GPTQ where each group of outputs sees inputs of its own, as in a depthwise convolution: many small Hessians at once.

    minimise  sum_g tr((W_g - Q_g) H_g (W_g - Q_g)^T),      H_g = mean of x x^T over what group g sees

Columns are rounded in their order, each error spread over those after it (Frantar et al. 2023, equations 2 and 3); then codes and scales
are refined in turn as in ``gptq``: each code the best one given all others, each row's scale its least squares solution. What a group sees
is small (9 numbers, or 25), and the same steps are taken of all groups together.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from qcompiler.algorithms import mse
from qcompiler.errors import CalibrationError
from qcompiler.quant.affine import round_to_codes, store_scale
from qcompiler.quant.affine_tensor import AffineTensor
from qcompiler.quant.scheme import Granularity, QuantScheme
from qcompiler.quant.statistics import GroupedStatistics

Doubles = npt.NDArray[np.float64]


def quantize(
    weight: npt.NDArray[Any],
    statistics: GroupedStatistics,
    scheme: QuantScheme,
    search: mse.MseOptions,
    damping: float,
    refine: int,
) -> AffineTensor:
    """Codes whose output error is small together.

    Args:
        weight: [N, K] of any floating point type, N a multiple of the groups.
        scheme: symmetric, with a scale for each output or for the whole weight.
        search: for the first scales.
        damping: share of each Hessian's mean diagonal that is added to its diagonal.
        refine: rounds of descent on codes and scales.
    Raises:
        SchemeError: the weight holds NaN or infinity.
        CalibrationError: a Hessian does.
    """
    start = mse.quantize(weight, None, scheme, search)
    if not np.isfinite(statistics.hessian).all():
        raise CalibrationError("the Hessian holds NaN or infinity; check the calibration data")
    groups, k = statistics.hessian.shape[:2]
    hessian = _damped(statistics.hessian.astype(np.float64), damping)
    exact = np.asarray(weight, np.float64).reshape(groups, -1, k)
    own = scheme.granularity is not Granularity.TENSOR
    scale = np.broadcast_to(start.scale.astype(np.float64), (len(weight), 1)).reshape(groups, -1, 1)
    codes = _round_columns(exact, scale, hessian, scheme)
    for _ in range(refine):
        if own:
            scale = _refitted(exact, codes, scale, hessian, scheme)
        codes = _descended(exact, codes, scale, hessian, scheme)
    stored = (codes + scheme.midpoint).reshape(weight.shape).astype(start.codes.dtype)
    scales = scale.reshape(start.scale.shape).astype(start.scale.dtype) if own else start.scale
    return AffineTensor(scheme, stored, scales, start.zero_point)


def _damped(hessian: Doubles, damping: float) -> Doubles:
    """Positive definite: a group that nothing drove gets ones."""
    mean = np.diagonal(hessian, axis1=1, axis2=2).mean(axis=1)
    added = np.where(mean > 0, damping * mean, 1.0)
    result: Doubles = hessian + added[:, None, None] * np.eye(hessian.shape[1])
    return result


def _rounded(values: Doubles, scheme: QuantScheme) -> Doubles:
    """Whole numbers about 0 that the scheme's codes hold."""
    result: Doubles = round_to_codes(values + scheme.midpoint, scheme) - scheme.midpoint
    return result


def _round_columns(exact: Doubles, scale: Doubles, hessian: Doubles, scheme: QuantScheme) -> Doubles:
    """Centred codes [G, n, K]; ``spread`` is U / diag(U), H^-1 = U^T U."""
    backward = np.linalg.cholesky(hessian[:, ::-1, ::-1])
    upper = np.linalg.inv(backward)[:, ::-1, ::-1]
    spread = upper / np.diagonal(upper, axis1=1, axis2=2)[:, :, None]
    left, codes = exact.copy(), np.empty_like(exact)
    for j in range(exact.shape[2]):
        column = left[:, :, j : j + 1]
        codes[:, :, j : j + 1] = _rounded(column / scale, scheme)
        error = column - codes[:, :, j : j + 1] * scale
        left[:, :, j + 1 :] -= error * spread[:, None, j, j + 1 :]
    return codes


def _descended(
    exact: Doubles, codes: Doubles, scale: Doubles, hessian: Doubles, scheme: QuantScheme
) -> Doubles:
    """One sweep over the columns, each code set to the best given all the others; the output error never rises."""
    codes = codes.copy()
    slope = (codes * scale - exact) @ hessian
    for j in range(exact.shape[2]):
        here = codes[:, :, j : j + 1]
        best = _rounded(here - slope[:, :, j : j + 1] / hessian[:, None, None, j, j] / scale, scheme)
        slope += (best - here) * scale * hessian[:, None, j, :]
        codes[:, :, j : j + 1] = best
    return codes


def _refitted(
    exact: Doubles, codes: Doubles, scale: Doubles, hessian: Doubles, scheme: QuantScheme
) -> Doubles:
    """The scale of least output error for each row's codes, c^T H w / c^T H c, where it has the sign that is there and gains something."""
    pulled = codes @ hessian
    along = np.sum(pulled * codes, axis=2, keepdims=True)
    across = np.sum(pulled * exact, axis=2, keepdims=True)
    fits = (along > 0) & (np.sign(across) == np.sign(scale))
    found = np.where(fits, across / np.where(along > 0, along, 1), scale)
    found = store_scale(found.astype(np.float32), scheme.scale_dtype).astype(np.float64)

    def loss(s: Doubles) -> Doubles:
        result: Doubles = s * s * along - 2 * s * across
        return result

    return np.where(loss(found) < loss(scale), found, scale)
