"""Compute a bfloat16 model in float32, keeping its inputs and outputs as they are.

*Given* a model that computes in bfloat16. ONNX Runtime's CPU provider has no bfloat16 kernels, so such a model runs nowhere on CPU.
*Result* float32 between Casts: of bfloat16 inputs and initializers to float32, and of the results back at bfloat16 outputs. Weights stay
bfloat16 in the file; every bfloat16 value is a float32 value, so nothing is lost.
"""

import onnx_ir as ir

from qcompiler.graph.edits import Names, all_nodes

WIDE = ir.DataType.FLOAT
NARROW = ir.DataType.BFLOAT16


class WidenBfloat16(ir.passes.InPlacePass):
    """The pass."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        if not any(_computes(node) for node in all_nodes(model)):
            return ir.passes.PassResult(model, modified=False)
        values = [v for node in all_nodes(model) for v in node.outputs]
        names = Names(model)
        for node in list(all_nodes(model)):
            _widen_attributes(node)
        _widen_outputs(model.graph, names)
        for value in values:
            if value.dtype == NARROW and value not in model.graph.outputs:
                value.type = ir.TensorType(WIDE)
        for value in (*model.graph.inputs, *model.graph.initializers.values()):
            if value.dtype == NARROW:
                _widen_source(value, model.graph, names)
        for graph in model.graph.subgraphs():
            for value in (*graph.inputs, *graph.outputs):
                if value.dtype == NARROW:
                    value.type = ir.TensorType(WIDE)
        return ir.passes.PassResult(model, modified=True)


def _computes(node: ir.Node) -> bool:
    """Whether a node works on bfloat16; a Cast from it or to it only stores."""
    values = (*node.inputs, *node.outputs)
    return node.op_type != "Cast" and any(value is not None and value.dtype == NARROW for value in values)


def _widen_attributes(node: ir.Node) -> None:
    """Casts to bfloat16 become casts to float32, and so do small bfloat16 constants."""
    for name in ("to", "dtype"):
        attribute = node.attributes.get(name)
        if (
            attribute is not None
            and attribute.type == ir.AttributeType.INT
            and attribute.as_int() == NARROW.value
        ):
            node.attributes[name] = ir.AttrInt64(name, WIDE.value)
    if "value" in node.attributes and node.attributes["value"].type == ir.AttributeType.TENSOR:
        tensor = node.attributes["value"].as_tensor()
        if tensor.dtype == NARROW:
            wide = tensor.numpy().astype(WIDE.numpy())
            node.attributes["value"] = ir.AttrTensor("value", ir.Tensor(wide, dtype=WIDE, name=tensor.name))


def _widen_outputs(graph: ir.Graph, names: Names) -> None:
    for index, output in enumerate(list(graph.outputs)):
        if output.dtype != NARROW or output.producer() is None:
            continue
        name = output.name
        output.name = names.value(f"{name}.float32")
        output.type = ir.TensorType(WIDE)
        narrow = ir.Value(name=name, type=ir.TensorType(NARROW), shape=output.shape)
        cast = ir.node(
            "Cast",
            [output],
            attributes={"to": NARROW.value},
            outputs=[narrow],
            name=names.node(f"{name}.narrow"),
        )
        graph.append(cast)
        graph.outputs[index] = narrow


def _widen_source(value: ir.Value, graph: ir.Graph, names: Names) -> None:
    """Every reader of an input or initializer reads it through a Cast to float32."""
    uses = [(node, index) for node, index in value.uses()]
    if not uses:
        return
    wide = ir.Value(name=names.value(f"{value.name}.float32"), type=ir.TensorType(WIDE), shape=value.shape)
    cast = ir.node(
        "Cast", [value], attributes={"to": WIDE.value}, outputs=[wide], name=names.node(f"{value.name}.widen")
    )
    graph.insert_before(graph[0], cast)
    for node, index in uses:
        node.replace_input_with(index, wide)
