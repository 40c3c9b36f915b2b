"""How much the model feels each product rounded alone, its weight and its activations: which to leave float first.

One product at a time, the float model runs from the product's segment to its end with this weight rounded to nearest in its
planned scheme, and its activations to as many steps as planned over the range that they have there. What the plan does beyond
that (searched scales, smoothing, GPTQ) is left out, as are the activations of 8-bit floats and of products in the bodies of
branches and loops. The loss is that of the outputs: of each that holds classes KL(float || rounded), mean over rows; of any
other the relative squared error; in sum.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.calibration.collector import Collector
from qcompiler.calibration.segments import Segment
from qcompiler.graph.edits import Names, input_type, set_info
from qcompiler.graph.extract import Piece
from qcompiler.graph.weights import Role, WeightUse
from qcompiler.passes.measured_outputs import End, find_ends, loss_of
from qcompiler.passes.sensitivity import anchors_of, operand_of, rounded
from qcompiler.quant.activation_codes import bits_of
from qcompiler.recipe.plan import Plan
from qcompiler.recipe.planned_weight import PlannedWeight
from qcompiler.recipe.tensors import ActivationSettings

Array = npt.NDArray[Any]
Feeds = Sequence[Mapping[str, Array]]
Progress = Callable[[str, int, int], None]
ROWS, SAMPLES = 64, 8
"""Feeds are taken until so many rows of the first output were seen, or so many feeds: each product runs all of them."""


def rank_products(
    model: ir.Model,
    plan: Plan,
    settings: ActivationSettings,
    feeds: Feeds,
    folder: Path,
    border_limit: int,
    progress: Progress,
) -> list[tuple[str, float]]:
    """Names of the plan's weights with their losses, the most felt first.

    Args:
        model: prepared, with the plan's products as MatMul and Conv; as before afterwards.
        feeds: complete; the first of them are run.
        folder, border_limit: where activations between segments go past so many bytes.
    Raises:
        CalibrationError: the model cannot be run on the data, or has no output to measure on.
    """
    ends = find_ends(model, "--max-drop")
    whole = Piece(model, list(model.graph), model.graph.inputs, [end.output for end in ends])
    inputs = {value.name: value for value in model.graph.inputs}
    wanted: list[Mapping[ir.Value, Array]] = []
    rows = 0
    for feed in feeds[:SAMPLES]:
        wanted.append(whole.run({inputs[name]: array for name, array in feed.items()}))
        rows += int(np.prod(wanted[-1][ends[0].output].shape[:-1]))
        if rows >= ROWS:
            break
    collector = Collector(model, anchors_of(model), feeds[: len(wanted)], folder, border_limit)
    losses: dict[PlannedWeight, float] = {}
    by_node: dict[ir.Node, list[PlannedWeight]] = {}
    for planned in plan.quantized:
        for use in planned.weight.uses:
            by_node.setdefault(use.top_level, []).append(planned)
    probe = _Probe(model, collector, ends, wanted, bits_of(settings.kind))
    for segment in collector.segments:
        here = [planned for node in segment.nodes for planned in by_node.get(node, ())]
        members = [planned for planned in dict.fromkeys(here) if planned not in losses]
        for planned, loss in probe.losses(segment, members):
            losses[planned] = loss
            progress("measuring products alone", len(losses), len(plan.quantized))
        collector.advance(segment)
    ranked = sorted(losses.items(), key=lambda item: -item[1])
    return [(planned.weight.name, loss) for planned, loss in ranked]


class _Probe:
    """Runs the model from a segment on, with one of its products rounded."""

    def __init__(
        self,
        model: ir.Model,
        collector: Collector,
        ends: Sequence[End],
        wanted: Sequence[Mapping[ir.Value, Array]],
        static_bits: int,
    ) -> None:
        self._model = model
        self._collector = collector
        self._ends = ends
        self._wanted = wanted
        self._static_bits = static_bits
        self._names = Names(model)

    def losses(
        self, segment: Segment, members: Sequence[PlannedWeight]
    ) -> "list[tuple[PlannedWeight, float]]":
        """Each member's."""
        if not members:
            return []
        uses = [(planned, use) for planned in members for use in planned.weight.uses]
        kept = [(use.node, use.input_index, use.node.inputs[use.input_index]) for _, use in uses]
        operands: dict[ir.Value, tuple[PlannedWeight, WeightUse]] = {}
        for planned, use in uses:
            stand_in = ir.Value(name=self._names.value(f"{planned.weight.name}.probe"))
            use.node.replace_input_with(use.input_index, stand_in)
            operands[stand_in] = planned, use
        switches: dict[ir.Value, PlannedWeight] = {}
        added: list[ir.Node] = []
        for planned, use in uses:
            made = self._switch(planned, use)
            if made is None:
                continue
            switch, nodes = made
            x = use.node.inputs[0]
            kept.append((use.node, 0, x))
            self._model.graph.insert_before(use.node, nodes)
            use.node.replace_input_with(0, nodes[-1].outputs[0])
            switches[switch] = planned
            added += nodes
        try:
            return self._run(segment, members, operands, switches)
        finally:
            for node, place, value in reversed(kept):
                node.replace_input_with(place, value)
            if added:
                self._model.graph.remove(added, safe=True)

    def _run(
        self,
        segment: Segment,
        members: Sequence[PlannedWeight],
        operands: Mapping[ir.Value, tuple[PlannedWeight, WeightUse]],
        switches: Mapping[ir.Value, PlannedWeight],
    ) -> "list[tuple[PlannedWeight, float]]":
        own = self._collector.nodes_of(segment)[0]
        nodes = list(self._model.graph)
        tail_nodes = nodes[next(index for index, node in enumerate(nodes) if node is own) :]
        later = set(tail_nodes)
        ends = [end for end in self._ends if end.output.producer() in later]
        if not ends:  # an output that was made before does not change
            return [(planned, 0.0) for planned in members]
        given = [*self._collector.sample(0), *operands, *switches]
        tail = Piece(self._model, tail_nodes, given, [end.output for end in ends])
        plain = {value: _laid_out(*owner, owner[0].weight.array()) for value, owner in operands.items()}
        off = {switch: np.array(False) for switch in switches}
        found = []
        for planned in members:
            alone = rounded(planned.weight.array(), planned.scheme).dequantize()
            mine = {v: _laid_out(*owner, alone) for v, owner in operands.items() if owner[0] is planned}
            on = {switch: np.array(True) for switch, owner in switches.items() if owner is planned}
            total = 0.0
            for index, wanted in enumerate(self._wanted):
                made = tail.run({**self._collector.sample(index), **plain, **off, **mine, **on})
                total += sum(loss_of(end, wanted[end.output], made[end.output]) for end in ends)
            found.append((planned, total / len(self._wanted) if np.isfinite(total) else np.inf))
        return found

    def _switch(self, planned: PlannedWeight, use: WeightUse) -> tuple[ir.Value, list[ir.Node]] | None:
        """Nodes that round what the product multiplies where a boolean input says so; None: its activations stay float."""
        rounding = planned.settings.activations
        if rounding == "none" or use.role is Role.EMBEDDING or use.in_body is not None:
            return None
        if planned.scheme.is_float8:
            return None
        x, dtype = use.node.inputs[0], input_type(use.node)
        assert x is not None
        number = np.dtype(dtype.numpy())
        switch = ir.Value(name=self._names.value(f"{x.name}.switch"))
        nodes: list[ir.Node] = []

        def node(op: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
            output = ir.Value(name=self._names.value(f"{x.name}.{op}"))
            set_info(output, dtype, None)
            nodes.append(ir.node(op, list(inputs), attributes=attributes, outputs=[output]))
            return output

        def number_of(value: float) -> ir.Value:
            return node_constant(np.array(value, number))

        def node_constant(array: Array) -> ir.Value:
            made = ir.node("Constant", [], attributes={"value": ir.Tensor(array)})
            made.outputs[0].name = self._names.value(f"{x.name}.constant")
            nodes.append(made)
            return made.outputs[0]

        tiny = number_of(float(np.finfo(number).tiny))
        if rounding == "token":
            largest = node("ReduceMax", node("Abs", x), node_constant(np.array([-1], np.int64)), keepdims=1)
            step = node("Max", node("Div", largest, number_of(127)), tiny)
        else:
            bits = self._static_bits if rounding == "static" else 8
            zero = number_of(0)
            highest = node("Max", node("ReduceMax", x, keepdims=0), zero)
            lowest = node("Min", node("ReduceMin", x, keepdims=0), zero)
            width = node("Sub", highest, lowest)
            step = node("Max", node("Div", width, number_of(2**bits - 1)), tiny)
        grid = node("Mul", node("Round", node("Div", x, step)), step)
        node("Where", switch, grid, x)
        return switch, nodes


def _laid_out(planned: PlannedWeight, use: WeightUse, values: Array) -> Array:
    """What the node reads of these values [N, K], in the type that it reads."""
    dtype = planned.weight.dtype.numpy()
    if planned.weight.kernel is not None:
        return np.ascontiguousarray(values, dtype=dtype).reshape(planned.weight.kernel)
    return np.ascontiguousarray(operand_of(planned, use, values), dtype=dtype)
