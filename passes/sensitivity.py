"""What a weight costs at each number of bits that it may get: what the two ways to find that out share.

A weight's loss is that of the model's output when this weight alone is rounded to nearest at the reference bits: the mean over tokens of
KL(float || rounded) where the output comes from a head, else the relative squared error of the first output. Other bits cost that, times
the ratio of the weight's errors at those bits and at the reference.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from qcompiler.algorithms import kquant, mse, rtn
from qcompiler.errors import CalibrationError
from qcompiler.graph.census import take_census
from qcompiler.graph.stored_quantized import SCALE_NAMES
from qcompiler.graph.weights import Role, WeightUse
from qcompiler.quant.scheme import QuantScheme, fit_group
from qcompiler.quant.statistics import InputStatistics
from qcompiler.quant.tensor import QuantizedTensor
from qcompiler.recipe.plan import PlannedWeight

Array = npt.NDArray[Any]
KL, RELATIVE_ERROR = "kl", "relative error"
ROWS = 256  # of a weight that the ratios of its errors are measured on
LEAST = 1e-12  # over the bits: where nothing is felt, more of them are still taken to be better


@dataclass(frozen=True)
class Sensitivity:
    """What one weight costs.

    Attributes:
        measured: the loss with this weight alone rounded, at the reference bits.
        losses, bytes: predicted loss and size for each of the bits on offer.
    """

    name: str
    measured: float
    losses: tuple[float, ...]
    bytes: tuple[int, ...]


@dataclass(frozen=True)
class Sensitivities:
    """Of every weight whose bits are to be chosen.

    Attributes:
        measure: "kl" (nats a token) or "relative error".
        reference: bits at which each is rounded alone.
    """

    measure: str
    reference: int
    of: dict[PlannedWeight, Sensitivity]


@dataclass(frozen=True)
class End:
    """Where the loss is measured.

    Attributes:
        from_head: whether it comes from a head: logits, if there is more than one class.
    """

    output: ir.Value
    from_head: bool

    def measure(self, shape: Sequence[int]) -> str:
        """What is measured of an output of this shape."""
        # Of one class alone the softmax is 1, whatever the logit.
        return KL if self.from_head and shape[-1] > 1 else RELATIVE_ERROR


def find_end(model: ir.Model) -> End:
    """The logits, or the first output of floats.

    Raises:
        CalibrationError: there is none.
    """
    heads = [use for weight in take_census(model).weights for use in weight.uses if use.role is Role.HEAD]
    reached = {heads[0].node.outputs[0]} if heads else set[ir.Value]()
    for node in model.graph:
        if any(value in reached for value in node.inputs if value is not None):
            reached.update(node.outputs)
    outputs = [v for v in model.graph.outputs if not heads or v in reached]
    floats = [v for v in outputs if v.dtype is None or v.dtype.is_floating_point()]
    if not floats:
        raise CalibrationError("mixed: the model has no output of floats to measure on")
    return End(floats[0], bool(heads))


def anchors_of(model: ir.Model) -> list[ir.Node]:
    """The nodes that segments are cut around: every product with a weight."""
    return [use.top_level for weight in take_census(model).weights for use in weight.uses]


def uses_of(planned: PlannedWeight) -> list[WeightUse]:
    """Those in the main graph, where a weight can be put in place of another."""
    return [use for use in planned.weight.uses if use.in_body is None]


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
    return rtn.quantize(weight, None, scheme)


def searched(weight: Array, statistics: InputStatistics | None, scheme: QuantScheme) -> QuantizedTensor:
    """A weight [N, K] with scales that are searched."""
    if scheme.two_level:
        return kquant.quantize(weight, statistics, scheme)
    return mse.quantize(weight, statistics, scheme)


def sensitivity(
    planned: PlannedWeight, measured: float, bits: Sequence[int], ratios: Sequence[float]
) -> Sensitivity:
    """What a weight costs.

    Args:
        ratios: of the error at each of ``bits`` to that at the reference.
    """
    losses = [max(measured * ratio, LEAST / width) for width, ratio in zip(bits, ratios, strict=True)]
    sizes = [planned.bytes_of(scheme_at(planned, width)) for width in bits]
    return Sensitivity(planned.weight.name, measured, tuple(losses), tuple(sizes))
