"""Round the activations of products whose weights the recipe gives activations of 8 bits.

*Given* the middle form of the weights, and the plan, whose settings say which products are meant and how.
*Result* in front of their first inputs: with ``token`` FakeQuantRows; with ``tensor`` DynamicQuantizeLinear and DequantizeLinear. One for
all products that read an input and round it alike. Names of values that were there stay.

A product in the body of a branch or loop has its input rounded in there. One that multiplies with a correction beside the codes (of low
rank) is left alone, and so is one of float16 where ``tensor`` is asked for.
"""

import onnx_ir as ir

from qcompiler.graph.edits import Names, all_nodes, input_type, set_info
from qcompiler.graph.fake_quant_rows import fake_quant_rows, provide
from qcompiler.graph.weights import Role
from qcompiler.quant.activations import Activations
from qcompiler.recipe.plan import Plan
from qcompiler.recipe.planned_weight import PlannedWeight

Owner = ir.Graph | ir.Function
"""Of a node: the main graph or a body."""


class RoundActivations(ir.passes.InPlacePass):
    """The pass; each weight's notes say where its products were left alone."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self._plan = plan
        self._done = False

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        if self._done:
            return ir.passes.PassResult(model, modified=False)
        self._done = True
        names = Names(model)
        places = {node: index for index, node in enumerate(all_nodes(model))}
        readers = self._readers()
        for (value, activations, graph), nodes in readers.items():
            first = min(nodes, key=places.__getitem__)
            made = _rounding(value, activations, input_type(first), names)
            graph.insert_before(first, made)
            for node in nodes:
                node.replace_input_with(0, made[-1].outputs[0])
        if any(activations == "token" for _, activations, _ in readers):
            provide(model)
        return ir.passes.PassResult(model, modified=bool(readers))

    def _readers(self) -> dict[tuple[ir.Value, Activations, Owner], list[ir.Node]]:
        """The inputs that are to be rounded, how, and the products that read them in one graph or body."""
        found: dict[tuple[ir.Value, Activations, Owner], list[ir.Node]] = {}
        for planned in self._plan.quantized:
            activations = planned.settings.activations
            if activations in ("none", "static"):
                continue
            for node in _products(planned):
                value = node.inputs[0]
                assert value is not None and node.graph is not None
                found.setdefault((value, activations, node.graph), []).append(node)
        return found


def _products(planned: PlannedWeight) -> list[ir.Node]:
    nodes = []
    for use in planned.weight.uses:
        if use.role is Role.EMBEDDING:
            continue
        if use.node.op_type != "MatMul":
            planned.notes.append(f"activations stay float: {use.node.op_type} has no integer form here")
        elif planned.settings.activations == "tensor" and input_type(use.node) != ir.DataType.FLOAT:
            planned.notes.append(
                f"activations stay float: DynamicQuantizeLinear takes float32, and they are {input_type(use.node).name}"
            )
        else:
            nodes.append(use.node)
    return nodes


def _rounding(value: ir.Value, activations: Activations, dtype: ir.DataType, names: Names) -> list[ir.Node]:
    if activations == "token":
        return [fake_quant_rows(value, dtype, names)]
    outputs = [
        ir.Value(name=names.value(f"{value.name}.{part}")) for part in ("codes", "scale", "zero_point")
    ]
    set_info(outputs[0], ir.DataType.UINT8, value.shape)
    set_info(outputs[1], ir.DataType.FLOAT, ir.Shape([]))
    set_info(outputs[2], ir.DataType.UINT8, ir.Shape([]))
    rounded = ir.Value(name=names.value(f"{value.name}.rounded"))
    set_info(rounded, dtype, value.shape)
    return [
        ir.node("DynamicQuantizeLinear", [value], outputs=outputs, name=names.node(f"{value.name}.quantize")),
        ir.node("DequantizeLinear", outputs, outputs=[rounded], name=names.node(f"{value.name}.dequantize")),
    ]
