"""The scale of input channels that rounds activations and weights with the least error, both with one scale for a row.

A row of x / s is rounded in steps of max_j |x_j / s_j| / 127, a row of W s in steps of max_j |w_j s_j| / 128; an error of a step's size,
evenly spread, is multiplied by what is on the other side. The squared error of the output is then, but for a factor,

    L(s) = mean_m max_j (x_mj / s_j)^2  sum_ij (w_ij s_j)^2 / 127^2  +  sum_i max_j (w_ij s_j)^2  sum_j mean_m (x_mj / s_j)^2 / 128^2

which is gone down in log s with subgradients and Adam (Kingma & Ba 2014), the best point kept.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

STEP = 0.05  # of log s, falling to 0
_SLOW, _FAST = 0.99, 0.9  # decay of Adam's second and first moment
_TINY = 1e-30

Vector = npt.NDArray[np.float64]


def balance(
    weights: Sequence[npt.NDArray[np.float32]],
    shares: Sequence[float],
    x: npt.NDArray[np.float32],
    start: npt.NDArray[np.float32],
    tie: npt.NDArray[np.integer] | None,
    iterations: int,
) -> npt.NDArray[np.float32]:
    """The scale float32 [K] with the least L on the way down from ``start`` [K].

    Args:
        weights: rows [n_i, K] of the weights that read the input; ``shares``: how many each row stands for.
        x: rows of the input, float32 [R, K].
        tie: whole numbers [K]; channels with the same number get the same scale, as they have it in ``start``.
    """
    rows = np.abs(np.concatenate(list(weights)))
    share = np.repeat(np.asarray(shares, np.float64), [len(weight) for weight in weights])
    size = np.abs(x)
    energy_w = share @ np.square(rows, dtype=np.float64)
    energy_x = np.square(size, dtype=np.float64).mean(axis=0)
    group = None if tie is None else np.unique(tie, return_inverse=True)[1]
    logarithm = np.log(start.astype(np.float64))
    best, least = logarithm, np.inf
    first, second = np.zeros_like(logarithm), np.zeros_like(logarithm)
    for step in range(iterations):
        s = np.exp(logarithm)
        loss, slope = _loss(rows, share, size, energy_w, energy_x, s)
        if loss < least:
            best, least = logarithm.copy(), loss
        if group is not None:
            slope = (np.bincount(group, slope) / np.bincount(group))[group]
        first = _FAST * first + (1 - _FAST) * slope
        second = _SLOW * second + (1 - _SLOW) * slope**2
        moment = first / (1 - _FAST ** (step + 1))
        spread = np.sqrt(second / (1 - _SLOW ** (step + 1)))
        logarithm = logarithm - STEP * (1 - step / iterations) * moment / (spread + _TINY)
    scale: npt.NDArray[np.float32] = np.exp(best - best.mean()).astype(np.float32)
    return scale


def _loss(
    rows: npt.NDArray[np.float32],
    share: Vector,
    size: npt.NDArray[np.float32],
    energy_w: Vector,
    energy_x: Vector,
    s: Vector,
) -> tuple[float, Vector]:
    """L and its slope over log s, divided by L."""
    k, narrow, square = len(s), s.astype(np.float32), np.square(s)
    step_x, at_x = _largest(size / narrow)
    step_w, at_w = _largest(rows * narrow)
    of_x, of_w = step_x / len(size), step_w * share
    beside_x, beside_w = energy_w * square, energy_x / square
    rounding_x = of_x.sum() * beside_x.sum() / 127**2
    rounding_w = of_w.sum() * beside_w.sum() / 128**2
    loss = float(rounding_x + rounding_w) + _TINY
    slope_x = -np.bincount(at_x, of_x, k) / (of_x.sum() + _TINY) + beside_x / (beside_x.sum() + _TINY)
    slope_w = np.bincount(at_w, of_w, k) / (of_w.sum() + _TINY) - beside_w / (beside_w.sum() + _TINY)
    return loss, 2 * (rounding_x * slope_x + rounding_w * slope_w) / loss


def _largest(values: npt.NDArray[np.float32]) -> tuple[Vector, npt.NDArray[np.intp]]:
    """The square of each row's largest value, and its column."""
    at = values.argmax(axis=1)
    return np.square(values[np.arange(len(values)), at], dtype=np.float64), at
