"""Integer codes with float zero points, in the ``offset_form``: offset = (middle - zero_point) * scale, by Sub and Mul over constants.

ONNX's DequantizeLinear takes zero points of the codes' type alone. Those of MatMulNBits may be floats, but ONNX Runtime's CPU kernel then
unpacks the whole weight in every run (docs/decisions/0015).
"""

import numpy as np
import onnx_ir as ir

from qcompiler.graph.node_chain import NodeChain, constant_of, producer_of, uncast
from qcompiler.graph.offset_form import FLOAT, OffsetForm, held_as, offset_nodes
from qcompiler.graph.quantized import check_scales
from qcompiler.graph.stored_quantized import SCALE_NAMES, Layout, StoredQuantized
from qcompiler.quant.affine_tensor import AffineTensor
from qcompiler.quant.scheme import Granularity, QuantScheme


def float_zero_point_nodes(
    stored: StoredQuantized, layout: Layout, name: str, out_dtype: ir.DataType
) -> list[ir.Node]:
    """Nodes in order; the last yields the weight and carries the notes; see ``offset_nodes``.

    Raises:
        SchemeError: out_dtype cannot hold the scales.
    """
    check_scales(stored.scheme, name, out_dtype)
    assert stored.zero_point is not None
    chain = NodeChain(name)
    scale, zero_point = chain.hold(stored.scale, "scale"), chain.hold(stored.zero_point, "zero_point")
    middle = chain.hold(np.array(stored.scheme.midpoint, np.float32), "middle")
    kept = stored.scale.dtype == FLOAT
    scales = scale if kept else chain.add("Cast", [scale], "scale.float32", to=FLOAT.value)
    points = zero_point if kept else chain.add("Cast", [zero_point], "zero_point.float32", to=FLOAT.value)
    moved = chain.add("Sub", [middle, points], "from_middle")
    offset = chain.add("Mul", [moved, scales], "offset")
    offset = held_as(
        chain,
        offset,
        stored.scheme.scale_dtype,
        out_dtype,
        stored.scheme.scale_shape(stored.n, stored.k),
        "offset",
    )
    return offset_nodes(
        chain, stored, scales if out_dtype == FLOAT else scale, offset, layout, name, out_dtype
    )


def float_zero_points(form: OffsetForm) -> tuple[ir.TensorProtocol, ir.TensorProtocol] | None:
    """Scales and zero points [N, G] that a form's offsets are computed from; None where that is no such form."""
    product = None if form.offset is None else uncast(form.offset).producer()
    if product is None or product.op_type != "Mul":
        return None
    moved = producer_of(product, 0, "Sub")
    if moved is None or product.inputs[1] is None or moved.inputs[1] is None:
        return None
    middle = constant_of(moved, 0)
    scale, point = (
        ir.convenience.get_const_tensor(uncast(value)) for value in (product.inputs[1], moved.inputs[1])
    )
    if scale is None or point is None or middle is None or middle.size != 1:
        return None
    return (scale, point) if float(middle.numpy().item()) == 1 << (form.bits - 1) else None


def read_float_zero_points(
    form: OffsetForm, scale: ir.TensorProtocol, point: ir.TensorProtocol
) -> AffineTensor:
    """The weight; its codes take N * K bytes."""
    ours = form.stored
    if isinstance(ours, StoredQuantized):
        return ours.affine()
    scheme = QuantScheme(
        form.bits,
        False,
        Granularity.GROUP,
        form.group,
        SCALE_NAMES.get(scale.dtype, "float32"),
        zero_point="float",
    )
    return AffineTensor(
        scheme, form.unsigned_codes(), scale.numpy().astype(np.float32), point.numpy().astype(np.float32)
    )
