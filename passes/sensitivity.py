"""What a weight costs at each number of bits that it may get: what the two ways to find that out share.

A weight's loss is that of the model's outputs (``measured_outputs``) when this weight alone is rounded to nearest at the reference bits:
of each that holds classes the mean over tokens of KL(float || rounded), of any other the relative squared error, in sum. Other bits cost
that, times the ratio of the weight's errors at those bits and at the reference.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.algorithms import codebook, float8, kquant, mse, rtn
from qcompiler.algorithms.arrays import row_blocks
from qcompiler.algorithms.error import quantization_error
from qcompiler.graph.census import take_census
from qcompiler.graph.stored_quantized import SCALE_NAMES
from qcompiler.graph.weights import Role, WeightUse
from qcompiler.quant.scheme import QuantScheme, fit_group
from qcompiler.quant.statistics import InputStatistics
from qcompiler.quant.tensor import QuantizedTensor
from qcompiler.recipe.planned_weight import PlannedWeight

Array = npt.NDArray[Any]
ROWS = 256  # of a weight that the ratios of its errors are measured on
LEAST = 1e-12  # over the bits: where nothing is felt, more of them are still taken to be better
ON_GRID = 1e-5
"""Share of a weight's squares below which its rounding error is nothing: it lies on the grid already. 4 bits and fewer leave 1e-3 and
more, numbers of bfloat16 that lie on such a grid 1e-6."""


@dataclass(frozen=True)
class Sensitivity:
    """What one weight costs.

    Attributes:
        measured: the loss with this weight alone rounded, at the reference bits; 0: no output that is measured shows it.
        rounding: at which bits that is.
        losses, bytes: predicted loss and size for each of the bits on offer.
    """

    name: str
    measured: float
    rounding: "Rounding"
    losses: tuple[float, ...]
    bytes: tuple[int, ...]


@dataclass(frozen=True)
class Sensitivities:
    """Of every weight whose bits are to be chosen.

    Attributes:
        measure: "kl" (nats a token), "relative error", or their sum.
        reference: bits at which each is rounded alone, but for those that lie on that grid.
        outputs: names of those that are measured.
    """

    measure: str
    reference: int
    outputs: tuple[str, ...]
    of: dict[PlannedWeight, Sensitivity]


def anchors_of(model: ir.Model) -> list[ir.Node]:
    """The nodes that segments are cut around: every product with a weight."""
    return [use.top_level for weight in take_census(model).weights for use in weight.uses]


def uses_of(planned: PlannedWeight) -> list[WeightUse]:
    """Those in the main graph, where a weight can be put in place of another."""
    return [use for use in planned.weight.uses if use.in_body is None]


def operand_of(planned: PlannedWeight, use: WeightUse, values: Array | None = None) -> Array:
    """What a node reads of a weight: [N, K] to gather rows from, or [K, N] to multiply with.

    Args:
        values: [N, K], in place of the weight's own.
    """
    whole: Array = planned.weight.array() if values is None else values
    return whole if use.role is Role.EMBEDDING else whole.T


def reference_of(bits: Sequence[int]) -> int:
    """The bits at which each weight is rounded alone: 4, or what is nearest to that."""
    return min(bits, key=lambda width: abs(width - 4))


def scheme_at(planned: PlannedWeight, bits: int) -> QuantScheme:
    """The weight's scheme with other bits."""
    settings = replace(planned.settings, bits=bits)
    scheme = settings.scheme(SCALE_NAMES[planned.weight.dtype])
    return fit_group(scheme, planned.weight.shape, settings.group_fallback, planned.weight.name)[0]


def rounded(weight: Array, scheme: QuantScheme) -> QuantizedTensor:
    """A weight [N, K] rounded to nearest over each group's whole range."""
    if scheme.two_level:
        return kquant.quantize(weight, None, scheme, kquant.KquantOptions(steps=1, rounds=0))
    nearest = codebook.beside(rtn.quantize, codebook.round_to_nearest, float8.round_to_nearest)
    found: QuantizedTensor = nearest(weight, None, scheme)
    return found


def searched(weight: Array, statistics: InputStatistics | None, scheme: QuantScheme) -> QuantizedTensor:
    """A weight [N, K] with scales that are searched."""
    if scheme.two_level:
        return kquant.quantize(weight, statistics, scheme)
    return mse.quantize(weight, statistics, scheme)


@dataclass(frozen=True)
class Rounding:
    """At which bits a weight is rounded alone.

    Attributes:
        bits: the reference; where the weight lies on its grid already, the least of the bits on offer.
        exact: it lies on that grid too, so rounding it changes nothing.
    """

    bits: int
    exact: bool


def round_alone(planned: PlannedWeight, bits: Sequence[int]) -> tuple[Rounding, QuantizedTensor]:
    """Round a weight to nearest, at bits that change it if there are such."""
    values = planned.weight.array()
    for width in dict.fromkeys((reference_of(bits), min(bits))):
        quantized = rounded(values, scheme_at(planned, width))
        exact = quantization_error(values, quantized, None).weight <= ON_GRID
        if not exact:
            break
    return Rounding(width, exact), quantized


def row_errors(values: Array, quantized: QuantizedTensor, scores: Array | None = None) -> Array:
    """float64 [N]: of each row of a weight [N, K] the sum of its squared errors, each times its score [N, K]."""
    errors = np.empty(len(values))
    for rows in row_blocks(values):
        squares = np.square(quantized.dequantize(rows) - values[rows])
        errors[rows] = (squares if scores is None else squares * scores[rows]).sum(axis=1, dtype=np.float64)
    return errors


def even_rows(scheme: QuantScheme, n: int) -> Array:
    """Indices of some ROWS of N rows, evenly spread; rows that share groups stay together."""
    block = _rows_in_a_group(scheme)
    blocks = -(-n // block)
    return _rows_of(np.linspace(0, blocks - 1, min(max(ROWS // block, 1), blocks)).astype(int), block, n)


def largest_rows(scheme: QuantScheme, of_rows: Array) -> Array:
    """Indices of the ROWS rows where ``of_rows`` [N] is largest, in order; rows that share groups stay together."""
    block = _rows_in_a_group(scheme)
    sums = np.add.reduceat(of_rows, np.arange(0, len(of_rows), block))
    return _rows_of(np.sort(np.argsort(sums)[-max(ROWS // block, 1) :]), block, len(of_rows))


def _rows_in_a_group(scheme: QuantScheme) -> int:
    return scheme.group_size if scheme.groups_rows and scheme.group_size is not None else 1


def _rows_of(blocks: Array, block: int, n: int) -> Array:
    rows = (blocks[:, None] * block + np.arange(block)).reshape(-1)
    return rows[rows < n]


def sensitivity(
    planned: PlannedWeight,
    rounding: Rounding,
    measured: float,
    bits: Sequence[int],
    ratios: Sequence[float],
) -> Sensitivity:
    """What a weight costs.

    Args:
        measured: the loss with the weight rounded alone.
        ratios: of the error at each of ``bits`` to that of rounding alone.
    """
    felt = 0.0 if rounding.exact else float(measured)  # of an exact one only what sums in another order make
    losses = [max(felt * float(ratio), LEAST / width) for width, ratio in zip(bits, ratios, strict=True)]
    sizes = [planned.bytes_of(scheme_at(planned, width)) for width in bits]
    return Sensitivity(planned.weight.name, felt, rounding, tuple(losses), tuple(sizes))
