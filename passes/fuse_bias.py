"""Give MatMulNBits, DynamicQuantizeMatMul or MatMulIntegerToFloat the bias that follows it.

*Given* such a product -> Add of a constant [N], and nothing else reads the product.
*Result* one node with the bias as its last input; the sum keeps its name.
"""

import onnx_ir as ir

from qcompiler.graph.edits import all_nodes, drop_unused, replace_value
from qcompiler.graph.weights import constant_view

BIAS_INPUT = {"MatMulNBits": 5, "DynamicQuantizeMatMul": 4, "MatMulIntegerToFloat": 6}


class FuseBias(ir.passes.InPlacePass):
    """The pass."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in list(all_nodes(model)):
            if node.op_type == "Add" and node.domain == "" and node.graph is not None:
                modified = _try_fuse(node) or modified
        return ir.passes.PassResult(model, modified)


def _try_fuse(add: ir.Node) -> bool:
    for index in (0, 1):
        product, bias = add.inputs[index], add.inputs[1 - index]
        if product is None or bias is None:
            return False
        node = product.producer()
        if node is None or node.op_type not in BIAS_INPUT or node.graph is not add.graph:
            continue
        if len(product.uses()) > 1 or product.is_graph_output():
            return False  # another consumer needs the product without the bias
        view = constant_view(bias)
        if view is None or view.shape != (_columns(node),) or not bias.is_initializer():
            return False  # a residual, or a bias that is not one number an output
        place = BIAS_INPUT[node.op_type]
        if len(node.inputs) > place and node.inputs[place] is not None:
            return False  # it has a bias already
        _fuse(add, node, product, bias)
        return True
    return False


def _columns(node: ir.Node) -> object:
    """N: of MatMulNBits an attribute, else the last dimension of the weight [K, N]."""
    if node.op_type == "MatMulNBits":
        return node.attributes.get_int("N", 0)
    weight = node.inputs[1]
    return weight.shape[-1] if weight is not None and weight.shape is not None else None


def _fuse(add: ir.Node, node: ir.Node, product: ir.Value, bias: ir.Value) -> None:
    place = BIAS_INPUT[node.op_type]
    node.resize_inputs(place + 1)
    node.replace_input_with(place, bias)
    total = add.outputs[0]
    product.type, product.shape = total.type or product.type, total.shape or product.shape
    name = total.name
    is_output = total.is_graph_output()
    replace_value(total, product)
    if not is_output:
        total.name, product.name = product.name, name
    drop_unused(total)
