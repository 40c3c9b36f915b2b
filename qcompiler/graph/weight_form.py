"""The middle form of any quantized weight: the one place that knows which numbers become which nodes.

What may stand beside the codes is added to the product, see ``correction_form``. A weight with groups of rows is stored as its transpose,
so it lies the other way: "nk" where a product reads it.
"""

from dataclasses import replace
from typing import Any

import onnx_ir as ir

from qcompiler.graph.codebook_form import (
    codebook_form,
    codebook_nodes,
    emit_codebook,
    read_codebook,
    stored_codebook,
)
from qcompiler.graph.float8_form import (
    StoredFloat8,
    float8_node,
    is_float8,
    read_float8,
    restore_float8,
    store_float8,
    stored_float8,
)
from qcompiler.graph.float_zero_points import (
    float_zero_point_nodes,
    float_zero_points,
    read_float_zero_points,
)
from qcompiler.graph.node_chain import constant_of
from qcompiler.graph.offset_form import offset_form
from qcompiler.graph.quantized import (
    check_scales,
    dequantize_node,
    layout_of,
    read_quantized,
)
from qcompiler.graph.quantized import stored as stored_quantized
from qcompiler.graph.stored_codebook import StoredCodebook, restore_codebook
from qcompiler.graph.stored_quantized import Layout, StoredQuantized, restore, store_quantized
from qcompiler.graph.stored_two_level import StoredTwoLevel, restore_two_level, store_two_level
from qcompiler.graph.two_level_form import read_two_level, two_level_nodes
from qcompiler.graph.weight_store import WeightStore
from qcompiler.quant.codebook import CodebookTensor
from qcompiler.quant.float8 import Float8Tensor
from qcompiler.quant.tensor import BaseTensor
from qcompiler.quant.two_level import TwoLevelTensor


def emit_weight(
    store: WeightStore, quantized: BaseTensor, layout: Layout, name: str, out_dtype: ir.DataType
) -> list[ir.Node]:
    """Stores a weight and makes the nodes that yield it, in order; the last carries the notes.

    Raises:
        ResourceError: the disk is full.
        SchemeError: out_dtype cannot hold the scales.
    """
    if isinstance(quantized, CodebookTensor):
        return emit_codebook(store, quantized, layout, name, out_dtype)
    if isinstance(quantized, TwoLevelTensor):
        check_scales(quantized.scheme, name, out_dtype)
        return two_level_nodes(store_two_level(store, quantized, name), layout, name, out_dtype)
    check_scales(quantized.scheme, name, out_dtype)
    if isinstance(quantized, Float8Tensor):
        return [float8_node(store_float8(store, quantized, layout, name, out_dtype), name, out_dtype)]
    label = quantized.scheme.label
    if quantized.scheme.groups_rows:
        quantized, layout = quantized.turned, "nk" if layout == "kn" else "kn"
    stored = replace(store_quantized(store, quantized, name), label=label)
    return _affine_nodes(stored, layout, name, out_dtype)


def restore_weight(
    store: WeightStore, record: dict[str, Any], name: str, out_dtype: ir.DataType
) -> list[ir.Node]:
    """The same from what ``record_of`` gave, with the spill file of the same bytes.

    Raises:
        ValueError: the file ends before it.
    """
    layout: Layout = record["layout"]
    if "float8" in record:
        return [float8_node(restore_float8(store, record, name, out_dtype), name, out_dtype)]
    if "step" in record:
        return codebook_nodes(restore_codebook(store, record, name), layout, name, out_dtype)
    if "minima" in record:
        return two_level_nodes(restore_two_level(store, record, name), layout, name, out_dtype)
    return _affine_nodes(restore(store, record, name), layout, name, out_dtype)


def record_of(node: ir.Node) -> dict[str, Any]:
    """What ``restore_weight`` needs, of the last node of a weight that this run stored; plain JSON."""
    form, with_offsets = codebook_form(node), offset_form(node)
    kept: StoredQuantized | StoredCodebook | StoredTwoLevel | StoredFloat8 | None
    if form is not None:
        kept, layout = stored_codebook(form), form.layout
    elif with_offsets is not None:
        kept, layout = with_offsets.stored, with_offsets.layout
    else:
        kept, layout = stored_float8(node) or stored_quantized(node), layout_of(node)
    assert kept is not None, node.name
    return kept.record() | {"layout": layout}


def _affine_nodes(
    stored: StoredQuantized, layout: Layout, name: str, out_dtype: ir.DataType
) -> list[ir.Node]:
    if stored.scheme.has_float_zero_points:
        return float_zero_point_nodes(stored, layout, name, out_dtype)
    return [dequantize_node(stored, layout, name, out_dtype)]


def is_in_codes(value: ir.Value) -> bool:
    """Whether a value is a constant that is stored in codes: a middle form, or a DequantizeLinear of another tool, also behind nodes that
    turn, cast or reshape it."""
    node = value.producer()
    while node is not None:
        if node.op_type == "DequantizeLinear":
            return constant_of(node, 0) is not None
        if codebook_form(node) is not None or offset_form(node) is not None:
            return True
        source = node.inputs[0] if node.op_type in ("Identity", "Cast", "Transpose", "Reshape") else None
        node = None if source is None else source.producer()
    return False


def read_weight(node: ir.Node | None) -> tuple[BaseTensor, Layout] | None:
    """The weight whose last node this is, in memory, and which way it lies; None where that is no weight.

    One with groups of rows is read as it is stored: its transpose, lying the other way.

    Raises:
        SchemeError: a DequantizeLinear of constants whose numbers no ``QuantScheme`` describes.
    """
    if node is None:
        return None
    with_offsets = offset_form(node)
    if with_offsets is not None:
        two_level, parts = read_two_level(with_offsets), float_zero_points(with_offsets)
        if two_level is not None:
            return two_level, with_offsets.layout
        return None if parts is None else (read_float_zero_points(with_offsets, *parts), with_offsets.layout)
    if node.op_type == "DequantizeLinear":
        codes = node.inputs[0]
        if codes is None or not codes.is_initializer() or codes.shape is None or len(codes.shape) != 2:
            return None  # an activation, a kernel or a bias
        return (read_float8(node) if is_float8(node) else read_quantized(node)), layout_of(node)
    form = codebook_form(node)
    return None if form is None else (read_codebook(form), form.layout)
