"""Scale the input channels of linears before they are rounded, and take the factor out of the activation upstream.

*Given* linears that read one activation X, and a transform (AWQ) that finds a scale s for its channels.
*Result* the same function: columns times s, and 1/s in what feeds X (a norm's weight, an earlier linear's outputs) or, where nothing can
take it and the gain is worth a node, in an explicit Mul. Pending factors are held by the weights and read with their values.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.algorithms import call
from qcompiler.algorithms.hessian import DAMPING, factor
from qcompiler.graph.absorb import Absorber, find_absorber
from qcompiler.graph.edits import Names, add_initializer, set_info
from qcompiler.graph.weights import Weight
from qcompiler.quant.statistics import InputStatistics
from qcompiler.recipe.plan import PlannedWeight

WORTH_A_MUL = 0.9  # an explicit Mul must bring the output error under this share


class ScaleMigration:
    """Finds and applies scales, one input at a time, inside one segment.

    Args:
        nodes, inputs, sample: the segment, and one sample of its inputs.
        members: the segment's weights that are still to be quantized, by the node that multiplies with them.
    """

    def __init__(
        self,
        model: ir.Model,
        nodes: Sequence[ir.Node],
        inputs: Sequence[ir.Value],
        sample: Mapping[ir.Value, npt.NDArray[Any]],
        members: Mapping[ir.Node, PlannedWeight],
        names: Names,
    ) -> None:
        self._model = model
        self._nodes = list(nodes)
        self._inputs = inputs
        self._sample = sample
        self._members = members
        self._names = names

    def apply(
        self, value: ir.Value, readers: Mapping[ir.Node, PlannedWeight], statistics: InputStatistics | None
    ) -> InputStatistics | None:
        """Scale the linears that read ``value``; returns the statistics of the activation they then read."""
        scaled = {node: planned for node, planned in readers.items() if planned.settings.transforms}
        if not scaled or statistics is None:
            return statistics
        if any(len(planned.weight.uses) > 1 for planned in scaled.values()):
            for planned in scaled.values():
                planned.notes.append("not scaled: the weight is used more than once, and its inputs differ")
            return statistics
        transforms = next(iter(scaled.values())).settings.transforms
        if any(planned.settings.transforms != transforms for planned in scaled.values()):
            for planned in scaled.values():
                planned.notes.append("not scaled: weights with other transforms read the same input")
            return statistics
        # Readers without a transform still get the inverse factor, so their function stays too, if X itself is divided upstream.
        movable = all(len(planned.weight.uses) == 1 for planned in readers.values())
        absorber = (
            find_absorber(
                self._model,
                self._nodes,
                value,
                set(readers),
                self._inputs,
                self._sample,
                self._weight_of,
                self._names,
            )
            if movable
            else None
        )
        targets = readers if absorber is not None else scaled
        for step in transforms:
            choice = call(
                step.algorithm,
                ", ".join(planned.weight.name for planned in targets.values()),
                [planned.weight.array() for planned in targets.values()],
                _weighed(statistics, targets.values()),
                [planned.scheme for planned in targets.values()],
                step.options,
                None if absorber is None else absorber.follows,
            )
            gain = choice.loss / choice.plain_loss if choice.plain_loss > 0 else 1.0
            if gain >= 1.0 or (absorber is None and gain > WORTH_A_MUL):
                continue
            value, where = self._take_out(value, targets, choice.scale, absorber)
            for planned in targets.values():
                planned.weight.scale_columns(choice.scale)
                planned.notes.append(
                    f"{step.name}: output error times {gain:.2f} before rounding is refined; scale taken by {where}"
                )
            statistics = statistics.scaled(choice.scale)
        return statistics

    def _weight_of(self, node: ir.Node) -> Weight | None:
        planned = self._members.get(node)
        return planned.weight if planned is not None and len(planned.weight.uses) == 1 else None

    def _take_out(
        self,
        value: ir.Value,
        readers: Mapping[ir.Node, PlannedWeight],
        scale: npt.NDArray[np.float32],
        absorber: Absorber | None,
    ) -> tuple[ir.Value, str]:
        """Divide X; returns what the linears now read, and what took the factor."""
        inverse = (1.0 / scale).astype(np.float32)
        if absorber is not None:
            factors = np.ones(absorber.channels, np.float32)
            factors[absorber.follows] = inverse
            absorber.apply(factors)
            return value, absorber.what
        return self._insert_mul(value, readers, inverse), "a Mul of its own"

    def _insert_mul(
        self, value: ir.Value, readers: Mapping[ir.Node, PlannedWeight], inverse: npt.NDArray[np.float32]
    ) -> ir.Value:
        dtype = value.dtype or next(iter(readers.values())).weight.dtype
        first = next(iter(readers))
        assert first.graph is not None
        name = self._names.value(f"{value.name}.inverse_scale")
        factor = add_initializer(
            self._model.graph, ir.Tensor(inverse.astype(dtype.numpy()), dtype=dtype, name=name), name
        )
        output = ir.Value(name=self._names.value(f"{value.name}.scaled"))
        node = ir.node("Mul", [value, factor], outputs=[output], name=self._names.node(f"{value.name}.scale"))
        set_info(output, dtype, value.shape)
        first.graph.insert_before(first, node)
        self._nodes.insert(self._nodes.index(first), node)  # later probes run through it
        for reader in readers:
            reader.replace_input_with(0, output)
        return output


def _weighed(statistics: InputStatistics, targets: Iterable[PlannedWeight]) -> InputStatistics:
    """The statistics as the targets' quantizers weigh errors."""
    if statistics.hessian is None or not all(p.settings.quantizer.algorithm.spreads for p in targets):
        return statistics
    return replace(statistics, remaining=factor(statistics, DAMPING, "cpu").remaining)
