"""The middle form of a codebook weight, in plain ONNX that any tool can run:

    table [16], codes uint4 [B, g] -> Cast to int32 -> Gather -> [B, g]
    scale [B] -> Reshape [B, 1] -> Mul with it -> Reshape [N, K] (-> Transpose, layout "kn")

``emit_codebook`` makes one from numbers; ``codebook_form`` finds one, and ``read_codebook`` numbers in it. Where the last
block is short, its filling is cut off (Reshape, Slice) before the last Reshape. Scales in 8 bits are codes uint8 [b, 256] ->
Cast -> Mul with a step [b, 1] -> Reshape [B] (-> Slice): ONNX Runtime folds that when it loads the model (a DequantizeLinear it
would compute in every run). The arithmetic is in float32; Casts stand around it in a model of another type. Letters: N
outputs, K reduction, B blocks of g.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.graph.edits import constant
from qcompiler.graph.node_chain import NodeChain, constant_of, integers_of, producer_of
from qcompiler.graph.quantized import check_scales
from qcompiler.graph.stored_codebook import BlockCodes, StoredCodebook, store_codebook
from qcompiler.graph.stored_quantized import SCALE_NAMES, Layout
from qcompiler.graph.weight_store import WeightStore
from qcompiler.quant.codebook import TABLES, CodebookTensor, DoubleQuantized, table_name
from qcompiler.quant.scheme import SCALE_BLOCK, Dtype, Granularity, QuantScheme

FLOAT = ir.DataType.FLOAT


@dataclass(frozen=True, eq=False)
class CodebookForm:
    """What the nodes say; no number is read but the table and the shapes.

    Attributes:
        dtype: name of the table.
        shape: (N, K).
        layout: "kn" where a Transpose ends it.
        block: g.
        source: holds the codes.
        codes: uint4 [B, g].
        scale: [B], the value that the kernel's absmax is.
        double: codes uint8 [b, 256] and step float32 [b, 1] that ``scale`` comes from, or None: it is a constant.
    """

    dtype: Dtype
    shape: tuple[int, int]
    layout: Layout
    block: int
    source: ir.Value
    codes: ir.TensorProtocol
    scale: ir.Value
    double: tuple[ir.TensorProtocol, ir.TensorProtocol] | None

    @property
    def blocks(self) -> int:
        """B."""
        return -(-self.shape[0] * self.shape[1] // self.block)

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and steps; the filling of short ends included."""
        sides = self.double or (ir.convenience.get_const_tensor(self.scale),)
        return int(self.codes.nbytes) + sum(int(side.nbytes) for side in sides if side is not None)


def emit_codebook(
    store: WeightStore, quantized: CodebookTensor, layout: Layout, name: str, out_dtype: ir.DataType
) -> list[ir.Node]:
    """Stores a weight and makes the nodes that yield it; see ``codebook_nodes``.

    Raises:
        ResourceError: the disk is full.
        SchemeError: out_dtype cannot hold the scales.
    """
    check_scales(quantized.scheme, name, out_dtype)
    return codebook_nodes(store_codebook(store, quantized, name), layout, name, out_dtype)


def codebook_nodes(
    stored: StoredCodebook, layout: Layout, name: str, out_dtype: ir.DataType
) -> list[ir.Node]:
    """Nodes in order; the last yields ``name.dequantized`` as [K, N] ("kn") or [N, K] ("nk") and carries the notes.

    Their constants belong to no graph yet (``register_constants``). Keep ``name`` free of other values.

    Raises:
        SchemeError: out_dtype cannot hold the scales.
    """
    check_scales(stored.scheme, name, out_dtype)
    scheme, n, k = stored.scheme, stored.n, stored.k
    chain = NodeChain(name)
    codes = BlockCodes(stored, f"{name}.codes")
    index = chain.add("Cast", [constant(codes, f"{name}.codes")], "index", to=ir.DataType.INT32.value)
    table = ir.Tensor(TABLES[scheme.dtype], name=f"{name}.table")
    values = chain.add("Gather", [constant(table, f"{name}.table"), index], "values")
    scale = _scale(stored, chain, name, out_dtype)
    if out_dtype != FLOAT:
        scale = chain.add("Cast", [scale], "scale.float", to=FLOAT.value)
    column = chain.reshape(scale, (-1, 1), "scale.column")
    values = chain.add("Mul", [values, column], "blocks")
    if n * k % scheme.group_width(k):
        values = chain.cut(values, n * k, "blocks")
    return chain.end(chain.reshape(values, (n, k), "rows"), (n, k), layout, out_dtype, scheme.label)


def codebook_form(node: ir.Node | None) -> CodebookForm | None:
    """The form whose last node this is, or None; constants may be initializers or Constant nodes."""
    layout: Layout = "nk"
    if node is not None and node.op_type == "Transpose":
        if node.attributes.get_ints("perm", (1, 0)) != (1, 0):
            return None
        node, layout = producer_of(node, 0, "Cast") or producer_of(node, 0, "Reshape"), "kn"
    if node is not None and node.op_type == "Cast":
        node = producer_of(node, 0, "Reshape")
    shape = (
        integers_of(node, 1) if node is not None and node.op_type == "Reshape" and node.domain == "" else None
    )
    if node is None or shape is None or shape.size != 2 or (shape < 1).any():
        return None
    product = _product(producer_of(node, 0, "Slice") or node)
    values, column = producer_of(product, 0, "Gather"), producer_of(product, 1, "Reshape")
    if product is None or product.op_type != "Mul" or values is None or column is None:
        return None
    index = producer_of(values, 1, "Cast")
    table, codes = constant_of(values, 0), constant_of(index, 0)
    if table is None or codes is None or codes.dtype != ir.DataType.UINT4 or len(codes.shape) != 2:
        return None
    dtype = table_name(table.numpy()) if table.size == 16 else None
    cast = producer_of(column, 0, "Cast")
    scale = column.inputs[0] if cast is None else cast.inputs[0]
    source = None if index is None else index.inputs[0]
    if dtype is None or scale is None or source is None:
        return None
    double = None
    if ir.convenience.get_const_tensor(scale) is None:
        double = double_scales(scale)
        if double is None:
            return None
    n, k = (int(d) for d in shape)
    block = int(codes.shape.numpy()[1])
    if codes.shape.numpy() != (-(-n * k // block), block):
        return None
    return CodebookForm(dtype, (n, k), layout, block, source, codes, scale, double)


def stored_codebook(form: CodebookForm) -> StoredCodebook | None:
    """The packed bytes behind a form that this run made; None for any other."""
    return form.codes.stored if isinstance(form.codes, BlockCodes) else None


def read_codebook(form: CodebookForm) -> CodebookTensor:
    """The weight; its codes take N * K bytes.

    Raises:
        SchemeError: the numbers are none that a ``QuantScheme`` describes.
    """
    ours = stored_codebook(form)
    if ours is not None:
        return ours.tensor()
    n, k = form.shape
    codes = form.codes.numpy().astype(np.uint8).reshape(-1)[: n * k].reshape(n, k)
    name = SCALE_NAMES.get(form.scale.dtype or FLOAT, "float32")
    scheme = QuantScheme(
        4, True, Granularity.GROUP, form.block, name, form.dtype, double_quant=form.double is not None
    )
    if form.double is None:
        tensor = ir.convenience.get_const_tensor(form.scale)
        assert tensor is not None
        return CodebookTensor(scheme, codes, tensor.numpy().astype(np.float32).reshape(-1))
    double = DoubleQuantized(
        form.double[0].numpy().reshape(-1)[: form.blocks].copy(), form.double[1].numpy().reshape(-1).copy()
    )
    return CodebookTensor(scheme, codes, double.scales(scheme.scale_dtype), double)


def _scale(stored: StoredCodebook, chain: NodeChain, name: str, dtype: ir.DataType) -> ir.Value:
    """The scales [B] in the weight's type."""
    blocks = int(stored.scale.shape.numpy()[0])
    if stored.step is None:

        def make() -> ir.Tensor[npt.NDArray[Any]]:
            return ir.Tensor(stored.scale.numpy().astype(dtype.numpy()), dtype)

        same = stored.scale.dtype == dtype
        held = stored.scale if same else ir.LazyTensor(make, dtype, ir.Shape((blocks,)), name=f"{name}.scale")
        return constant(held, f"{name}.scale")
    steps = int(stored.step.shape.numpy()[0])

    def padded() -> ir.Tensor[npt.NDArray[Any]]:
        codes = np.zeros(steps * SCALE_BLOCK, np.uint8)
        codes[:blocks] = stored.scale.numpy()
        return ir.Tensor(codes.reshape(steps, SCALE_BLOCK))

    codes = ir.LazyTensor(
        padded, ir.DataType.UINT8, ir.Shape((steps, SCALE_BLOCK)), name=f"{name}.scale.codes"
    )
    step = ir.Tensor(stored.step.numpy().reshape(steps, 1).copy(), name=f"{name}.scale.step")
    numbers = chain.add("Cast", [constant(codes, f"{name}.scale.codes")], "scale.numbers", to=FLOAT.value)
    scale = chain.add("Mul", [numbers, constant(step, f"{name}.scale.step")], "scale.blocks")
    if blocks % SCALE_BLOCK:
        scale = chain.cut(scale, blocks, "scale")
    else:
        scale = chain.reshape(scale, (-1,), "scale")
    if dtype != FLOAT:
        scale = chain.add("Cast", [scale], "scale.cast", to=dtype.value)
    scale.type, scale.shape = ir.TensorType(dtype), ir.Shape((blocks,))
    return scale


def double_scales(scale: ir.Value) -> tuple[ir.TensorProtocol, ir.TensorProtocol] | None:
    """8-bit codes [b, 256] and steps [b, 1] that scales are computed from."""
    node = scale.producer()
    if node is not None and node.op_type == "Cast":
        node = producer_of(node, 0, "Slice") or producer_of(node, 0, "Reshape")
    if node is None or node.op_type not in ("Slice", "Reshape"):
        return None
    product = _product(node)
    codes, step = constant_of(producer_of(product, 0, "Cast"), 0), constant_of(product, 1)
    if codes is None or step is None or codes.dtype != ir.DataType.UINT8:
        return None
    if tuple(codes.shape.numpy()) != (step.size, SCALE_BLOCK):
        return None
    return codes, step


def _product(node: ir.Node) -> ir.Node | None:
    """The Mul that a Reshape, or a Slice of one, reads."""
    reshape = producer_of(node, 0, "Reshape") if node.op_type == "Slice" else node
    return producer_of(reshape, 0, "Mul")
