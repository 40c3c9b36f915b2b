"""The middle form of a weight of 8-bit floats, which is also the last: DequantizeLinear of FLOAT8E4M3FN or FLOAT8E5M2 codes (opset 19).

The codes are in the spill file as the graph has them, [K, N] or [N, K]. Letters: N outputs, K reduction.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.errors import SchemeError
from qcompiler.graph.edits import constant
from qcompiler.graph.mapped_tensor import MappedTensor
from qcompiler.graph.node_chain import constant_of
from qcompiler.graph.quantized import LAYOUT_KEY, SCALE_KEY, SCHEME_KEY, layout_of
from qcompiler.graph.stored_quantized import SCALE_NAMES, Layout
from qcompiler.graph.weight_store import WeightStore
from qcompiler.quant.affine import store_values
from qcompiler.quant.float8 import Float8Tensor
from qcompiler.quant.scheme import Dtype, Granularity, QuantScheme

TYPES: dict[Dtype, ir.DataType] = {"e4m3": ir.DataType.FLOAT8E4M3FN, "e5m2": ir.DataType.FLOAT8E5M2}
NAMES = {kind: dtype for dtype, kind in TYPES.items()}

_CHUNK = 1 << 22  # codes turned at a time


@dataclass(frozen=True, slots=True, eq=False)
class StoredFloat8:
    """A ``Float8Tensor`` [N, K] in the spill file.

    Attributes:
        codes: [K, N] ("kn") or [N, K] of the format's type.
        scale: [N] of the type that the weight has in the graph, [] for a tensor.
    """

    scheme: QuantScheme
    layout: Layout
    codes: MappedTensor
    scale: MappedTensor

    def record(self) -> dict[str, Any]:
        """What ``restore_float8`` needs to find it again in the same spill file; plain JSON."""
        return {
            "float8": {**asdict(self.scheme), "granularity": self.scheme.granularity.value},
            "shape": list(self.codes.shape.numpy()),
            "codes": self.codes.offset,
            "scale": self.scale.offset,
        }


def store_float8(
    store: WeightStore, quantized: Float8Tensor, layout: Layout, name: str, out_dtype: ir.DataType
) -> StoredFloat8:
    """Appends a weight to the spill file.

    Raises:
        ResourceError: the disk is full.
    """
    n, k = quantized.shape
    shape = (k, n) if layout == "kn" else (n, k)
    codes = store.add(_pieces(quantized.codes, layout), TYPES[quantized.scheme.dtype], shape, f"{name}.codes")
    flat = quantized.scale.reshape(_scale_shape(quantized.scheme, n)).astype(out_dtype.numpy())
    return StoredFloat8(
        quantized.scheme, layout, codes, store.add(flat, out_dtype, flat.shape, f"{name}.scale")
    )


def restore_float8(
    store: WeightStore, record: dict[str, Any], name: str, out_dtype: ir.DataType
) -> StoredFloat8:
    """The weight that ``StoredFloat8.record`` described, in the spill file of the same bytes.

    Raises:
        ValueError: the file ends before it.
    """
    fields, layout = record["float8"], record["layout"]
    scheme = QuantScheme(**{**fields, "granularity": Granularity(fields["granularity"])})
    shape = tuple(record["shape"])
    n = shape[1] if layout == "kn" else shape[0]
    codes = store.at(record["codes"], TYPES[scheme.dtype], shape, f"{name}.codes")
    scale = store.at(record["scale"], out_dtype, _scale_shape(scheme, n), f"{name}.scale")
    return StoredFloat8(scheme, layout, codes, scale)


def float8_node(stored: StoredFloat8, name: str, out_dtype: ir.DataType) -> ir.Node:
    """A DequantizeLinear that yields a stored weight as ``name.dequantized``; see ``quantized.dequantize_node``."""
    attributes = (
        {"axis": 1 if stored.layout == "kn" else 0}
        if stored.scheme.granularity is Granularity.CHANNEL
        else {}
    )
    output = ir.Value(
        name=f"{name}.dequantized",
        type=ir.TensorType(out_dtype),
        shape=ir.Shape(stored.codes.shape.numpy()),
    )
    inputs = [constant(stored.codes, f"{name}.codes"), constant(stored.scale, f"{name}.scale")]
    node = ir.node(
        "DequantizeLinear", inputs, attributes=attributes, outputs=[output], name=f"{name}.dequantize"
    )
    scheme = stored.scheme
    node.metadata_props.update(
        {SCHEME_KEY: scheme.label, SCALE_KEY: scheme.scale_dtype, LAYOUT_KEY: stored.layout}
    )
    return node


def is_float8(node: ir.Node | None) -> bool:
    """Whether it is a DequantizeLinear of constant 8-bit floats, [., .]."""
    if node is None or node.op_type != "DequantizeLinear" or node.domain != "":
        return False
    codes = constant_of(node, 0)
    return codes is not None and codes.dtype in NAMES and len(codes.shape) == 2


def stored_float8(node: ir.Node) -> StoredFloat8 | None:
    """The stored parts behind such a node that this run made; None for any other."""
    codes, scale = constant_of(node, 0), constant_of(node, 1)
    if not is_float8(node) or not isinstance(codes, MappedTensor) or not isinstance(scale, MappedTensor):
        return None
    return StoredFloat8(_scheme(node, codes, scale), layout_of(node), codes, scale)


def read_float8(node: ir.Node) -> Float8Tensor:
    """The weight of such a node, also of one that another tool wrote; its codes take N * K bytes.

    Raises:
        SchemeError: its scales are no constants, one for each output or one for all, or it has zero points other than 0.
    """
    codes, scale = constant_of(node, 0), constant_of(node, 1)
    if codes is None or scale is None or scale.dtype not in SCALE_NAMES:
        raise SchemeError(f"{node.name}: its scales are no constant floats")
    zero_point = constant_of(node, 2)
    given = len(node.inputs) > 2 and node.inputs[2] is not None
    if given and (zero_point is None or np.asarray(zero_point.numpy().astype(np.float32)).any()):
        raise SchemeError(f"{node.name}: 8-bit floats with zero points other than 0 are not read")
    scheme, layout = _scheme(node, codes, scale), layout_of(node)
    bits = np.asarray(codes.numpy()).view(np.uint8)
    columns = np.ascontiguousarray(bits.T if layout == "kn" else bits)
    held = np.asarray(scale.numpy(), np.float32).reshape(scheme.scale_shape(*columns.shape))
    return Float8Tensor(scheme, columns, store_values(held, scheme.scale_dtype))


def _scheme(node: ir.Node, codes: ir.TensorProtocol, scale: ir.TensorProtocol) -> QuantScheme:
    if node.attributes.get_int("block_size", 0):
        raise SchemeError(f"{node.name}: 8-bit floats with a scale for each block are not read")
    granularity = Granularity.TENSOR if scale.size == 1 and not scale.shape else Granularity.CHANNEL
    held = node.metadata_props.get(SCALE_KEY)
    name = next((name for name in SCALE_NAMES.values() if name == held), SCALE_NAMES[scale.dtype])
    return QuantScheme(8, True, granularity, None, name, NAMES[codes.dtype])


def _scale_shape(scheme: QuantScheme, n: int) -> tuple[int, ...]:
    return () if scheme.granularity is Granularity.TENSOR else (n,)


def _pieces(codes: npt.NDArray[np.uint8], layout: Layout) -> Iterator[npt.NDArray[np.uint8]]:
    """The codes [N, K] as they are stored, some rows of that at a time."""
    lying = codes.T if layout == "kn" else codes
    step = max(1, _CHUNK // max(1, lying.shape[1]))
    for start in range(0, lying.shape[0], step):
        yield np.ascontiguousarray(lying[start : start + step])
