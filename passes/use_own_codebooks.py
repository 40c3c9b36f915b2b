"""Give ONNX Runtime's MatMulBnb4 nodes to our MatMulCodebook, which does not unpack the weight in every run.

*Given* com.microsoft::MatMulBnb4 on float32 activations, its codes constant, its scales constant or computed of constants, which ONNX
Runtime folds when it loads the model; and a recipe that takes activations in 8 bits.
*Result* ai.qcompiler::MatMulCodebook of the same name, on the same inputs; the model carries the operator's body, which is the node that
was there.
"""

import onnx_ir as ir

from qcompiler.graph.kernel_node import LoweredNode
from qcompiler.graph.node_chain import is_foldable
from qcompiler.graph.operator_body import OUR_DOMAIN
from qcompiler.graph.own_matmul_codebook import OP, SIZES, STOCK_OP, provide
from qcompiler.graph.own_matmul_nbits import INT8_ACTIVATIONS
from qcompiler.passes.take_over import take_over

X, CODES, SCALES = range(3)
_DEFAULTS = {"training_mode": 0, "transB": 1}
"""Attributes of the stock node that ours has not, at the only values that it can take over."""


class UseOwnCodebooks(ir.passes.InPlacePass):
    """The pass.

    Args:
        accuracy_level: of the recipe: 4 takes activations in 8 bits.

    Attributes:
        lowered: what runs as our operator from now on.
        left: a line for each reason for which nodes stay ONNX Runtime's.
    """

    def __init__(self, accuracy_level: int) -> None:
        super().__init__()
        self._accuracy_level = accuracy_level
        self.lowered: list[LoweredNode] = []
        self.left: list[str] = []

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        lowered, left = take_over(model, STOCK_OP, self._obstacle, _take_over)
        self.lowered += lowered
        self.left += left
        if lowered:
            provide(model)
        return ir.passes.PassResult(model, modified=bool(lowered))

    def _obstacle(self, node: ir.Node) -> str | None:
        """Why our kernels cannot run a node, or None."""
        if self._accuracy_level != INT8_ACTIVATIONS:
            return f"accuracy_level {self._accuracy_level}: our kernels round activations to 8 bits; set accuracy_level: {INT8_ACTIVATIONS}"
        for name, attribute in node.attributes.items():
            if name not in SIZES and _DEFAULTS.get(name) != attribute.value:
                return f"it has the attribute {name} = {attribute.value}, which our operator has not"
        if missing := [name for name in SIZES if name not in node.attributes]:
            return f"it has no attribute {missing[0]}"
        k, _, block_size, quant_type = (node.attributes.get_int(name) for name in SIZES)
        if quant_type not in (0, 1):
            return f"quant_type {quant_type}: our kernels take 0, fp4, and 1, nf4"
        if block_size < 16 or block_size % 16 or k % block_size:
            return f"its {k} columns are no multiple of block_size {block_size}: our kernels take blocks of 16, 32 ... within a row"
        x, codes, scales = (node.inputs[index] for index in (X, CODES, SCALES))
        dtype = None if x is None else x.dtype or node.outputs[0].dtype
        if dtype != ir.DataType.FLOAT:
            return f"its activations are {dtype or 'of unknown type'}: our kernels take float32"
        if codes is None or not codes.is_initializer() or codes.is_graph_input():
            return "its weight is not constant"
        return None if scales is not None and is_foldable(scales) else "its scales are not constant"


def _take_over(node: ir.Node) -> LoweredNode:
    assert node.graph is not None
    sizes = [ir.AttrInt64(name, node.attributes.get_int(name)) for name in SIZES]
    ours = ir.Node(OUR_DOMAIN, OP, node.inputs, sizes, num_outputs=1, name=node.name)
    ours.metadata_props.update(node.metadata_props)
    ir.convenience.replace_nodes_and_values(node.graph, node, [node], [ours], node.outputs, ours.outputs)
    codes = ours.inputs[CODES]
    assert codes is not None
    return LoweredNode(ours.name or "", OP, codes.name or "", OUR_DOMAIN)
