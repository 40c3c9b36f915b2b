"""Quantized weights of any ONNX model, as its nodes say them: shapes, bits, groups, bytes; no code is read.

Known are com.microsoft's MatMulNBits, MatMulBnb4 and GatherBlockQuantized, ours, DequantizeLinear of a constant
(the middle form, and QDQ of other tools), the middle forms of codebooks and of weights with offsets, and the QLinear and Integer operators.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from qcompiler.graph import own_dynamic_matmul, own_gather_nbits, own_matmul_codebook, own_qlinear_matmul
from qcompiler.graph.census import reaches_output
from qcompiler.graph.codebook_form import CodebookForm, codebook_form, double_scales
from qcompiler.graph.correction_form import corrected_output, corrections_of
from qcompiler.graph.edits import all_nodes
from qcompiler.graph.node_chain import constants_behind, is_computed
from qcompiler.graph.offset_form import OffsetForm, offset_form
from qcompiler.graph.offset_product import offset_of
from qcompiler.graph.operator_body import OUR_DOMAIN
from qcompiler.graph.own_matmul_nbits import INPUTS_OF_EACH, OP, PRODUCTS, columns_attribute
from qcompiler.graph.product_names import product_names
from qcompiler.graph.quantized import ALGORITHM_KEY, REASON_KEY, SQNR_KEY, layout_of
from qcompiler.graph.stored_quantized import Layout
from qcompiler.graph.weights import Role, constant_view
from qcompiler.quant.affine import is_midpoint


@dataclass(eq=False)
class StoredWeight:
    """One quantized weight and the nodes that read it.

    Attributes:
        shape: (N, K) of a matrix, else the weight's own.
        dtype: of the codes, such as "uint4".
        granularity: "group", "channel" or "tensor"; group_size where it is the first.
        bytes: of codes, scales and zero points.
        double_quant: whether scales are in 8 bits themselves.
        beside: what is added to the product: "rank 16".
        float_zero_points: whether zero points are numbers of the scales' type.
        two_level: whether scales (and minima) are whole numbers times the step of a super-block.
        groups_rows: whether a group holds weights of several rows of one input channel.
        reason, algorithm: from the node's metadata; empty in models of other tools.
        sqnr_db: of the layer's output, likewise; None where nothing is noted.
        tensor: name of the constant that holds the codes.
        product: which of its node's products it belongs to, where the node is several.
    """

    name: str
    roles: list[Role]
    nodes: list[ir.Node]
    shape: tuple[int, ...]
    dtype: str
    bits: int
    granularity: str
    group_size: int | None
    symmetric: bool
    bytes: int
    reason: str = ""
    algorithm: str = ""
    double_quant: bool = False
    beside: str = ""
    float_zero_points: bool = False
    two_level: bool = False
    groups_rows: bool = False
    product: int = 0
    sqnr_db: float | None = None
    tensor: str = ""

    @property
    def size(self) -> int:
        """Number of weights."""
        return int(np.prod(self.shape))


def read_products(model: ir.Model) -> list[StoredWeight]:
    """Every quantized weight in graph order; one that several nodes read is there once."""
    outputs = set(model.graph.outputs)
    order = {node: index for index, node in enumerate(all_nodes(model))}
    read = [found for node in order for found in _readers(node)]
    weights: dict[tuple[ir.Value, int], StoredWeight] = {}
    for reader, holder, turned, product in sorted(read, key=lambda found: order[found[0]]):
        found = _read(reader, holder, turned, product)
        if found is None:
            continue
        source, stored = found
        stored.roles = [_role(reader, outputs)]
        stored.tensor = source.name or ""
        known = weights.setdefault((source, stored.bits), stored)
        if known is not stored:
            known.nodes += stored.nodes
            known.roles = list(dict.fromkeys([*known.roles, *stored.roles]))
    for weight in weights.values():
        _take_corrections(weight)
    return list(weights.values())


def _take_corrections(weight: StoredWeight) -> None:
    """Counts in what is added to the products of a weight: its nodes, its bytes, its label."""
    forms = [form for node in weight.nodes for form in corrections_of(node)]
    weight.beside = " + ".join(dict.fromkeys(form.label(weight.size) for form in forms))
    sources = {source for form in forms for source in form.sources}
    weight.bytes += sum(
        int(source.const_value.nbytes) for source in sources if source.const_value is not None
    )
    weight.nodes += [node for form in forms for node in form.nodes]


@dataclass(frozen=True)
class Places:
    """Where a node has its codes, scales and zero points; None where it has none."""

    codes: int
    scales: int | None
    zero_points: int | None

    def of(self, product: int) -> "Places":
        """Those of a later product of the same node."""
        first = product * INPUTS_OF_EACH
        return Places(
            self.codes + first,
            None if self.scales is None else self.scales + first,
            None if self.zero_points is None else self.zero_points + first,
        )


PLACES = {
    "MatMulNBits": Places(1, 2, 3),
    "MatMulBnb4": Places(1, 2, None),
    "MatMulCodebook": Places(1, 2, None),
    own_gather_nbits.STOCK_OP: Places(0, 2, 3),
    own_gather_nbits.OP: Places(1, 2, 3),
    "QLinearMatMul": Places(3, 4, 5),
    "QLinearConv": Places(3, 4, 5),
    "QGemm": Places(3, 4, 5),
    "MatMulInteger": Places(1, None, 3),
    "ConvInteger": Places(1, None, 3),
    "DynamicQuantizeMatMul": Places(1, 2, 3),
    "MatMulIntegerToFloat": Places(1, 3, 5),
    "DequantizeLinear": Places(0, 1, 2),
}
WEIGHT_INPUT = {"MatMul": 1, "Gemm": 1, "Conv": 1, "ConvTranspose": 1, "Gather": 0}
"""Operators on floats, and where they take their weight."""
_CODEBOOKS = frozenset({own_matmul_codebook.STOCK_OP, own_matmul_codebook.OP})
_OUR_STATIC = f"{OUR_DOMAIN}::{own_qlinear_matmul.OP}"
_OURS = frozenset({*PRODUCTS, own_dynamic_matmul.OP, _OUR_STATIC})
"""Our operators with MatMulNBits' attributes."""
PLACES |= {**dict.fromkeys(_OURS, PLACES[OP]), _OUR_STATIC: Places(3, 4, 5)}
_BLOCKWISE = {
    **dict.fromkeys(_OURS, 0),
    **dict.fromkeys(_CODEBOOKS, 0),
    own_gather_nbits.STOCK_OP: 128,
    own_gather_nbits.OP: 0,
    "DequantizeLinear": 0,
}
"""Operators whose ``block_size`` says the group, with its default."""


def kind_of(node: ir.Node) -> str:
    """Its operator: by name alone, but for ours that has the name of another."""
    return _OUR_STATIC if (node.domain, node.op_type) == (OUR_DOMAIN, own_qlinear_matmul.OP) else node.op_type


def _readers(node: ir.Node) -> Iterator[tuple[ir.Node, ir.Node, bool, int]]:
    """(node that computes, node that holds the weight, the weight is transposed in between, which of the node's products)."""
    if codebook_form(node) is not None or offset_form(node) is not None:
        for user, index in node.outputs[0].uses():
            if WEIGHT_INPUT.get(user.op_type) == index:
                yield user, node, False, 0
            elif user.op_type == "Transpose" and codebook_form(user) is None and offset_form(user) is None:
                yield from ((reader, node, True, 0) for reader in _products_of(user))
        return
    if node.op_type != "DequantizeLinear":
        if kind_of(node) in PLACES:
            yield from ((node, node, False, product) for product in range(PRODUCTS.get(kind_of(node), 1)))
        return
    lookup = node.inputs[0].producer() if node.inputs[0] is not None else None
    if lookup is not None and lookup.op_type == "Gather":
        yield lookup, node, False, 0  # rows of a table are looked up in codes and unpacked behind that
        return
    for user, index in node.outputs[0].uses():
        if user.op_type in ("Transpose", "Reshape"):
            yield from ((reader, node, user.op_type == "Transpose", 0) for reader in _products_of(user))
        elif WEIGHT_INPUT.get(user.op_type) == index:
            yield user, node, False, 0


def _products_of(transpose: ir.Node) -> list[ir.Node]:
    """Nodes that read what it yields as their weight."""
    return [user for user, place in transpose.outputs[0].uses() if WEIGHT_INPUT.get(user.op_type) == place]


def _groups_rows(node: ir.Node, lies: Layout, turned: bool) -> bool:
    """Whether groups are along N, of a matrix whose groups are along K if it lies so."""
    by_rows = node.op_type == "Gather" or bool(node.attributes.get_int("transB", 0))
    return (lies == "nk") is not (by_rows is not turned)


def _read(node: ir.Node, holder: ir.Node, turned: bool, product: int) -> tuple[ir.Value, StoredWeight] | None:
    form = codebook_form(holder)
    if form is not None:
        return form.source, _of_form(node, holder, form)
    offsets = offset_form(holder)
    if offsets is not None:
        return offsets.source, _of_offsets(node, holder, offsets, turned)
    places = PLACES[kind_of(holder)].of(product)
    looked_up = node.op_type == "Gather" and node.outputs[0] is holder.inputs[0]
    codes = _constant(node, 0) if looked_up else _constant(holder, places.codes)
    if codes is None or codes.const_value is None:
        return None  # codes that are activations
    scales, zero_points = _constant(holder, places.scales), _constant(holder, places.zero_points)
    tensor = codes.const_value
    bits = holder.attributes.get_int("bits", 4) if kind_of(holder) in _PACKED else int(tensor.dtype.bitwidth)
    shape = _shape(node, holder, tensor, bits, turned, product)
    if len(shape) < 2:
        return None
    granularity, group = _granularity(holder, shape, scales)
    block = holder.attributes.get_int("block_size", 0) if kind_of(holder) == "DequantizeLinear" else 0
    rows = block > 0 and len(shape) == 2 and _groups_rows(node, layout_of(holder), turned)
    if rows:
        granularity, group = "group", block
    double = None
    if kind_of(holder) in _CODEBOOKS and scales is None and holder.inputs[2] is not None:
        double = double_scales(holder.inputs[2])
    sides = [value.const_value for value in (codes, scales, zero_points) if value is not None]
    computed = _computed(holder, scales)
    if computed is not None:
        sides = [codes.const_value, *constants_behind(*computed).values()]
    offset = None if computed is None else computed[1]
    two_level = computed is not None and is_computed(computed[0])
    stored = StoredWeight(
        _name(node, codes),
        [],
        [node],
        shape,
        _dtype(holder, tensor, bits),
        bits,
        granularity,
        group,
        offset is None and _symmetric(holder, tensor.dtype, bits, places, zero_points),
        sum(int(side.nbytes) for side in (*sides, *(double or ())) if side is not None),
        holder.metadata_props.get(REASON_KEY, ""),
        holder.metadata_props.get(ALGORITHM_KEY, ""),
        double is not None,
        float_zero_points=offset is not None and not two_level,
        two_level=two_level,
        groups_rows=rows,
        product=product,
        sqnr_db=_sqnr(holder, product),
    )
    return codes, stored


def _computed(holder: ir.Node, scales: ir.Value | None) -> tuple[ir.Value | None, ir.Value | None] | None:
    """Scales and offsets of a MatMulNBits that come from nodes; None where it reads plain constants."""
    offset = offset_of(holder) if kind_of(holder) == "MatMulNBits" else None
    return (
        (holder.inputs[2], offset)
        if kind_of(holder) == "MatMulNBits" and (offset or scales is None)
        else None
    )


def _of_offsets(node: ir.Node, holder: ir.Node, form: OffsetForm, turned: bool) -> StoredWeight:
    notes = holder.metadata_props
    rows = _groups_rows(node, form.layout, turned)
    shape = form.shape[::-1] if rows else form.shape
    parts = (form.codes, *constants_behind(form.scale, form.offset).values())
    return StoredWeight(
        _name(node, form.source), [], [node], shape, str(form.codes.dtype.name).lower(), form.bits, "group", form.group,
        form.offset is None, sum(int(part.nbytes) for part in parts),
        notes.get(REASON_KEY, ""), notes.get(ALGORITHM_KEY, ""),
        float_zero_points=form.offset is not None and not is_computed(form.scale), two_level=is_computed(form.scale),
        groups_rows=rows, sqnr_db=_sqnr(holder, 0),
    )  # fmt: skip


def _of_form(node: ir.Node, holder: ir.Node, form: CodebookForm) -> StoredWeight:
    notes = holder.metadata_props
    return StoredWeight(
        _name(node, form.source), [], [node], form.shape, form.dtype, 4, "group", form.block, True, form.nbytes,
        notes.get(REASON_KEY, ""), notes.get(ALGORITHM_KEY, ""), form.double is not None,
        sqnr_db=_sqnr(holder, 0),
    )  # fmt: skip


def _sqnr(holder: ir.Node, product: int) -> float | None:
    noted = holder.metadata_props.get(SQNR_KEY, "").split("\n")
    try:
        return float(noted[product])
    except (ValueError, IndexError):  # nothing, or not ours
        return None


def _name(node: ir.Node, codes: ir.Value) -> str:
    name = product_names(node, codes)[0]
    for suffix in (".weight", ".codes", ".quantized"):
        name = name.removesuffix(suffix)
    return name


GATHERS = frozenset({own_gather_nbits.STOCK_OP, own_gather_nbits.OP})
_PACKED = _CODEBOOKS | GATHERS | _OURS
"""Operators that say their bits in an attribute, since the codes may be bytes that hold several."""


def _constant(node: ir.Node, index: int | None) -> ir.Value | None:
    if index is None or index >= len(node.inputs):
        return None
    view = constant_view(node.inputs[index])
    return None if view is None else view.source


def _shape(
    node: ir.Node, holder: ir.Node, tensor: ir.TensorProtocol, bits: int, turned: bool, product: int
) -> tuple[int, ...]:
    if kind_of(holder) in (*_OURS, *_CODEBOOKS, own_gather_nbits.OP):
        rows = columns_attribute(kind_of(holder), product) if kind_of(holder) in PRODUCTS else "N"
        return holder.attributes.get_int(rows, 0), holder.attributes.get_int("K", 0)
    shape = tuple(int(d) for d in tensor.shape.numpy())
    if kind_of(holder) == own_gather_nbits.STOCK_OP:
        return (*shape[:-1], shape[-1] * 8 // bits) if tensor.dtype == ir.DataType.UINT8 else shape
    if node.op_type in ("Conv", "ConvTranspose", "QLinearConv", "ConvInteger", "Gather") or len(shape) != 2:
        return shape
    if node.op_type in ("Gemm", "QGemm"):
        turned = turned != bool(node.attributes.get_int("transB", 0))
    return shape if turned else shape[::-1]  # a product reads [K, N]


def _granularity(holder: ir.Node, shape: tuple[int, ...], scales: ir.Value | None) -> tuple[str, int | None]:
    group = holder.attributes.get_int("block_size", _BLOCKWISE.get(kind_of(holder), 0))
    if group and kind_of(holder) in _BLOCKWISE:
        return ("group", group) if group < shape[-1] or kind_of(holder) in _PACKED else ("channel", None)
    if scales is None or scales.const_value is None or scales.const_value.size == 1:
        return "tensor", None
    return "channel", None


def _dtype(holder: ir.Node, tensor: ir.TensorProtocol, bits: int) -> str:
    if kind_of(holder) in _CODEBOOKS:
        return "nf4" if holder.attributes.get_int("quant_type", 1) else "fp4"
    if kind_of(holder) in _PACKED and tensor.dtype == ir.DataType.UINT8:
        return f"uint{bits}"
    return str(tensor.dtype.name).lower()


def _symmetric(
    holder: ir.Node, dtype: ir.DataType, bits: int, places: Places, zero_points: ir.Value | None
) -> bool:
    """Every zero point is the middle of the codes; packed operators store none then."""
    given = places.zero_points is not None and places.zero_points < len(holder.inputs)
    if not given or holder.inputs[places.zero_points or 0] is None:
        return kind_of(holder) in _PACKED or dtype.is_signed()
    if zero_points is None or zero_points.const_value is None or kind_of(holder) in _PACKED:
        return False
    return is_midpoint(zero_points.const_value.numpy(), bits, dtype.is_signed())


def _role(node: ir.Node, outputs: set[ir.Value]) -> Role:
    if node.op_type == "Gather" or node.op_type in GATHERS:
        return Role.EMBEDDING
    if "Conv" in node.op_type:
        return Role.CONV
    return Role.HEAD if reaches_output(corrected_output(node), outputs) else Role.LINEAR
