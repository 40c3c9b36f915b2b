"""Give ONNX Runtime's MatMulNBits nodes to our operator of that name, which has faster kernels, and promise those for outliers.

*Given* com.microsoft::MatMulNBits with accuracy_level 4, 1 or 0 on float32 activations, its weight constant, its scales [N, G] constant or
computed of constants, which ONNX Runtime folds when it loads the model.
*Result* ai.qcompiler::MatMulNBits of the same name and level (1 for 0, which leaves it to the kernel: that computes in float32), on the
same bytes; the model carries the operator's body, which is the node that was there. A weight that is tied to an embedding is read without
the Reshape that the stock node needs.
Where FakeQuantRows rounds the activations, and the weight has a scale for each output, it is ai.qcompiler::DynamicQuantMatMul, on what
they were. With groups MatMulNBits itself is as fast and errs less.
ai.qcompiler::SparseMatMul stays as it is: the library has a kernel for it, which has to run.
"""

import onnx_ir as ir
from onnx_ir.traversal import RecursiveGraphIterator

from qcompiler.graph import own_dynamic_matmul, sparse_matmul
from qcompiler.graph.edits import drop_unused
from qcompiler.graph.fake_quant_rows import is_fake_quant_rows
from qcompiler.graph.kernel_node import LoweredNode
from qcompiler.graph.node_chain import is_foldable
from qcompiler.graph.operator_body import OUR_DOMAIN
from qcompiler.graph.own_matmul_nbits import FLOAT_ACTIVATIONS, INT8_ACTIVATIONS, LEVEL, OP, provide
from qcompiler.graph.quantized import notes_groups
from qcompiler.passes.take_over import take_over

X, CODES, SCALES, ZERO_POINTS, ROW_INDEX, BIAS = range(6)
_SIZES = ("K", "N", "bits", "block_size")
_BITS = 4  # where the stock node does not say
_LEVELS = {
    INT8_ACTIVATIONS: INT8_ACTIVATIONS,
    FLOAT_ACTIVATIONS: FLOAT_ACTIVATIONS,
    0: FLOAT_ACTIVATIONS,
}
"""Our operator's accuracy_level for the stock node's."""


class UseOwnKernels(ir.passes.InPlacePass):
    """The pass.

    Attributes:
        lowered: what runs as our operator from now on.
        left: a line for each reason for which nodes stay ONNX Runtime's.
    """

    def __init__(self) -> None:
        super().__init__()
        self.lowered: list[LoweredNode] = []
        self.left: list[str] = []

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        lowered, left = take_over(model, OP, _obstacle, _take_over)
        sparse = [
            _lowered(node)
            for node in RecursiveGraphIterator(model.graph)
            if node.op_type == sparse_matmul.OP and node.domain == OUR_DOMAIN
        ]
        self.lowered += lowered + sparse
        self.left += left
        operators = {node.op_type for node in lowered}
        if OP in operators:
            provide(model)
        if own_dynamic_matmul.OP in operators:
            own_dynamic_matmul.provide(model)
        return ir.passes.PassResult(model, modified=bool(lowered))


def _obstacle(node: ir.Node) -> str | None:
    """Why our kernels cannot run a node, or None."""
    level = node.attributes.get_int(LEVEL, 0)
    if level not in _LEVELS:
        return (
            f"accuracy_level {level}: our kernels take activations in 8 bits or in float32; "
            f"set accuracy_level: {INT8_ACTIVATIONS} or {FLOAT_ACTIVATIONS}"
        )
    if reason := _attribute_obstacle(node):
        return reason
    x, zero_points = node.inputs[X], _input(node, ZERO_POINTS)
    dtype = None if x is None else x.dtype or node.outputs[0].dtype
    if dtype != ir.DataType.FLOAT:
        return f"its activations are {dtype or 'of unknown type'}: our kernels take float32"
    if _input(node, ROW_INDEX) is not None:
        return "it has a g_idx"
    if zero_points is not None and zero_points.dtype != ir.DataType.UINT8:
        return "its zero points are floats"
    constant = [_bytes_of(node), *([] if zero_points is None else [zero_points])]
    if not all(
        value is not None and value.is_initializer() and not value.is_graph_input() for value in constant
    ):
        return "its weight is not constant"
    scales = node.inputs[SCALES]
    if scales is None or not is_foldable(scales):
        return "its weight is not constant"
    return _scales_obstacle(node, scales)


def _attribute_obstacle(node: ir.Node) -> str | None:
    if unknown := sorted(node.attributes.keys() - {*_SIZES, LEVEL}):
        return f"it has the attribute {unknown[0]}, which our operator has not; leave it out if it is the default"
    if missing := [name for name in _SIZES if name != "bits" and name not in node.attributes]:
        return f"it has no attribute {missing[0]}"
    bits = node.attributes.get_int("bits", _BITS)
    if bits not in (2, 4, 8):
        return f"{bits} bits: our operator of this name takes 2, 4 and 8"
    block_size = node.attributes.get_int("block_size")
    if block_size < 16 or block_size % 16:
        return f"block_size {block_size}: our kernels take multiples of 16"
    return None


def _scales_obstacle(node: ir.Node, scales: ir.Value) -> str | None:
    """Our kernels count the scales alone, but the body takes [N, G] from their shape."""
    k, n, block_size = (node.attributes.get_int(name) for name in ("K", "N", "block_size"))
    found = scales.shape if scales.const_value is None else scales.const_value.shape
    if found is None:
        return "its scales are of unknown shape"
    shape, expected = list(found), [n, -(-k // block_size)]
    if shape == expected:
        return None
    return f"its scales have shape {shape}; reshape them to [N, G] = {expected}, which a run without our library needs"


def _take_over(node: ir.Node) -> LoweredNode:
    reshaped, codes = node.inputs[CODES], _bytes_of(node)
    assert reshaped is not None and codes is not None and node.graph is not None
    inputs = [node.inputs[X], codes, node.inputs[SCALES], _input(node, ZERO_POINTS), _input(node, BIAS)]
    while inputs[-1] is None:
        inputs.pop()
    sizes = [ir.AttrInt64(name, node.attributes.get_int(name, _BITS)) for name in _SIZES]
    level = [ir.AttrInt64(LEVEL, _LEVELS[node.attributes.get_int(LEVEL, 0)])]
    op, rounded = OP, node.inputs[X]
    if is_fake_quant_rows(rounded) and not notes_groups(node):
        assert rounded is not None
        rounding = rounded.producer()
        assert rounding is not None
        op, level, inputs[X] = own_dynamic_matmul.OP, [], rounding.inputs[0]
    ours = ir.Node(OUR_DOMAIN, op, inputs, [*sizes, *level], num_outputs=1, name=node.name)
    ours.metadata_props.update(node.metadata_props)
    ir.convenience.replace_nodes_and_values(node.graph, node, [node], [ours], node.outputs, ours.outputs)
    drop_unused(reshaped)
    if rounded is not None:
        drop_unused(rounded)
    return _lowered(ours)


def _lowered(node: ir.Node) -> LoweredNode:
    """A node of our domain, whose second input is what is stored."""
    stored = node.inputs[1]
    assert stored is not None
    return LoweredNode(node.name or "", node.op_type, stored.name or "", OUR_DOMAIN)


def _bytes_of(node: ir.Node) -> ir.Value | None:
    """The stored codes: a tied weight's are seen through a Reshape, which our operator does without."""
    codes = node.inputs[CODES]
    producer = None if codes is None else codes.producer()
    if producer is None or producer.op_type != "Reshape" or producer.domain != "":
        return codes
    return producer.inputs[0]


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None
