"""A part of low rank, in floats, that makes up for what rounding does to the layer's output.

    minimise over A [N, r], B [r, K]   tr((E - A B) H (E - A B)^T),      E = W - Q,  H = mean of x x^T, damped

Its solution projects E onto the leading left singular vectors U of E H^(1/2):  A = U,  B = U^T E  (Eckart and Young 1936 for E H^(1/2),
whose H^(-1/2) cancels). U are the leading eigenvectors of E H E^T, found by subspace iteration from a random start (Halko,
Martinsson and Tropp 2011, algorithm 4.4). Without statistics H is the identity: LoRC of ZeroQuant-V2 (Yao et al. 2023, section 5).

With ``rounds`` the two parts are found in turn, from W's own leading part on: the quantizer rounds W - A B, then A B is fitted to what it
left (LoftQ, Li et al. 2023, algorithm 1; SVDQuant, Li et al. 2024, takes a first such part). What costs the output least is kept.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from array_api_compat import array_namespace

from qcompiler.algorithms.arrays import Device, fetch, place
from qcompiler.algorithms.error import output_energy, output_metric
from qcompiler.algorithms.hessian import DAMPING
from qcompiler.algorithms.limits import check_at_least
from qcompiler.errors import SchemeError
from qcompiler.quant.affine import Array, store_values
from qcompiler.quant.low_rank import LowRank, low_rank_bytes
from qcompiler.quant.scheme import QuantScheme, ScaleDtype
from qcompiler.quant.statistics import InputStatistics
from qcompiler.quant.tensor import CorrectedTensor, QuantizedTensor

OVERSAMPLING = 16  # directions beyond the rank that the iteration carries along
ITERATIONS = 3
SHORTEST = 2.0**-6
"""Of a column of A: a shorter one of 65,536 rows would have numbers below 2^-14, which float16 holds coarsely or as 0."""

Float = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class LorcOptions:
    """How the part is found.

    Attributes:
        rank: r; at most min(N, K) is used.
        rounds: how often the quantizer is run again on what the part leaves; 0 keeps its codes.
        damping: share of the Hessian's mean diagonal that is added to its diagonal.
        device: where the maths runs.
    Raises:
        SchemeError: a value that makes no sense.
    """

    rank: int = 16
    rounds: int = 1
    damping: float = DAMPING
    device: Device = "cpu"

    def __post_init__(self) -> None:
        check_at_least(self, rank=1, rounds=0)
        if not 0 <= self.damping <= 100:
            raise SchemeError(f"damping: {self.damping}; must be 0 to 100, {DAMPING} is usual")


def stored_bytes(options: LorcOptions, scheme: QuantScheme, n: int, k: int) -> int:
    """Bytes of A and B beside an [N, K] weight; their type is that of the scales."""
    return low_rank_bytes(min(options.rank, n, k), n, k, scheme.scale_dtype)


def remark(options: LorcOptions, n: int, k: int) -> str | None:
    """What is to be said of the rank for an [N, K] weight."""
    if options.rank <= min(n, k):
        return None
    return f"lorc: rank {options.rank} is more than the {min(n, k)} that a weight of {n} x {k} can have; {min(n, k)} is used"


def correct(
    weight: npt.NDArray[Any],
    quantized: QuantizedTensor,
    statistics: InputStatistics | None,
    options: LorcOptions,
    requantize: Callable[[Float], QuantizedTensor],
) -> CorrectedTensor:
    """The quantized weight with a part of low rank beside it, in place of one that it had.

    Args:
        weight: [N, K] of any floating point type.
        quantized: what the quantizer made of it.
        statistics: with the Hessian, else the mean squares of the channels; None weighs all errors alike.
        options: rank and rounds.
        requantize: the quantizer, for another weight of that shape.
    """
    metric = _damped(output_metric(statistics, options.device), options.damping)
    target = place(np.asarray(weight), options.device)
    best, least = _fitted(target, quantized, metric, options)
    part = _fit(target, metric, options.rank, quantized.scheme.scale_dtype, options.device)
    for _ in range(options.rounds):
        rest = fetch(target) - part.dense(slice(None))
        found, error = _fitted(target, requantize(rest), metric, options)
        if error < least:
            best, least = found, error
        assert found.low_rank is not None
        part = found.low_rank
    return best


def _fitted(
    target: Array, quantized: QuantizedTensor, metric: Array | None, options: LorcOptions
) -> tuple[CorrectedTensor, float]:
    """The weight with the best part beside it, and what error of the output remains."""
    if isinstance(quantized, CorrectedTensor) and quantized.low_rank is not None:
        quantized = quantized.without_low_rank()
    error = target - place(quantized.dequantize(), options.device)
    part = _fit(error, metric, options.rank, quantized.scheme.scale_dtype, options.device)
    error -= place(part.left, options.device) @ place(part.right, options.device)
    if isinstance(quantized, CorrectedTensor):
        return replace(quantized, low_rank=part), output_energy(error, metric)
    return CorrectedTensor(quantized, part), output_energy(error, metric)


def _fit(error: Array, metric: Array | None, rank: int, dtype: ScaleDtype, device: Device) -> LowRank:
    """The A B of least tr((E - A B) H (E - A B)^T), in stored numbers.

    What rounding does to A is made up for by B = A^+ E; both get an equal share of the product's size, so that float16 holds them well.
    A^+ is that of columns of length 1: they are nearly orthogonal however much the sizes differ, and where there is no error at all.
    """
    xp = array_namespace(error)
    directions = leading_directions(error, metric, min(rank, *error.shape), device)
    sizes = xp.linalg.vector_norm(directions.T @ error, axis=1)
    lengths = xp.sqrt(xp.clip(sizes, SHORTEST**2, None))
    left = store_values(directions * lengths, dtype)
    unit = left / lengths
    right = store_values(xp.linalg.solve(unit.T @ unit, unit.T @ error) / lengths[:, None], dtype)
    return LowRank(np.ascontiguousarray(fetch(left)), np.ascontiguousarray(fetch(right)), dtype)


def leading_directions(error: Array, metric: Array | None, rank: int, device: Device = "cpu") -> Array:
    """The ``rank`` leading eigenvectors of E H E^T, orthonormal columns [N, rank]; the start is seeded.

    Args:
        error: E, float32 [N, K].
        metric: H [K, K], its diagonal [K], or None for the identity.
    """
    xp = array_namespace(error)
    n = int(error.shape[0])
    width = min(rank + OVERSAMPLING, n)
    basis = place(np.random.default_rng(0).standard_normal((n, width)), device)
    for _ in range(ITERATIONS):
        basis, _ = xp.linalg.qr(error @ _weighed(metric, error.T @ basis))
    seen = error.T @ basis
    # In float64: directions without error are 1e-45 beside 1, subnormal numbers of which LAPACK's float32 makes NaN.
    _, vectors = xp.linalg.eigh(xp.astype(seen.T @ _weighed(metric, seen), xp.float64))  # rising
    return basis @ xp.astype(xp.flip(vectors, axis=1)[:, :rank], xp.float32)


def _weighed(metric: Array | None, columns: Array) -> Array:
    """H times columns [K, c]."""
    if metric is None:
        return columns
    return metric[:, None] * columns if metric.ndim == 1 else metric @ columns


def _damped(metric: Array | None, damping: float) -> Array | None:
    if metric is None:
        return None
    xp = array_namespace(metric)
    diagonal = metric if metric.ndim == 1 else xp.linalg.diagonal(metric)
    if not bool(xp.any(diagonal > 0)):
        return None  # nothing drove the layer
    added = damping * float(xp.mean(diagonal))
    if metric.ndim == 1:
        return metric + added
    damped = xp.asarray(metric, copy=True)
    every = range(int(metric.shape[0]))
    damped[every, every] += added
    return damped
