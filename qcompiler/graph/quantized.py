"""The middle form of a quantized weight: a DequantizeLinear of constants, which any ONNX tool can run.

``dequantize_node`` makes one from stored numbers and ``read_quantized`` numbers from one, also from one that another
tool wrote. Codes of less than 8 bits and groups need opset 21, int2 and uint2 opset 25. Letters: N outputs, K
reduction, G groups.
"""

from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.errors import SchemeError
from qcompiler.graph.edits import constant
from qcompiler.graph.mapped_tensor import MappedTensor
from qcompiler.graph.stored_quantized import (
    SCALE_NAMES,
    SCALE_TYPES,
    Layout,
    StoredCodes,
    StoredQuantized,
)
from qcompiler.quant import packing
from qcompiler.quant.affine import is_midpoint, unsigned_zero_point
from qcompiler.quant.affine_tensor import AffineTensor
from qcompiler.quant.scheme import Granularity, QuantScheme, ScaleDtype

KEYS = "qcompiler."
"""What our notes in a node's metadata begin with."""
SCHEME_KEY = f"{KEYS}scheme"
SCALE_KEY = f"{KEYS}scale_dtype"
LAYOUT_KEY = f"{KEYS}layout"
ALGORITHM_KEY = f"{KEYS}algorithm"
REASON_KEY = f"{KEYS}reason"
SQNR_KEY = f"{KEYS}sqnr_db"
"""Of the layer's output, in decibels, as text."""

_CODE_BITS = {
    ir.DataType.INT2: 2,
    ir.DataType.UINT2: 2,
    ir.DataType.INT4: 4,
    ir.DataType.UINT4: 4,
    ir.DataType.INT8: 8,
    ir.DataType.UINT8: 8,
}
_SIGNED = {ir.DataType.INT2, ir.DataType.INT4, ir.DataType.INT8}


def dequantize_node(stored: StoredQuantized, layout: Layout, name: str, out_dtype: ir.DataType) -> ir.Node:
    """A DequantizeLinear that yields a stored weight as [K, N] ("kn") or [N, K] ("nk").

    Its inputs ``name.codes``, ``name.scale`` and ``name.zero_point`` hold their tensors but belong to no
    graph yet (``register_constants``); its output is ``name.dequantized``. Keep ``name`` free of other
    values.

    Raises:
        SchemeError: out_dtype cannot hold the scales.
    """
    check_scales(stored.scheme, name, out_dtype)
    codes = StoredCodes(stored, layout, f"{name}.codes")
    scales = _scales(stored, layout, name, out_dtype)
    inputs = [constant(codes, f"{name}.codes"), constant(scales, f"{name}.scale")]
    if stored.zero_point is not None:
        inputs.append(constant(_zero_points(stored, layout, name, codes.dtype), f"{name}.zero_point"))
    attributes: dict[str, int] = {}
    if stored.scheme.granularity is Granularity.GROUP:
        attributes = {"axis": 0 if layout == "kn" else 1, "block_size": stored.scheme.group_width(stored.k)}
    elif stored.scheme.granularity is Granularity.CHANNEL:
        attributes = {"axis": 1 if layout == "kn" else 0}
    output = ir.Value(
        name=f"{name}.dequantized", type=ir.TensorType(out_dtype), shape=ir.Shape(codes.shape.numpy())
    )
    node = ir.node(
        "DequantizeLinear", inputs, attributes=attributes, outputs=[output], name=f"{name}.dequantize"
    )
    node.metadata_props.update(
        {SCHEME_KEY: stored.label, SCALE_KEY: stored.scheme.scale_dtype, LAYOUT_KEY: layout}
    )
    return node


def register_constants(graph: ir.Graph, node: ir.Node) -> None:
    """Makes the constant inputs of ``node`` initializers of ``graph``.

    Raises:
        ValueError: a name is taken.
    """
    for value in node.inputs:
        if value is not None and value.const_value is not None and value.producer() is None:
            graph.register_initializer(value)


def stored(node: ir.Node) -> StoredQuantized | None:
    """The packed bytes behind a DequantizeLinear that this run made; None for any other."""
    tensor = node.inputs[0].const_value if node.inputs and node.inputs[0] is not None else None
    return tensor.stored if isinstance(tensor, StoredCodes) else None


def layout_of(node: ir.Node) -> Layout:
    """Which way the weight of a DequantizeLinear lies; with one scale for all of it, as recorded, else "kn".

    Raises:
        SchemeError: it is not a constant matrix on axis 0 or 1.
    """
    if node.op_type != "DequantizeLinear" or node.domain != "":
        raise SchemeError(f"{node.name}: {node.op_type} is not a DequantizeLinear")
    codes, scale = _tensor(node, 0), _tensor(node, 1)
    if len(codes.shape) != 2:
        raise SchemeError(f"{node.name}: a weight of {len(codes.shape)} dimensions is not one matrix")
    axis = node.attributes.get_int("axis", 1) % 2
    if node.attributes.get_int("block_size", 0):
        return "nk" if axis == 1 else "kn"
    if scale.size > 1 or (len(scale.shape) == 1 and codes.shape[axis] == 1):
        return "kn" if axis == 1 else "nk"
    return cast(Layout, node.metadata_props.get(LAYOUT_KEY, "kn"))


def read_quantized(node: ir.Node) -> AffineTensor:
    """The weight of any DequantizeLinear of constants, per group, channel or tensor; its codes take N * K
    bytes.

    Raises:
        SchemeError: an input is not constant, or the numbers are none that a ``QuantScheme`` describes.
    """
    layout = layout_of(node)
    ours = stored(node)
    if ours is not None:
        return ours.affine()
    codes_tensor, scale_tensor = _tensor(node, 0), _tensor(node, 1)
    bits = _CODE_BITS.get(codes_tensor.dtype)
    if bits is None:
        raise SchemeError(f"{node.name}: codes of type {codes_tensor.dtype.name}; 2, 4 or 8 bits are read")
    if scale_tensor.dtype not in SCALE_NAMES:
        raise SchemeError(f"{node.name}: scales of type {scale_tensor.dtype.name}; float types are read")
    codes = _read_codes(codes_tensor, layout, bits)
    scale = _sides(scale_tensor.numpy().astype(np.float32), layout)
    signed = codes_tensor.dtype in _SIGNED
    points = np.zeros(scale.shape, np.int16)
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        points = _sides(_tensor(node, 2).numpy().astype(np.int16), layout)
    zero_point = unsigned_zero_point(points, bits, signed)
    symmetric = is_midpoint(points, bits, signed)
    scheme = _scheme(node, codes.shape, scale.shape, bits, symmetric, SCALE_NAMES[scale_tensor.dtype])
    expected: tuple[int, ...] = scheme.scale_shape(*codes.shape)
    if scale.shape != expected or zero_point.shape != expected:
        raise SchemeError(f"{node.name}: scales {scale.shape} do not fit codes {codes.shape}")
    return AffineTensor(scheme, codes, scale, None if symmetric else zero_point)


def _scheme(
    node: ir.Node,
    shape: tuple[int, ...],
    scale_shape: tuple[int, ...],
    bits: int,
    symmetric: bool,
    scale_dtype: ScaleDtype,
) -> QuantScheme:
    recorded = node.metadata_props.get(SCALE_KEY)
    if recorded in SCALE_TYPES:
        scale_dtype = recorded
    block = node.attributes.get_int("block_size", 0)
    try:
        if block and block < shape[1]:
            return QuantScheme(bits, symmetric, Granularity.GROUP, block, scale_dtype)
    except SchemeError as error:
        raise SchemeError(f"{node.name}: {error}") from error
    one = len(_tensor(node, 1).shape) == 0 or scale_shape[0] != shape[0]
    return QuantScheme(bits, symmetric, Granularity.TENSOR if one else Granularity.CHANNEL, None, scale_dtype)


def notes_groups(node: ir.Node) -> bool:
    """Whether our notes on a node say that its weight has a scale for each group, not for each output or for all."""
    return " g" in node.metadata_props.get(SCHEME_KEY, "")


def check_scales(scheme: QuantScheme, name: str, out_dtype: ir.DataType) -> None:
    """Raises SchemeError where a weight of ``out_dtype`` cannot have the scheme's scales."""
    if out_dtype not in (ir.DataType.FLOAT, SCALE_TYPES[scheme.scale_dtype]):
        wanted = SCALE_NAMES.get(out_dtype, "float32")
        raise SchemeError(
            f"{name}: {scheme.scale_dtype} scales do not fit a {out_dtype.name} weight; "
            f"set scale_dtype: {wanted}"
        )


def _tensor(node: ir.Node, index: int) -> ir.TensorProtocol:
    value = node.inputs[index] if index < len(node.inputs) else None
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    if tensor is None:
        raise SchemeError(f"{node.name}: input {index} is not a constant")
    return tensor


def _scales(stored: StoredQuantized, layout: Layout, name: str, dtype: ir.DataType) -> ir.LazyTensor:
    shape = _side_shape(stored, layout)

    def make() -> ir.Tensor[npt.NDArray[Any]]:
        values = stored.scale.numpy()
        turned = values.T if layout == "kn" else values
        return ir.Tensor(np.ascontiguousarray(turned.astype(dtype.numpy())).reshape(shape), dtype)

    return ir.LazyTensor(make, dtype, ir.Shape(shape), name=f"{name}.scale")


def _zero_points(stored: StoredQuantized, layout: Layout, name: str, dtype: ir.DataType) -> ir.LazyTensor:
    shape = _side_shape(stored, layout)

    def make() -> ir.Tensor[npt.NDArray[Any]]:
        values = stored.zero_points()
        assert values is not None
        turned = values.T if layout == "kn" else values
        return ir.Tensor(np.ascontiguousarray(turned).reshape(shape), dtype)

    return ir.LazyTensor(make, dtype, ir.Shape(shape), name=f"{name}.zero_point")


def _side_shape(stored: StoredQuantized, layout: Layout) -> tuple[int, ...]:
    """Shape of scales and zero points in ONNX: [G, N] or [N, G], [N] for a channel, [] for a tensor."""
    n, groups = stored.scheme.scale_shape(stored.n, stored.k)
    if stored.scheme.granularity is Granularity.TENSOR:
        return ()
    if stored.scheme.granularity is Granularity.CHANNEL:
        return (n,)
    return (groups, n) if layout == "kn" else (n, groups)


def _sides(values: npt.NDArray[Any], layout: Layout) -> npt.NDArray[Any]:
    """Scales or zero points as [N, G], [N, 1] or [1, 1]."""
    if values.ndim < 2:
        return values.reshape(-1, 1)
    return np.ascontiguousarray(values.T) if layout == "kn" else values


def _read_codes(tensor: ir.TensorProtocol, layout: Layout, bits: int) -> npt.NDArray[np.uint8]:
    """The unsigned codes, uint8 [N, K]."""
    if isinstance(tensor, MappedTensor):
        packed = tensor.packed()
    else:
        packed = np.frombuffer(tensor.tobytes(), np.uint8)
    rows, columns = tensor.shape.numpy()
    if layout == "kn":
        codes = packing.unpack_transposed(packed, rows, columns, bits)
    else:
        codes = packing.unpack_flat(packed, (rows, columns), bits)
    return packing.shift_sign(codes, bits) if tensor.dtype in _SIGNED else codes.copy()
