"""Keep ONNX Runtime from making an integer product of two factors that are 8-bit floats.

*Given* MatMul of what DequantizeLinear makes of 8-bit floats, on both sides.
*Result* the same with a Reshape to the shape that it has behind the weight's DequantizeLinear.

ONNX Runtime 1.31.1 takes any MatMul of two DequantizeLinear for one of integers, and then refuses its own MatMulIntegerToFloat, which has
no such types: the model does not load. A Reshape of a weight moves no numbers, and its optimizer leaves it there.
"""

import numpy as np
import onnx_ir as ir

from qcompiler.graph.edits import Names, add_initializer
from qcompiler.graph.float8_form import NAMES, is_float8
from qcompiler.graph.kernel_node import LoweredNode
from qcompiler.graph.node_chain import constant_of
from qcompiler.graph.quantized import SCHEME_KEY


class PartFloat8Products(ir.passes.InPlacePass):
    """The pass; ``lowered`` lists the weights of 8-bit floats, which have to stay so in the model that runs."""

    def __init__(self) -> None:
        super().__init__()
        self.lowered: list[LoweredNode] = []

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        names = Names(model)
        modified = False
        for node in list(model.graph):
            if not is_float8(node):
                continue
            products = [
                user for user, place in node.outputs[0].uses() if place == 1 and _multiplies_float8(user)
            ]
            if products:
                _part(node, products, names)
                modified = True
            codes = node.inputs[0]
            if SCHEME_KEY in node.metadata_props and codes is not None:
                self.lowered.append(LoweredNode(node.name or "", node.op_type, codes.name or "", ""))
        return ir.passes.PassResult(model, modified)


def _multiplies_float8(node: ir.Node) -> bool:
    x = node.inputs[0] if node.op_type == "MatMul" and node.domain == "" else None
    restored = None if x is None else x.producer()
    if restored is None or restored.op_type != "DequantizeLinear" or restored.domain != "":
        return False
    # Codes and zero point are of one type, and a model that was not inferred names that of the constant alone.
    return any(
        value is not None and value.dtype in NAMES for value in (restored.inputs[0], *restored.inputs[2:])
    )


def _part(weight: ir.Node, products: list[ir.Node], names: Names) -> None:
    source, graph, codes = weight.outputs[0], weight.graph, constant_of(weight, 0)
    assert isinstance(graph, ir.Graph) and codes is not None
    name = names.value(f"{source.name}.shape")
    shape = np.array(codes.shape.numpy(), np.int64)
    sizes = add_initializer(graph, ir.Tensor(shape, name=name), name)
    output = ir.Value(
        name=names.value(f"{source.name}.as_it_is"), type=source.type, shape=ir.Shape(codes.shape.numpy())
    )
    node = ir.node("Reshape", [source, sizes], outputs=[output], name=names.node(f"{source.name}.reshape"))
    graph.insert_after(weight, node)
    for product in products:
        product.replace_input_with(1, output)
