"""Activation-aware scales for input channels (AWQ, Lin et al. 2023, section 3.2).

    s* = argmin_s sum_i tr((W_i - Q(W_i s) / s) H (W_i - Q(W_i s) / s)^T),      H = mean of x x^T

A channel that carries much of the activation is scaled up before the weight is rounded, and the activation is divided
by the same factor: the function stays, the rounding error moves to where it matters less. Nothing is kept in float.
The candidates are s = a^alpha / m^beta, a the mean |x| of a channel and m its mean |w| relative to its group (equation 5, with the
weight's term of the authors' code).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from array_api_compat import array_namespace

from qcompiler.algorithms.arrays import BLOCK, Device, fetch, place, row_blocks
from qcompiler.algorithms.error import output_energy
from qcompiler.errors import CalibrationError
from qcompiler.quant.affine import Array, dequantize_codes, quantize_codes, range_to_scale, to_groups
from qcompiler.quant.scheme import QuantScheme
from qcompiler.quant.statistics import InputStatistics

FLOOR = 1e-4  # the least a channel counts, relative to the largest: dead channels must not get a scale of zero


@dataclass(frozen=True, slots=True)
class AwqOptions:
    """How the scale is searched.

    Attributes:
        steps: how finely exponents alpha in 0..1 are told apart; every fourth is tried, then the neighbours of the best.
        weight_exponents: exponents beta of the weight's term tried with each.
        rows: rows of each weight that the search looks at, evenly spaced; the error of a row does not depend on the others.
        device: where the maths runs.
    """

    steps: int = 20
    weight_exponents: tuple[float, ...] = (0.0, 0.5)
    rows: int = 256
    device: Device = "cpu"


@dataclass(frozen=True, slots=True, eq=False)
class ScaleChoice:
    """A scale for the K input channels, and what it buys.

    Attributes:
        scale: float32 [K], positive; multiply the weights' columns by it, divide the activation by it.
        loss, plain_loss: squared output error per row of activation with this scale and with none; loss <= plain_loss.
    """

    scale: npt.NDArray[np.float32]
    loss: float
    plain_loss: float


def search_scale(
    weights: Sequence[npt.NDArray[Any]],
    statistics: InputStatistics,
    schemes: Sequence[QuantScheme],
    options: AwqOptions | None = None,
    tie: npt.NDArray[np.integer[Any]] | None = None,
) -> ScaleChoice:
    """One scale for all the weights that read the same input (query, key and value together).

    Args:
        weights: each [N_i, K], any floating point type.
        statistics: with the Hessian.
        schemes: how each weight will be stored.
        tie: whole numbers [K]; channels with the same number get the same scale.
    Raises:
        CalibrationError: no Hessian, or one that is not finite.
    """
    options = options or AwqOptions()
    if statistics.hessian is None:
        raise CalibrationError("awq needs the Hessian of the layer's input; calibrate with it")
    if not np.isfinite(statistics.hessian).all():
        raise CalibrationError("awq: the Hessian holds NaN or infinity; check the calibration data")
    hessian = place(statistics.hessian, options.device)
    samples = [place(_sample(weight, options.rows), options.device) for weight in weights]
    shares = [weight.shape[0] / int(sample.shape[0]) for weight, sample in zip(weights, samples, strict=True)]
    activation = statistics.mean_abs if statistics.mean_abs is not None else np.sqrt(np.diagonal(statistics.hessian))

    def loss_of(scale: npt.NDArray[np.float32]) -> float:
        factor = place(scale, options.device)
        return sum(
            share * _output_error(sample, factor, hessian, scheme)
            for sample, scheme, share in zip(samples, schemes, shares, strict=True)
        )

    k = int(statistics.hessian.shape[0])
    carried = _tied(_relative(activation), tie)
    weighing = _tied(_relative(_weight_magnitude(samples, schemes)), tie)
    tried: dict[tuple[float, int], float] = {}

    def scale_of(beta: float, step: int) -> npt.NDArray[np.float32]:
        return _centered(carried ** (step / options.steps) / weighing**beta)

    def attempt(beta: float, step: int) -> None:
        if 0 <= step <= options.steps and (beta, step) not in tried:
            tried[beta, step] = loss_of(scale_of(beta, step))

    coarse = range(0, options.steps + 1, 4)
    for beta in options.weight_exponents:
        for step in coarse:
            attempt(beta, step)
    for distance in (2, 1):
        beta, step = min(tried, key=tried.__getitem__)
        attempt(beta, step - distance)
        attempt(beta, step + distance)
    plain = loss_of(np.ones(k, np.float32))
    best = min(tried, key=tried.__getitem__)
    if tried[best] >= plain:
        return ScaleChoice(np.ones(k, np.float32), plain, plain)
    return ScaleChoice(scale_of(*best), tried[best], plain)


def _sample(weight: npt.NDArray[Any], rows: int) -> npt.NDArray[Any]:
    """At most ``rows`` rows, evenly spaced."""
    n = weight.shape[0]
    if n <= rows:
        return weight
    return weight[np.linspace(0, n - 1, rows).astype(np.int64)]


def _relative(values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Positive values relative to the largest, with a floor."""
    largest = float(values.max())
    if largest <= 0:
        return np.ones(values.shape, np.float32)
    return np.maximum(values / largest, FLOOR).astype(np.float32)


def _tied(values: npt.NDArray[np.float32], tie: npt.NDArray[np.integer[Any]] | None) -> npt.NDArray[np.float32]:
    """The root mean square over the channels that share a scale."""
    if tie is None:
        return values
    _, place_of = np.unique(tie, return_inverse=True)
    sums = np.bincount(place_of, weights=np.square(values, dtype=np.float64))
    return np.sqrt(sums / np.bincount(place_of))[place_of].astype(np.float32)


def _centered(scale: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The scale with its extremes at equal distance from 1, so that neither side grows."""
    centered = scale / np.sqrt(scale.max() * scale.min())
    return np.clip(centered, 1e-3, 1e3).astype(np.float32)


def _weight_magnitude(samples: Sequence[Array], schemes: Sequence[QuantScheme]) -> npt.NDArray[np.float32]:
    """Mean of |w| / max |w| of its group for each input channel, [K]."""
    total, rows = np.zeros(int(samples[0].shape[1]), np.float64), 0
    for sample, scheme in zip(samples, schemes, strict=True):
        xp = array_namespace(sample)
        groups = xp.abs(to_groups(sample, scheme))
        largest = xp.max(groups, axis=-1)[..., None]
        relative = groups / xp.where(largest > 0, largest, xp.ones_like(largest))
        flat = xp.reshape(xp.sum(relative, axis=0), (-1,))[: total.size]
        total += fetch(flat)
        rows += int(sample.shape[0])
    return (total / rows).astype(np.float32)


def _output_error(sample: Array, factor: Array, hessian: Array, scheme: QuantScheme) -> float:
    """tr(E H E^T) for E = Q(W s) / s - W with full ranges, over the sampled rows."""
    xp = array_namespace(sample)
    total = 0.0
    for rows in row_blocks(sample, BLOCK):
        scaled = sample[rows] * factor
        groups = to_groups(scaled, scheme)
        s, z = range_to_scale(xp.min(groups, axis=-1), xp.max(groups, axis=-1), scheme)
        rounded = dequantize_codes(quantize_codes(scaled, s, z, scheme), s, z, scheme)
        rounded -= scaled
        rounded /= factor
        total += output_energy(rounded, hessian)
    return total


