"""The middle form of a weight with a scale and an offset for each group, in plain ONNX that any tool can run:

    w = (code - middle) * scale + offset

    DequantizeLinear(codes intB [N, G g], scale [N, G]; blocks of g on axis 1)
    -> Reshape [N, G, g] -> Add offset [N, G, 1] -> Reshape [N, G g] (-> Slice [N, K]) (-> Transpose, layout "kn")

Scales and offsets may be computed by nodes over constants, which ONNX Runtime folds when it loads the model; ``float_zero_points`` and
``two_level_form`` make those. Without offsets the Reshapes and the Add are left out. A short last group is filled up with the middle
code and cut off. The arithmetic is in float32; Casts stand around it in a model of another type. Letters: N outputs, K
reduction, G groups of g.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.graph.edits import constant
from qcompiler.graph.mapped_tensor import MappedTensor
from qcompiler.graph.node_chain import NodeChain, constant_of, integers_of, producer_of
from qcompiler.graph.stored_quantized import SCALE_TYPES, Layout, StoredQuantized
from qcompiler.graph.stored_two_level import StoredTwoLevel
from qcompiler.graph.streamed_tensor import StreamedTensor
from qcompiler.quant import packing
from qcompiler.quant.scheme import ScaleDtype

Bytes = npt.NDArray[np.uint8]
Stored: TypeAlias = StoredQuantized | StoredTwoLevel

FLOAT = ir.DataType.FLOAT
_CHUNK = 1 << 22  # bytes turned at a time


class CentredCodes(StreamedTensor):
    """Codes of the spill file as the ONNX tensor intB [N, G g]: the bytes of MatMulNBits' B, each code less the middle."""

    __slots__ = ("stored",)

    def __init__(self, stored: Stored, name: str) -> None:
        n, groups, width = (int(size) for size in stored.packed.shape.numpy())
        shape = ir.Shape((n, groups * width * 8 // stored.scheme.bits))
        super().__init__(self._turned, ir.DataType[f"INT{stored.scheme.bits}"], shape, name=name)
        self.stored = stored

    def _turned(self) -> Iterator[Bytes]:
        packed = self.stored.packed.packed()
        for start in range(0, packed.size, _CHUNK):
            yield packing.shift_sign_packed(packed[start : start + _CHUNK], self.stored.scheme.bits)


@dataclass(frozen=True, eq=False)
class OffsetForm:
    """What the nodes say; no number is read but the shapes.

    Attributes:
        shape: (N, K).
        layout: "kn" where a Transpose ends it.
        bits: of one code.
        group: g.
        source: holds the codes.
        codes: intB [N, G g].
        scale, offset: [N, G] in the weight's type; no offset in a symmetric scheme.
    """

    shape: tuple[int, int]
    layout: Layout
    bits: int
    group: int
    source: ir.Value
    codes: ir.TensorProtocol
    scale: ir.Value
    offset: ir.Value | None

    @property
    def stored(self) -> Stored | None:
        """The packed bytes behind a form that this run made; None for any other."""
        return self.codes.stored if isinstance(self.codes, CentredCodes) else None

    def packed(self) -> ir.TensorProtocol:
        """The B input of MatMulNBits, uint8 [N, G, g bits / 8]."""
        ours = self.stored
        if ours is not None:
            return ours.packed
        n, width = (int(size) for size in self.codes.shape.numpy())
        turned = packing.shift_sign_packed(_bytes(self.codes), self.bits)
        return ir.Tensor(turned.reshape(n, width // self.group, self.group * self.bits // 8))

    def unsigned_codes(self) -> Bytes:
        """The codes, uint8 [N, K]."""
        n, k = self.shape
        width = int(self.codes.shape.numpy()[1])
        turned = packing.shift_sign_packed(_bytes(self.codes), self.bits)
        return packing.unpack_flat(turned, (n, width), self.bits)[:, :k].copy()


def offset_nodes(
    chain: NodeChain,
    stored: Stored,
    scale: ir.Value,
    offset: ir.Value | None,
    layout: Layout,
    name: str,
    out_dtype: ir.DataType,
) -> list[ir.Node]:
    """Nodes in order; the last yields ``name.dequantized`` as [K, N] ("kn") or [N, K] ("nk") and carries the notes.

    Args:
        chain: holds the nodes that compute scale and offset.
        scale, offset: [N, G] of ``out_dtype``.
    """
    n, k, scheme = stored.n, stored.k, stored.scheme
    group, groups = scheme.group_width(k), scheme.groups(k)
    codes = constant(CentredCodes(stored, f"{name}.codes"), f"{name}.codes")
    values = chain.add(
        "DequantizeLinear",
        [codes, _as_float(chain, scale, out_dtype, "scale.float")],
        "centred",
        axis=1,
        block_size=group,
    )
    if offset is not None:
        column = chain.reshape(
            _as_float(chain, offset, out_dtype, "offset.float"), (n, groups, 1), "offset.column"
        )
        values = chain.add("Add", [chain.reshape(values, (n, groups, group), "groups"), column], "moved")
        values = chain.reshape(values, (n, groups * group), "rows")
    if groups * group != k:
        values = chain.cut_rows(values, k, "rows")
    return chain.end(values, (n, k), layout, out_dtype, stored.label)


def offset_form(node: ir.Node | None) -> OffsetForm | None:
    """The form whose last node this is, or None; constants may be initializers or Constant nodes."""
    layout: Layout = "nk"
    if node is not None and node.op_type == "Transpose":
        if list(node.attributes.get_ints("perm", ())) != [1, 0]:
            return None
        layout, node = "kn", _behind(node, "Cast", "Slice", "Reshape", "DequantizeLinear")
    cast: ir.DataType | None = None
    if node is not None and node.op_type == "Cast":
        cast = ir.DataType(node.attributes.get_int("to", 0))
        node = _behind(node, "Slice", "Reshape", "DequantizeLinear")
    cut = node if node is not None and node.op_type == "Slice" else None
    if cut is not None:
        node = _behind(cut, "Reshape", "DequantizeLinear")
    if node is None or node.domain != "":
        return None
    if node.op_type == "Reshape":
        return _with_offset(node, layout, cut, cast)
    if node.op_type != "DequantizeLinear":
        return None
    if cast is None and cut is None and constant_of(node, 1) is not None:
        return None  # the middle form of ``quantized``, or a Transpose of it
    return _read(node, None, layout, cut, cast)


def held_as(
    chain: NodeChain,
    value: ir.Value,
    dtype: ScaleDtype,
    out_dtype: ir.DataType,
    shape: tuple[int, int],
    suffix: str,
) -> ir.Value:
    """A computed float32 value as scales of ``dtype`` hold it, of type ``out_dtype`` [N, G]."""
    if dtype != "float32":
        value = chain.add("Cast", [value], f"{suffix}.held", to=SCALE_TYPES[dtype].value)
        if out_dtype == FLOAT:
            value = chain.add("Cast", [value], f"{suffix}.float32", to=FLOAT.value)
    value.type, value.shape = ir.TensorType(out_dtype), ir.Shape(shape)
    return value


def _with_offset(
    rows: ir.Node, layout: Layout, cut: ir.Node | None, cast: ir.DataType | None
) -> OffsetForm | None:
    """The form that ``rows`` ends, a Reshape to [N, G g], where each group of each row has one offset."""
    add = producer_of(rows, 0, "Add")
    apart, column = producer_of(add, 0, "Reshape"), producer_of(add, 1, "Reshape")
    dequantize = producer_of(apart, 0, "DequantizeLinear")
    if apart is None or column is None or dequantize is None:
        return None
    form = _read(dequantize, column.inputs[0], layout, cut, cast)
    if form is None or form.offset is None:
        return None
    n, columns = (int(size) for size in form.codes.shape.numpy())
    groups = columns // form.group
    shapes = ((apart, [n, groups, form.group]), (column, [n, groups, 1]), (rows, [n, columns]))
    for node, shape in shapes:
        target = integers_of(node, 1)
        if target is None or target.tolist() != shape:
            return None
    return form if _has_shape(form.offset, [n, groups]) else None


def _read(
    node: ir.Node, offset: ir.Value | None, layout: Layout, cut: ir.Node | None, cast: ir.DataType | None
) -> OffsetForm | None:
    """The form of this DequantizeLinear, with what is said of the nodes behind it."""
    codes, scale, source = constant_of(node, 0), node.inputs[1], node.inputs[0]
    group = node.attributes.get_int("block_size", 0)
    signed = {ir.DataType.INT2: 2, ir.DataType.INT4: 4, ir.DataType.INT8: 8}
    if codes is None or scale is None or source is None or codes.dtype not in signed or len(codes.shape) != 2:
        return None
    n, columns = (int(size) for size in codes.shape.numpy())
    if len(node.inputs) > 2 or group < 1 or columns % group or node.attributes.get_int("axis", 1) % 2 != 1:
        return None
    k = columns if cut is None else _kept_columns(cut)
    if k is None or not columns - group < k <= columns:
        return None
    if cast is not None:
        scale, offset = _uncast_once(scale), None if offset is None else _uncast_once(offset)
        if scale is None or scale.dtype not in (cast, None):
            return None
    return OffsetForm((n, k), layout, signed[codes.dtype], group, source, codes, scale, offset)


def _kept_columns(cut: ir.Node) -> int | None:
    """K of a Slice that keeps the first K columns; None for any other."""
    found = [integers_of(cut, index) for index in range(1, len(cut.inputs))]
    start, end, *rest = [None if numbers is None else numbers.tolist() for numbers in found]
    if start != [0] or end is None or len(end) != 1 or rest not in ([[1]], [[1], [1]]):
        return None
    return int(end[0])


def _has_shape(value: ir.Value, shape: list[int]) -> bool:
    """Whether a value is known to have this shape."""
    tensor = ir.convenience.get_const_tensor(value)
    known = value.shape if tensor is None else tensor.shape
    return known is not None and list(known) == shape


def _behind(node: ir.Node | None, *op_types: str) -> ir.Node | None:
    found = None if node is None or node.inputs[0] is None else node.inputs[0].producer()
    return found if found is not None and found.domain == "" and found.op_type in op_types else None


def _uncast_once(value: ir.Value) -> ir.Value | None:
    node = value.producer()
    return node.inputs[0] if node is not None and node.op_type == "Cast" else None


def _as_float(chain: NodeChain, value: ir.Value, dtype: ir.DataType, suffix: str) -> ir.Value:
    return value if dtype == FLOAT else chain.add("Cast", [value], suffix, to=FLOAT.value)


def _bytes(tensor: ir.TensorProtocol) -> Bytes:
    return tensor.packed() if isinstance(tensor, MappedTensor) else np.frombuffer(tensor.tobytes(), np.uint8)
