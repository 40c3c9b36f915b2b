"""The outputs of a model at which the loss of a rounded weight is measured, and what is measured of each.

*Given* a prepared model. *Result* its float outputs that follow from heads; where it has no heads, those that follow from any product with
a weight. Their losses add up.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.errors import CalibrationError, RecipeError
from qcompiler.graph.census import take_census
from qcompiler.graph.reads import moved_by
from qcompiler.graph.weights import Role
from qcompiler.quant import metrics

KL, RELATIVE_ERROR = "kl", "relative error"
BOTH = f"{KL} + {RELATIVE_ERROR}"
_MOVES_CLASSES = frozenset({"Transpose", "Gather"})


@dataclass(frozen=True)
class End:
    """An output.

    Attributes:
        classes: N of the head that it comes from; 0: it comes from none.
        in_place: nothing between the head and the output moves the classes away from the last axis.
    """

    output: ir.Value
    classes: int = 0
    in_place: bool = True

    def measure(self, shape: Sequence[int]) -> str:
        """What is measured of an output of this shape: KL if its last axis holds classes."""
        # Of one class alone the softmax is 1, whatever the logit. Fewer than the head made: cut off (padding), or several heads in one.
        wide = shape[-1] if shape else 1
        fits = wide <= self.classes if self.in_place else wide == self.classes
        return KL if wide > 1 and fits else RELATIVE_ERROR


def find_ends(model: ir.Model, asked_by: str = "mixed") -> list[End]:
    """All of them, in the order of the graph's outputs; ``asked_by`` is what an error begins with.

    Raises:
        CalibrationError: there is none.
    """
    nodes = list(model.graph)
    weights = take_census(model).weights
    heads = [(use.node, weight) for weight in weights for use in weight.uses if use.role is Role.HEAD]
    found: dict[ir.Value, End] = {}
    for node, weight in heads:
        reached = moved_by(nodes, node.outputs)
        moving = (
            other
            for other in nodes
            if other.op_type in _MOVES_CLASSES and any(value in reached for value in other.inputs)
        )
        end = (weight.shape[0], not any(moving))
        found |= {value: End(value, *end) for value in reached if value.is_graph_output()}
    if not heads:
        products = [use.top_level for weight in weights for use in weight.uses]
        reached = moved_by(nodes, [value for node in products for value in node.outputs])
        found = {value: End(value) for value in reached}
    outputs = dict.fromkeys(model.graph.outputs)
    ends = [found[value] for value in outputs if value in found and _holds_floats(value)]
    if not ends:
        raise CalibrationError(
            f"{asked_by}: the model has no output of floats, made with a weight, to measure on"
        )
    return ends


def loss_of(end: End, wanted: npt.NDArray[Any], output: npt.NDArray[Any]) -> float:
    """Of one output and sample: KL(wanted || output), mean over rows, or the relative squared error."""
    if end.measure(wanted.shape) == KL:
        return metrics.kl_divergence(wanted, output)
    noise = np.square(output.astype(np.float64) - wanted).sum()
    return float(noise / max(np.square(wanted.astype(np.float64)).sum(), 1e-30))


def measure_of(ends: Sequence[End], shapes: Sequence[Sequence[int]]) -> str:
    """What the sum of the ends' losses is, for outputs of these shapes."""
    measures = {end.measure(shape) for end, shape in zip(ends, shapes, strict=True)}
    return BOTH if len(measures) > 1 else measures.pop()


def require_kl(max_kl: float, measure: str) -> None:
    """Raises RecipeError where a bound on the KL divergence is set and something else is measured."""
    if max_kl and measure != KL:
        raise RecipeError(
            f"mixed.max_kl: {max_kl:g} bounds a KL divergence, and of this model's outputs the {measure} is measured; "
            "give a budget (4.5bpw, 90MB) and leave max_kl out"
        )


def _holds_floats(value: ir.Value) -> bool:
    return value.dtype is None or value.dtype.is_floating_point()
