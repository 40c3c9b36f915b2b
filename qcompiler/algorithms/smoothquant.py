"""Scales that move the outliers of activations into weights (SmoothQuant, Xiao et al. 2022, eq. 4).

    s_j = max |X_j|^alpha / max |W_j|^(1 - alpha),      Y = (X / s) (s W^T)

X / s has no channel that is much larger than the others, so that one scale for a row or for all rows rounds it well; W s is harder to
round than W, but has a scale for each output. The paper takes alpha 0.5, or more for outliers that are larger still. ``alpha: auto`` takes
for each input the alpha of a grid that has the least error of the output, both sides rounded as they will be, over a sample of rows:

    s* = argmin_s sum_i || Q(X / s) Q(W_i s)^T - X W_i^T ||^2

and tries what ``balance`` makes of that scale, channel by channel, too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from qcompiler.algorithms.awq import ScaleChoice, sampled_rows
from qcompiler.algorithms.balance import balance
from qcompiler.algorithms.limits import check_at_least
from qcompiler.algorithms.rtn import quantize as round_to_nearest
from qcompiler.errors import CalibrationError, SchemeError
from qcompiler.quant.activations import Activations, rounded_rows, rounded_tensor
from qcompiler.quant.scheme import QuantScheme
from qcompiler.quant.statistics import InputStatistics

GRID = tuple(step / 10 for step in range(3, 10))  # 0.3 .. 0.9
_FLOOR = 1e-5  # the least a channel counts, relative to the largest: a dead one must not get a scale of zero
_WIDEST = 1e4  # of a scale and its inverse


@dataclass(frozen=True, slots=True)
class SmoothQuantOptions:
    """How the scale is found.

    Attributes:
        alpha: how much of an outlier moves, 0 (none) to 1; auto: what gives the least error.
        iterations: with auto, steps of the descent from there; 0 leaves it out.
        rows: rows of each weight that a search looks at, evenly spaced.
    Raises:
        SchemeError: alpha outside 0..1, or a number below what it can be.
    """

    alpha: float | Literal["auto"] = "auto"
    iterations: int = 150
    rows: int = 512

    def __post_init__(self) -> None:
        if self.alpha != "auto" and not 0 <= self.alpha <= 1:
            raise SchemeError(f"alpha: {self.alpha} is outside 0 to 1; the paper's is 0.5, auto searches")
        check_at_least(self, iterations=0, rows=1)


def search_scale(
    weights: Sequence[npt.NDArray[Any]],
    statistics: InputStatistics,
    schemes: Sequence[QuantScheme],
    options: SmoothQuantOptions | None = None,
    tie: npt.NDArray[np.integer[Any]] | None = None,
    activations: Activations = "token",
) -> ScaleChoice:
    """One scale for all the weights that read the same input (query, key and value together).

    Args:
        weights: each [N_i, K], any floating point type.
        statistics: with ``max_abs`` and ``sample``.
        schemes: how each weight will be stored.
        options: which alpha.
        tie: whole numbers [K]; channels with the same number get the same scale.
        activations: how the input will be rounded.
    Returns:
        the scale; its losses are squared output errors per row of activation, over the sampled rows.
    Raises:
        CalibrationError: no statistics of channels, or no rows.
        SchemeError: a weight holds NaN or infinity.
    """
    options = options or SmoothQuantOptions()
    if statistics.max_abs is None or statistics.sample is None or not len(statistics.sample):
        raise CalibrationError("smoothquant needs the largest activations and rows; calibrate with them")
    largest_x = _tied(_floored(statistics.max_abs), tie)
    largest_w = np.zeros_like(largest_x)
    for weight in weights:
        np.maximum(largest_w, np.abs(weight).max(axis=0).astype(np.float32), out=largest_w)
    largest_w = _tied(_floored(largest_w), tie)
    samples = [np.asarray(sampled_rows(weight, options.rows), np.float32) for weight in weights]
    shares = [weight.shape[0] / sample.shape[0] for weight, sample in zip(weights, samples, strict=True)]
    products = [statistics.sample @ sample.T for sample in samples]

    def loss_of(scale: npt.NDArray[np.float32]) -> float:
        x = _rounded(statistics, scale, activations)
        loss = 0.0
        for sample, share, product, scheme in zip(samples, shares, products, schemes, strict=True):
            error = x @ round_to_nearest(sample * scale, None, scheme).dequantize().T - product
            loss += share * float(np.square(error, dtype=np.float64).sum()) / len(x)
        return loss

    alphas = GRID if options.alpha == "auto" else (options.alpha,)
    candidates = [_scale(largest_x, largest_w, alpha) for alpha in alphas]
    losses = [loss_of(scale) for scale in candidates]
    if options.alpha == "auto" and options.iterations:
        start = candidates[int(np.argmin(losses))]
        found = balance(samples, shares, statistics.sample, start, tie, options.iterations)
        candidates.append(np.clip(found, 1 / _WIDEST, _WIDEST))
        losses.append(loss_of(candidates[-1]))
    best = int(np.argmin(losses))
    return ScaleChoice(candidates[best], losses[best], loss_of(np.ones_like(largest_x)))


def _scale(
    largest_x: npt.NDArray[np.float32], largest_w: npt.NDArray[np.float32], alpha: float
) -> npt.NDArray[np.float32]:
    """Equation 4, its geometric mean 1: what is the same for all channels moves nothing."""
    logarithm = alpha * np.log(largest_x.astype(np.float64)) - (1 - alpha) * np.log(
        largest_w.astype(np.float64)
    )
    scale = np.exp(logarithm - logarithm.mean())
    held: npt.NDArray[np.float32] = np.clip(scale, 1 / _WIDEST, _WIDEST).astype(np.float32)
    return held


def _rounded(
    statistics: InputStatistics, scale: npt.NDArray[np.float32], activations: Activations
) -> npt.NDArray[np.float32]:
    assert statistics.sample is not None and statistics.max_abs is not None
    x = statistics.sample / scale
    if activations == "none":
        return x
    if activations == "token":
        return rounded_rows(x)
    # The rows that are largest may not be among the sampled ones.
    reach = float((statistics.max_abs / scale).max())
    return rounded_tensor(x, -reach if x.min() < 0 else 0.0, reach if x.max() > 0 else 0.0)


def _floored(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    largest = float(values.max(initial=0))
    return np.maximum(values, largest * _FLOOR) if largest > 0 else np.ones_like(values)


def _tied(
    values: npt.NDArray[np.float32], tie: npt.NDArray[np.integer[Any]] | None
) -> npt.NDArray[np.float32]:
    """The largest of the channels that share a scale."""
    if tie is None:
        return values
    _, group = np.unique(tie, return_inverse=True)
    largest = np.zeros(int(group.max()) + 1, np.float32)
    np.maximum.at(largest, group, values)
    shared: npt.NDArray[np.float32] = largest[group]
    return shared
