"""Give ONNX Runtime's GatherBlockQuantized nodes to our GatherNBits, which unpacks rows faster and cuts their padding itself.

*Given* com.microsoft::GatherBlockQuantized of rows of uint8 codes of 2, 4 or 8 bits, all constant; a Slice behind it that keeps the first
K numbers of each row, where the last block is short.
*Result* ai.qcompiler::GatherNBits of the same name, on the same bytes, without the Slice; the model carries the operator's body, which is
the nodes that were there. The numbers are the same.
"""

import onnx_ir as ir

from qcompiler.graph.edits import drop_unused
from qcompiler.graph.kernel_node import LoweredNode
from qcompiler.graph.operator_body import OUR_DOMAIN
from qcompiler.graph.own_gather_nbits import OP, STOCK_OP, provide
from qcompiler.passes.take_over import take_over

CODES, INDICES, SCALES, ZERO_POINTS = range(4)
_DEFAULTS = {"bits": 4, "block_size": 128, "gather_axis": 0, "quantize_axis": 1}
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)


class UseOwnGathers(ir.passes.InPlacePass):
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
        lowered, left = take_over(model, STOCK_OP, _obstacle, _take_over)
        self.lowered += lowered
        self.left += left
        if lowered:
            provide(model)
        return ir.passes.PassResult(model, modified=bool(lowered))


def _obstacle(node: ir.Node) -> str | None:
    """Why our kernel cannot run a node, or None."""
    if unknown := sorted(node.attributes.keys() - _DEFAULTS.keys()):
        return f"it has the attribute {unknown[0]}, which our operator has not"
    bits, block_size, gathered, quantized = (_attribute(node, name) for name in _DEFAULTS)
    if gathered != 0 or quantized not in (1, -1):
        return f"it gathers along axis {gathered} and has its blocks along {quantized}: our kernel takes whole rows with blocks in them"
    if bits not in (2, 4, 8) or block_size < 16 or block_size % 16:
        return f"{bits} bits in blocks of {block_size}: our kernel takes 2, 4 and 8 in blocks of 16, 32 .."
    constants = [node.inputs[CODES], node.inputs[SCALES], _zero_points(node)]
    if not all(
        value is None or (value.is_initializer() and not value.is_graph_input()) for value in constants
    ):
        return "its table is not constant"
    codes, scales = (value.const_value for value in constants[:2] if value is not None)
    assert codes is not None and scales is not None
    if codes.dtype != ir.DataType.UINT8 or scales.dtype not in _FLOATS:
        return f"its codes are {codes.dtype} and its scales {scales.dtype}: our kernel takes UINT8, and FLOAT or FLOAT16"
    width = _width(node)
    if len(codes.shape) != 2 or len(scales.shape) != 2 or width % block_size:
        return f"its codes have shape {list(codes.shape)}: our kernel takes [N, bytes of whole blocks]"
    cells = [codes.shape.numpy()[0], width // block_size]
    if list(scales.shape) != cells:
        return f"its scales have shape {list(scales.shape)}; [N, G] = {cells} is needed"
    return None


def _take_over(node: ir.Node) -> LoweredNode:
    graph, codes, scales = node.graph, node.inputs[CODES], node.inputs[SCALES]
    assert graph is not None and codes is not None and codes.const_value is not None
    cut = _cut(node)
    last, k = (node, _width(node)) if cut is None else cut
    inputs = [node.inputs[INDICES], codes, scales, _zero_points(node)]
    if inputs[-1] is None:
        inputs.pop()
    sizes = {
        "K": k, "N": codes.const_value.shape.numpy()[0], "bits": _attribute(node, "bits"),
        "block_size": _attribute(node, "block_size"),
    }  # fmt: skip
    attributes = [ir.AttrInt64(name, value) for name, value in sizes.items()]
    ours = ir.Node(OUR_DOMAIN, OP, inputs, attributes, num_outputs=1, name=node.name)
    ours.metadata_props.update(node.metadata_props)
    bounds = list(last.inputs[1:]) if cut is not None else []
    nodes = [node] if cut is None else [node, last]
    ir.convenience.replace_nodes_and_values(graph, node, nodes, [ours], last.outputs, ours.outputs)
    for value in bounds:
        if value is not None:
            drop_unused(value)
    return LoweredNode(ours.name or "", OP, codes.name or "", OUR_DOMAIN)


def _cut(node: ir.Node) -> tuple[ir.Node, int] | None:
    """The Slice that alone reads the rows, to keep the first numbers of each, and how many."""
    rows = node.outputs[0]
    users = rows.consumers()
    if len(users) != 1 or rows.is_graph_output():
        return None
    (user,) = users
    if user.op_type != "Slice" or user.domain != "" or user.graph is not node.graph or len(user.inputs) != 4:
        return None
    bounds = [None if value is None else value.const_value for value in user.inputs[1:]]
    if any(bound is None or bound.size != 1 for bound in bounds):
        return None
    start, end, axis = (int(bound.numpy().item()) for bound in bounds if bound is not None)
    block_size, width = _attribute(node, "block_size"), _width(node)
    # No more than what fills up the last block: the scales say how many blocks a row has.
    is_padding = width - block_size < end < width
    return (user, end) if (start, axis) == (0, -1) and is_padding else None


def _width(node: ir.Node) -> int:
    """Numbers of a row, padding included."""
    codes = node.inputs[CODES]
    assert codes is not None and codes.const_value is not None
    return codes.const_value.shape.numpy()[-1] * 8 // _attribute(node, "bits")


def _attribute(node: ir.Node, name: str) -> int:
    return node.attributes.get_int(name, _DEFAULTS[name])


def _zero_points(node: ir.Node) -> ir.Value | None:
    return node.inputs[ZERO_POINTS] if len(node.inputs) > ZERO_POINTS else None
