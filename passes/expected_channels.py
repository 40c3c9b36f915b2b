"""The mean that each channel of a value is expected to have, from the statistics of BatchNormalizations before it; no data are run.

What a BatchNormalization makes is taken as normal, N(beta, gamma^2), what two paths make as independent. From there means follow through
Relu and Clip (``clipped_normal``), additions and factors, Concat of channels, pools that average, and what only moves values.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.algorithms.clipped_normal import clipped_normal
from qcompiler.graph.convolution import channel_constant
from qcompiler.graph.norm_statistics import norm_statistics
from qcompiler.graph.weights import constant_values

Float = npt.NDArray[np.float64]
MOVED = frozenset({"Cast", "DequantizeLinear", "Dropout", "Identity", "QuantizeLinear"})
POOLS = frozenset({"AveragePool", "GlobalAveragePool", "ReduceMean"})
FLAT = frozenset({"Flatten", "Reshape", "Squeeze"})


@dataclass(frozen=True)
class Moments:
    """Of the channels (axis 1) of one value.

    Attributes:
        mean: [channels].
        variance: [channels]; None where it is not known (a mean of several).
    """

    mean: Float
    variance: Float | None


class ExpectedChannels:
    """Looks values up; what was found of one is remembered."""

    def __init__(self) -> None:
        self._found: dict[ir.Value, Moments | str] = {}

    def of(self, value: ir.Value) -> Moments | str:
        """The moments of a value, or why they are not known."""
        if value not in self._found:
            self._found[value] = self._look(value)
        return self._found[value]

    def _look(self, value: ir.Value) -> Moments | str:
        known = norm_statistics(value)
        if known is not None:
            return Moments(known.mean, np.square(known.deviation))
        node = value.producer()
        if node is None:
            return f"{value.name} is no result of a BatchNormalization"
        said = f"{node.name or value.name} ({node.op_type})"
        rule = self._rules().get(node.op_type)
        if node.domain != "" or node.outputs[0] is not value or rule is None:
            return f"what {said} makes has no known mean: no BatchNormalization stands behind it"
        found = rule(node)
        return found if found is not None else f"the mean of what {said} makes is not known"

    def _rules(self) -> dict[str, Callable[[ir.Node], Moments | str | None]]:
        return {
            **dict.fromkeys(MOVED, self._moved),
            **dict.fromkeys(POOLS, self._averaged),
            **dict.fromkeys(FLAT, self._flattened),
            "Relu": lambda node: self._clipped(node, 0.0, math.inf),
            "Clip": self._clip,
            "Add": self._added,
            "Mul": self._multiplied,
            "Concat": self._joined,
        }

    def _first(self, node: ir.Node) -> Moments | str:
        value = node.inputs[0]
        assert value is not None
        return self.of(value)

    def _moved(self, node: ir.Node) -> Moments | str | None:
        return self._first(node)

    def _clipped(self, node: ir.Node, low: float, high: float) -> Moments | str | None:
        before = self._first(node)
        if isinstance(before, str):
            return before
        if before.variance is None or not low <= high:
            return None
        return Moments(*clipped_normal(before.mean, np.sqrt(before.variance), low, high))

    def _clip(self, node: ir.Node) -> Moments | str | None:
        ends = []
        for place, without in ((1, -math.inf), (2, math.inf)):
            value = node.inputs[place] if len(node.inputs) > place else None
            end = np.array(without) if value is None else constant_values(value)
            if end is None or end.size != 1:
                return None
            ends.append(float(end.reshape(-1)[0]))
        return self._clipped(node, *ends)

    def _added(self, node: ir.Node) -> Moments | str | None:
        term = _constant(node)
        if term is not None:
            place, numbers = term
            before = self._other(node, place)
            return (
                before if isinstance(before, str) else _fits(before.mean + numbers, before.variance, before)
            )
        first, second = (self.of(value) for value in node.inputs if value is not None)
        if isinstance(first, str) or isinstance(second, str):
            return first if isinstance(first, str) else second
        if first.mean.shape != second.mean.shape:
            return None
        unknown = first.variance is None or second.variance is None
        return Moments(first.mean + second.mean, None if unknown else first.variance + second.variance)  # type: ignore[operator]  # neither is None

    def _multiplied(self, node: ir.Node) -> Moments | str | None:
        factor = _constant(node)
        if factor is None:
            return None
        place, numbers = factor
        before = self._other(node, place)
        if isinstance(before, str):
            return before
        variance = None if before.variance is None else before.variance * np.square(numbers)
        return _fits(before.mean * numbers, variance, before)

    def _other(self, node: ir.Node, place: int) -> Moments | str:
        value = node.inputs[1 - place]
        assert value is not None
        return self.of(value)

    def _joined(self, node: ir.Node) -> Moments | str | None:
        parts = []
        for value in node.inputs:
            assert value is not None
            part = self.of(value)
            if isinstance(part, str):
                return part
            parts.append(part)
        if node.attributes.get_int("axis", 0) != 1:
            return None
        variances = [part.variance for part in parts if part.variance is not None]
        known = len(variances) == len(parts)
        return Moments(
            np.concatenate([part.mean for part in parts]), np.concatenate(variances) if known else None
        )

    def _averaged(self, node: ir.Node) -> Moments | str | None:
        before = self._first(node)
        if isinstance(before, str):
            return before
        return Moments(before.mean, None) if _keeps_means(node) else None

    def _flattened(self, node: ir.Node) -> Moments | str | None:
        """[batch, channels, ..] to [batch, channels * ..]."""
        before = self._first(node)
        if isinstance(before, str):
            return before
        source, made = node.inputs[0], node.outputs[0]
        assert source is not None
        if source.shape is None or made.shape is None or len(source.shape) < 3 or len(made.shape) != 2:
            return None
        channels, *places = source.shape[1:]
        if not all(isinstance(size, int) for size in (channels, *places, made.shape[1])):
            return None
        area = math.prod(size for size in places if isinstance(size, int))
        if channels != len(before.mean) or made.shape[1] != len(before.mean) * area:
            return None
        return Moments(
            before.mean.repeat(area), None if before.variance is None else before.variance.repeat(area)
        )


def _constant(node: ir.Node) -> tuple[int, Float] | None:
    """Where a node has a constant of one number, or one for each channel, and its numbers."""
    for place in (0, 1):
        other = node.inputs[1 - place]
        rank = 4 if other is None or other.shape is None else len(other.shape)
        held = constant_values(node.inputs[place])
        if held is None or rank < 2:
            continue
        channels = held.shape[1 - rank] if held.ndim >= rank - 1 else 1
        found = channel_constant(node.inputs[place], channels, rank)
        return None if found is None else (place, found.astype(np.float64))
    return None


def _fits(mean: Float, variance: Float | None, before: Moments) -> Moments | None:
    """A constant of more channels than the value has would make more of them."""
    return Moments(mean, variance) if mean.shape == before.mean.shape else None


def _keeps_means(node: ir.Node) -> bool:
    """Whether a pool's results have the mean of what it pools: no zeros are averaged in, and channels stay apart."""
    if node.op_type == "GlobalAveragePool":
        return True
    if node.op_type == "ReduceMean":
        axes = constant_values(node.inputs[1]) if len(node.inputs) > 1 else None
        source = node.inputs[0]
        rank = None if source is None or source.shape is None else len(source.shape)
        return (
            axes is not None and rank is not None and all(int(axis) % rank > 1 for axis in axes.reshape(-1))
        )
    told = node.attributes.get_string("auto_pad", "NOTSET")
    padded = told not in ("NOTSET", "VALID") or any(node.attributes.get_ints("pads", []))
    return not padded or not node.attributes.get_int("count_include_pad", 0)
