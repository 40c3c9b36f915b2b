"""Search each group's range for the least squared error, weighted by how much of the activation each channel carries.

    min over scale and zero point of  sum_k h_k (w_k - q(w_k))^2,      h = diag(mean of x x^T), or 1 without statistics

The weighted error is the layer's output error as far as channels are uncorrelated (the diagonal of the second-order term in Optimal Brain
Surgeon, Hassibi & Stork 1993). Shrunken ranges are tried, then each end alone, then the scale that is best for the codes at hand
(least squares) with the codes chosen again; a step is kept in the groups where it helps.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from array_api_compat import array_namespace

from qcompiler.algorithms.arrays import BLOCK, CHUNK, Device, fetch, place, row_blocks
from qcompiler.algorithms.rtn import tensor_range
from qcompiler.quant.affine import Array, quantize_codes, range_to_scale, round_to_codes, store_scale, to_groups
from qcompiler.quant.scheme import Granularity, QuantScheme
from qcompiler.quant.statistics import InputStatistics
from qcompiler.quant.tensor import AffineTensor

END_STEPS = (0.1, 0.05)  # by how much each end of an asymmetric range is moved alone
REFITS = 2  # least-squares refits of the scale


@dataclass(frozen=True, slots=True)
class MseOptions:
    """How the ranges are searched.

    Attributes:
        steps: how many shrunken ranges are tried.
        shrink: the smallest of them, as a share of the full range.
        weighted: weigh the error by the channels' mean squares when there are statistics.
        device: where the maths runs.
    """

    steps: int = 12
    shrink: float = 0.5
    weighted: bool = True
    device: Device = "cpu"


def quantize(
    weight: npt.NDArray[Any],
    statistics: InputStatistics | None,
    scheme: QuantScheme,
    options: MseOptions | None = None,
) -> AffineTensor:
    """The codes and scales of least weighted squared error.

    Args:
        weight: [N, K] of any floating point type; it may be a view of a mapped file, and is read in blocks of rows.
        statistics: its mean squares (or the Hessian's diagonal) weigh the channels; None weighs all alike.
    Raises:
        SchemeError: the weight holds NaN or infinity.
    """
    options = options or MseOptions()
    importance = _importance(statistics, weight.shape[1], scheme, options)
    scale = np.empty(scheme.scale_shape(*weight.shape), np.float32)
    zero_point = None if scheme.symmetric else np.empty(scale.shape, np.uint8)
    codes = np.empty(weight.shape, np.uint8)
    whole = _search_tensor(weight, importance, scheme, options) if scheme.granularity is Granularity.TENSOR else None
    for rows, block in _blocks(weight, options.device):
        s, z = whole or _search(to_groups(block, scheme), importance, scheme, options)
        codes[rows] = fetch(quantize_codes(block, s, z, scheme))
        where = slice(None) if whole else rows
        scale[where] = fetch(s)
        if zero_point is not None:
            zero_point[where] = fetch(z)
    return AffineTensor(scheme, codes, scale, zero_point)


def _blocks(weight: npt.NDArray[Any], device: Device) -> Iterator[tuple[slice, Array]]:
    """Rows to work on, few enough to stay in cache, read in large blocks: a transposed view is slow to read row by row."""
    for outer in row_blocks(weight, BLOCK):
        block = place(weight[outer], device)
        for inner in row_blocks(block, CHUNK if device == "cpu" else BLOCK):
            yield slice(outer.start + inner.start, outer.start + inner.stop), block[inner]


def _importance(statistics: InputStatistics | None, k: int, scheme: QuantScheme, options: MseOptions) -> Array | None:
    """[1, G, g], relative to its mean; None where every channel counts alike."""
    diagonal = statistics.diagonal() if statistics is not None and options.weighted else None
    if diagonal is None or not diagonal.any():
        return None
    # A channel that was never active still counts a little: its weights should not be thrown away for nothing.
    relative = diagonal / diagonal.mean() + np.float32(1e-6)
    return to_groups(place(relative.reshape(1, k), options.device), scheme)


def _shrinks(scheme: QuantScheme, options: MseOptions) -> list[float]:
    """Shares of the full range; a symmetric one is also widened until the positive extreme fits."""
    shares = [float(share) for share in np.linspace(1.0, options.shrink, options.steps)]
    return [scheme.midpoint / (scheme.midpoint - 1), *shares] if scheme.symmetric and scheme.bits > 1 else shares


def _search(groups: Array, importance: Array | None, scheme: QuantScheme, options: MseOptions) -> tuple[Array, Array | None]:
    """Scale and zero point [n, G] for groups [n, G, g]."""
    xp = array_namespace(groups)
    lo, hi = xp.min(groups, axis=-1), xp.max(groups, axis=-1)
    lo, hi = xp.where(lo < 0, lo, xp.zeros_like(lo)), xp.where(hi > 0, hi, xp.zeros_like(hi))
    low_share, high_share = xp.ones_like(lo), xp.ones_like(hi)
    s, z = range_to_scale(lo, hi, scheme)
    error = _error(groups, importance, s, z, scheme)

    def attempt(a: Array, b: Array) -> None:
        nonlocal s, z, error, low_share, high_share
        trial_s, trial_z = range_to_scale(lo * a, hi * b, scheme)
        trial = _error(groups, importance, trial_s, trial_z, scheme)
        better = trial < error
        error, s = xp.where(better, trial, error), xp.where(better, trial_s, s)
        z = None if z is None or trial_z is None else xp.where(better, trial_z, z)
        low_share, high_share = xp.where(better, a, low_share), xp.where(better, b, high_share)

    ones = xp.ones_like(lo)
    for share in _shrinks(scheme, options):
        if share != 1.0:
            attempt(ones * share, ones * share)
    if z is not None:
        for step in END_STEPS:
            for d_low, d_high in ((step, 0.0), (-step, 0.0), (0.0, step), (0.0, -step)):
                attempt(low_share + d_low, high_share + d_high)
    for _ in range(REFITS):
        trial_s = _refit(groups, importance, s, z, scheme)
        trial = _error(groups, importance, trial_s, z, scheme)
        better = trial < error
        error, s = xp.where(better, trial, error), xp.where(better, trial_s, s)
    return s, z


def _centered_codes(groups: Array, s: Array, z: Array | None, scheme: QuantScheme) -> Array:
    """Code minus zero point of each weight, float32 [n, G, g]."""
    offset = scheme.midpoint if z is None else z[..., None]
    values = groups / s[..., None]
    values += offset
    values = round_to_codes(values, scheme)
    values -= offset
    return values


def _error(groups: Array, importance: Array | None, s: Array, z: Array | None, scheme: QuantScheme) -> Array:
    """Weighted squared error of each group, [n, G]."""
    xp = array_namespace(groups)
    values = _centered_codes(groups, s, z, scheme)
    values *= s[..., None]
    values -= groups
    values *= values
    if importance is not None:
        values *= importance
    return xp.sum(values, axis=-1)


def _refit(groups: Array, importance: Array | None, s: Array, z: Array | None, scheme: QuantScheme) -> Array:
    """The scale of least weighted squares for the codes that ``s`` gives: <h w c> / <h c c>."""
    xp = array_namespace(groups)
    centered = _centered_codes(groups, s, z, scheme)
    weighted = centered if importance is None else centered * importance
    above, below = xp.sum(weighted * groups, axis=-1), xp.sum(weighted * centered, axis=-1)
    usable = (below > 0) & (above > 0)
    fitted = xp.where(usable, above / xp.where(usable, below, xp.ones_like(below)), s)
    return store_scale(fitted, scheme.scale_dtype)


def _search_tensor(
    weight: npt.NDArray[Any], importance: Array | None, scheme: QuantScheme, options: MseOptions
) -> tuple[Array, Array | None]:
    """One scale and zero point [1, 1] for the whole weight: every shrunken range over all blocks."""
    lo, hi = tensor_range(weight, scheme, options.device)
    candidates = [range_to_scale(lo * share, hi * share, scheme) for share in (1.0, *_shrinks(scheme, options))]
    totals = [0.0] * len(candidates)
    for _, block in _blocks(weight, options.device):
        groups = to_groups(block, scheme)
        for index, (s, z) in enumerate(candidates):
            totals[index] += float(_error(groups, importance, s, z, scheme).sum())
    return candidates[int(np.argmin(totals))]
