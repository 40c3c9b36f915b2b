"""Store weights of 3 bits in 3 bits: they came in 4, which ONNX Runtime's MatMulNBits takes.

*Given* ai.qcompiler::MatMulNBits of 4 bits whose notes say that its weight was rounded to 3.
*Result* ai.qcompiler::MatMul3Bits of the same numbers, codes in three quarters of the bytes. The model carries its body, which makes the
4 bits again where our library is not registered: ONNX Runtime does so once, when it loads the model.

Codes that another node reads too stay in 4 bits (an embedding gathers rows of nibbles), and so does a weight with offsets beside its
product, which are found by the name of that operator.
"""

from collections.abc import Callable, Iterator
from functools import partial

import onnx_ir as ir
from onnx_ir.traversal import RecursiveGraphIterator

from qcompiler.graph.kernel_node import LoweredNode
from qcompiler.graph.offset_product import offset_of
from qcompiler.graph.operator_body import OUR_DOMAIN
from qcompiler.graph.own_matmul_nbits import OP, THREE, provide
from qcompiler.graph.product_names import product_names
from qcompiler.graph.quantized import SCHEME_KEY
from qcompiler.graph.streamed_tensor import Bytes, StreamedTensor
from qcompiler.passes.reasons import Reasons
from qcompiler.quant import three_bits

CODES, ZERO_POINTS = 1, 3
_STORED_BITS = 4
_CHUNK = 1 << 22  # bytes turned at a time


class StoreThreeBits(ir.passes.InPlacePass):
    """The pass.

    Attributes:
        lowered: what runs as MatMul3Bits from now on.
        saved: bytes less that a weight takes than in 4 bits, by its name in reports.
        left: a line for each reason for which weights of 3 bits stay in 4.
    """

    def __init__(self) -> None:
        super().__init__()
        self.lowered: list[LoweredNode] = []
        self.saved: dict[str, int] = {}
        self.left: list[str] = []

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        before, left = len(self.lowered), Reasons()
        for node in list(RecursiveGraphIterator(model.graph)):
            if not _is_three_bits_in_four(node):
                continue
            reason = _obstacle(node)
            if reason is None:
                before_bytes, name = _codes_bytes(node), _weight_name(node)
                self.lowered.append(_shorten(node))
                self.saved[name] = before_bytes - _codes_bytes(node)
            else:
                left.add(node, reason)
        self.left += left.lines("it stays in 4")
        modified = len(self.lowered) > before
        if modified:
            provide(model, THREE)
            if not any(_is_product(node) for node in RecursiveGraphIterator(model.graph)):
                model.functions.pop((OUR_DOMAIN, OP, ""), None)
        return ir.passes.PassResult(model, modified=modified)


def _is_product(node: ir.Node) -> bool:
    return node.op_type == OP and node.domain == OUR_DOMAIN


def _is_three_bits_in_four(node: ir.Node) -> bool:
    label = node.metadata_props.get(SCHEME_KEY, "")
    return _is_product(node) and label.startswith("int3 ") and node.attributes.get_int("bits") == _STORED_BITS


def _obstacle(node: ir.Node) -> str | None:
    """Why a weight of 3 bits cannot be stored in 3, or None."""
    if offset_of(node) is not None:
        return "its weight of 3 bits has offsets beside the product"
    codes = node.inputs[CODES]
    assert codes is not None and codes.const_value is not None
    if len(codes.uses()) > 1 or codes.is_graph_output():
        return "its weight of 3 bits is read by another node too"
    k, n, block_size = (node.attributes.get_int(name) for name in ("K", "N", "block_size"))
    if codes.const_value.shape != (n, -(-k // block_size), block_size // 2):
        return "its weight of 3 bits is not stored as [N, G, bytes of a block]"
    points = _points(node)
    if points is not None and (len(points.uses()) > 1 or points.is_graph_output()):
        return "its zero points are read by another node too"
    if not all(three_bits.fits(piece, points is None) for piece in _pieces(codes.const_value)):
        return "its codes do not fit into 3 bits"
    if points is not None and not three_bits.fits(_tensor(points).numpy(), False):
        return "its zero points do not fit into 3 bits"
    return None


def _codes_bytes(node: ir.Node) -> int:
    codes = node.inputs[CODES]
    assert codes is not None
    return int(_tensor(codes).nbytes)


def _weight_name(node: ir.Node) -> str:
    codes = node.inputs[CODES]
    assert codes is not None
    return product_names(node, codes)[0].removesuffix(".weight").removesuffix(".quantized")


def _points(node: ir.Node) -> ir.Value | None:
    return node.inputs[ZERO_POINTS] if len(node.inputs) > ZERO_POINTS else None


def _tensor(value: ir.Value) -> ir.TensorProtocol:
    assert value.const_value is not None
    return value.const_value


def _pieces(tensor: ir.TensorProtocol) -> Iterator[Bytes]:
    """Its bytes, uint8, some rows at a time."""
    packed = tensor.numpy()
    step = max(1, _CHUNK // max(1, packed[:1].size))
    for start in range(0, packed.shape[0], step):
        yield packed[start : start + step]


def _short_codes(tensor: ir.TensorProtocol, symmetric: bool) -> Iterator[Bytes]:
    for piece in _pieces(tensor):
        yield three_bits.shorten(three_bits.twice(piece, symmetric)).reshape(-1)


def _twice(tensor: ir.TensorProtocol) -> Iterator[Bytes]:
    for piece in _pieces(tensor):
        yield three_bits.twice(piece, symmetric=False).reshape(-1)


def _shorten(node: ir.Node) -> LoweredNode:
    codes, points = node.inputs[CODES], _points(node)
    assert codes is not None
    stored = _tensor(codes)
    n, groups, width = stored.shape.numpy()
    _replace(codes, partial(_short_codes, stored, points is None), ir.Shape([n, groups, width * 3 // 4]))
    if points is not None:
        stored = _tensor(points)
        _replace(points, partial(_twice, stored), ir.Shape(stored.shape.numpy()))
    node.op_type = THREE
    node.attributes.add(ir.AttrInt64("bits", 3))
    return LoweredNode(node.name or "", THREE, codes.name or "", OUR_DOMAIN)


def _replace(value: ir.Value, pieces: Callable[[], Iterator[Bytes]], shape: ir.Shape) -> None:
    value.const_value = StreamedTensor(pieces, ir.DataType.UINT8, shape, name=value.name)
    value.shape = shape
