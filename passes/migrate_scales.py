"""Scale the input channels of linears before they are rounded, and take the factor out of the activation upstream.

*Given* linears that read one activation X, and a transform (AWQ) that finds a scale s for its channels.
*Result* the same function: columns times s, and 1/s in what feeds X (a norm's weight, an earlier linear's outputs) or, where nothing can
take it and the gain is worth a node, in an explicit Mul. Pending factors are held by the weights and read with their values.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.algorithms import call
from qcompiler.algorithms.arrays import row_blocks
from qcompiler.algorithms.hessian import DAMPING, factor
from qcompiler.calibration.collector import Statistics
from qcompiler.calibration.windows import Tap
from qcompiler.graph.absorb import Absorber, find_absorber, scale_vectors
from qcompiler.graph.edits import Names, add_initializer, set_info
from qcompiler.graph.weight_store import WeightStore
from qcompiler.graph.weights import Weight
from qcompiler.passes.shift_inputs import AppliedShift, norm_that_can_shift, why_not_shifted
from qcompiler.quant.statistics import GroupedStatistics, InputStatistics
from qcompiler.recipe.planned_weight import PlannedWeight

WORTH_A_MUL = 0.9  # an explicit Mul must bring the output error under this share


@dataclass(frozen=True)
class AppliedScale:
    """What taking a factor out of an activation changed beside weights, in words that another run of the same compile understands.

    Attributes:
        factors: float32 [C], what was multiplied by.
        vectors: nodes, by their first output, with the inputs of theirs whose vectors [C] were multiplied; empty for a Mul.
        readers: nodes that read a Mul of their own since; its dtype is ``dtype``.
    """

    factors: npt.NDArray[np.float32]
    vectors: tuple[tuple[str, tuple[int, ...]], ...] = ()
    readers: tuple[str, ...] = ()
    dtype: str = ""

    def record(self, store: WeightStore) -> dict[str, Any]:
        """Plain values for JSON, with the factors in ``store``."""
        factors = store.add(self.factors, ir.DataType.FLOAT, self.factors.shape, "factors")
        return {
            "factors": [factors.offset, len(self.factors)],
            "vectors": self.vectors,
            "readers": self.readers,
            "dtype": self.dtype,
        }

    @classmethod
    def restore(cls, record: dict[str, Any], store: WeightStore) -> "AppliedScale":
        """What ``record`` described; the factors are read from the spill file."""
        offset, length = record["factors"]
        factors = store.at(offset, ir.DataType.FLOAT, (length,), "factors").numpy()
        vectors = tuple((output, tuple(indices)) for output, indices in record["vectors"])
        return cls(factors, vectors, tuple(record["readers"]), record["dtype"])

    def apply_again(self, model: ir.Model, by_output: dict[str, ir.Node], names: Names) -> None:
        """The same edits as the first time; ``by_output`` gets the nodes that they add."""
        for output, indices in self.vectors:
            scale_vectors(by_output[output], indices, self.factors, names)
        if self.readers:
            readers = [by_output[output] for output in self.readers]
            node = _insert_mul(model, readers, self.factors, ir.DataType[self.dtype], names)
            by_output[_output(node)] = node


class ScaleMigration:
    """Finds and applies scales, one input at a time, inside one segment; ``applied`` lists what it did to the graph.

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
        self.applied: list[AppliedScale | AppliedShift] = []

    def apply(
        self, tap: Tap, readers: Mapping[ir.Node, PlannedWeight], statistics: Statistics | None
    ) -> Statistics | None:
        """Scale the linears that read at ``tap``; returns the statistics of the activation they then read."""
        if tap.window is not None or isinstance(statistics, GroupedStatistics):
            return statistics  # a convolution's, of which the recipe's transforms are not
        value = tap.value
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
        activations = next(iter(scaled.values())).settings.activations
        if any(planned.settings.activations != activations for planned in scaled.values()):
            for planned in scaled.values():
                planned.notes.append("not scaled: the same input is rounded otherwise for other weights")
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
                *((activations,) if step.algorithm.activations else ()),
            )
            gain = choice.loss / choice.plain_loss if choice.plain_loss > 0 else 1.0
            norm = norm_that_can_shift(value, set(targets)) if absorber is not None else None
            refused = None if choice.shift is None else why_not_shifted(targets, self._nodes)
            if refused is not None:
                for planned in targets.values():
                    planned.notes.append(f"{step.name}: not shifted: {refused}")
                continue
            own_node = absorber is None or (choice.shift is not None and norm is None)
            if gain >= 1.0 or (own_node and gain > WORTH_A_MUL):
                continue
            taken = []
            if (choice.scale != 1).any():
                value, where = self._take_out(value, targets, choice.scale, absorber)
                taken.append(f"scale taken by {where}")
                for planned in targets.values():
                    planned.weight.scale_columns(choice.scale)
                statistics = statistics.scaled(choice.scale)
            if choice.shift is not None:
                shift = choice.shift / choice.scale
                value = self._shift(value, targets, shift, norm)
                statistics = statistics.shifted(shift)
                taken.append(f"shift taken by {'a norm' if norm is not None else 'an Add of its own'}")
            for planned in targets.values():
                planned.notes.append(
                    f"{step.name}: output error times {gain:.2f} before rounding is refined; {', '.join(taken)}"
                )
        return statistics

    def _shift(
        self,
        value: ir.Value,
        readers: Mapping[ir.Node, PlannedWeight],
        shift: npt.NDArray[np.float32],
        norm: ir.Node | None,
    ) -> ir.Value:
        """Take ``shift`` out of X; returns what the linears now read."""
        biases = {
            _output(node): _product_with(planned.weight.array(), shift) for node, planned in readers.items()
        }
        dtype = value.dtype or next(iter(readers.values())).weight.dtype
        applied = AppliedShift(shift, _output(norm) if norm is not None else "", biases, dtype.name)
        for node in applied.apply(self._model, list(readers), norm, self._names):
            source = node.inputs[0]
            made_by = None if source is None else source.producer()
            behind = made_by is not None and made_by in readers
            place = (
                self._nodes.index(made_by) + 1
                if behind and made_by is not None
                else self._nodes.index(next(iter(readers)))
            )
            self._nodes.insert(place, node)
        self.applied.append(applied)
        shifted = next(iter(readers)).inputs[0]
        assert shifted is not None
        return shifted

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
            vectors = tuple((_output(node), indices) for node, indices in absorber.scale.vectors)
            if vectors:  # scales of weights alone go with the weights
                self.applied.append(AppliedScale(factors, vectors))
            return value, absorber.what
        dtype = value.dtype or next(iter(readers.values())).weight.dtype
        node = _insert_mul(self._model, list(readers), inverse, dtype, self._names)
        self._nodes.insert(self._nodes.index(next(iter(readers))), node)  # later probes run through it
        self.applied.append(AppliedScale(inverse, (), tuple(map(_output, readers)), dtype.name))
        return node.outputs[0], "a Mul of its own"


def _insert_mul(
    model: ir.Model,
    readers: Sequence[ir.Node],
    factors: npt.NDArray[np.float32],
    dtype: ir.DataType,
    names: Names,
) -> ir.Node:
    """Multiplies the first input of the readers, which is one value, by ``factors``."""
    first = readers[0]
    value = first.inputs[0]
    assert first.graph is not None and value is not None
    name = names.value(f"{value.name}.inverse_scale")
    scaled = ir.Tensor(factors.astype(dtype.numpy()), dtype=dtype, name=name)
    operand = add_initializer(model.graph, scaled, name)
    output = ir.Value(name=names.value(f"{value.name}.scaled"))
    node = ir.node("Mul", [value, operand], outputs=[output], name=names.node(f"{value.name}.scale"))
    set_info(output, dtype, value.shape)
    first.graph.insert_before(first, node)
    for reader in readers:
        reader.replace_input_with(0, output)
    return node


def _product_with(weight: npt.NDArray[Any], vector: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """float32 [N], of a weight [N, K] that is read in blocks of rows."""
    parts = [weight[rows].astype(np.float64) @ vector for rows in row_blocks(weight)]
    found: npt.NDArray[np.float32] = np.concatenate(parts).astype(np.float32)
    return found


def _output(node: ir.Node) -> str:
    name = node.outputs[0].name
    assert name
    return name


def _weighed(statistics: InputStatistics, targets: Collection[PlannedWeight]) -> InputStatistics:
    """The statistics as the targets' quantizers weigh errors."""
    if statistics.hessian is None or not all(p.settings.quantizer.algorithm.spreads for p in targets):
        return statistics
    options = next(iter(targets)).settings.quantizer.options
    found = factor(statistics, getattr(options, "damping", DAMPING), getattr(options, "device", "cpu"))
    return replace(statistics, remaining=found.remaining)
