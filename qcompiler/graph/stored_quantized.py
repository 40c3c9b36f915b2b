"""A quantized weight in the spill file: codes, scales and zero points in the order of
com.microsoft::MatMulNBits.

Lowering to that operator uses the bytes as they are; ``StoredCodes`` presents them as an ONNX tensor to
everything else. Letters: N outputs, K reduction, G groups along K.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.graph.mapped_tensor import MappedTensor
from qcompiler.graph.streamed_tensor import StreamedTensor
from qcompiler.graph.weight_store import WeightStore
from qcompiler.quant import packing
from qcompiler.quant.affine_tensor import AffineTensor, ZeroPoints
from qcompiler.quant.scheme import Granularity, QuantScheme, ScaleDtype

Bytes = npt.NDArray[np.uint8]
Layout: TypeAlias = Literal["kn", "nk"]
"""Which way a weight lies in the graph: [K, N] as MatMul wants it, or [N, K] as Gather and a tied head do."""

SCALE_TYPES: dict[ScaleDtype, ir.DataType] = {
    "float32": ir.DataType.FLOAT,
    "float16": ir.DataType.FLOAT16,
    "bfloat16": ir.DataType.BFLOAT16,
}
SCALE_NAMES = {dtype: name for name, dtype in SCALE_TYPES.items()}

_CHUNK = 1 << 22  # codes turned at a time: temporaries of a few MB


@dataclass(frozen=True, slots=True, eq=False)
class StoredQuantized:
    """An ``AffineTensor`` [N, K] whose parts are in the spill file.

    Attributes:
        scheme: of the stored codes; three bits are stored as four.
        label: of the scheme that was asked for.
        n: rows.
        k: weights in a row.
        packed: uint8 [N, G, ceil(group width * bits / 8)]; for groups the B input of MatMulNBits.
        scale: scheme.scale_dtype, [N, G], [N, 1] for a channel, [1, 1] for a tensor.
        zero_point: uint8 [N, ceil(G * bits / 8)] (or [1, 1]), the zero_points of MatMulNBits; float ones are of the scales' type and
            shape; None: the midpoint.
    """

    scheme: QuantScheme
    label: str
    n: int
    k: int
    packed: MappedTensor
    scale: MappedTensor
    zero_point: MappedTensor | None

    @property
    def nbytes(self) -> int:
        """Bytes of all parts."""
        return self.packed.nbytes + self.scale.nbytes + (self.zero_point.nbytes if self.zero_point else 0)

    def scales(self) -> npt.NDArray[np.float32]:
        """The scales as float32 [N, G], [N, 1] or [1, 1]."""
        return self.scale.numpy().astype(np.float32)

    def zero_points(self) -> ZeroPoints | None:
        """The zero points unpacked, uint8 (float32 for float ones) of the scales' shape."""
        if self.zero_point is None:
            return None
        if self.scheme.has_float_zero_points:
            return self.zero_point.numpy().astype(np.float32)
        groups = self.scheme.scale_shape(self.n, self.k)[1]
        return packing.unpack_zero_points(self.zero_point.numpy(), groups, self.scheme.bits)

    def codes(self, rows: slice) -> Bytes:
        """The codes of some rows, uint8 [rows, K]."""
        return packing.unpack_matmul_nbits(self.packed.numpy()[rows], self.k, self.scheme.bits)

    def affine(self) -> AffineTensor:
        """The weight in memory; its codes take N * K bytes."""
        return AffineTensor(self.scheme, self.codes(slice(None)), self.scales(), self.zero_points())

    def record(self) -> dict[str, Any]:
        """What ``restore`` needs to find it again in the same spill file; plain JSON."""
        return {
            "scheme": {**asdict(self.scheme), "granularity": self.scheme.granularity.value},
            "label": self.label,
            "shape": [self.n, self.k],
            "packed": self.packed.offset,
            "scale": self.scale.offset,
            "zero_point": None if self.zero_point is None else self.zero_point.offset,
        }


def store_quantized(
    store: WeightStore, quantized: AffineTensor | Iterable[AffineTensor], name: str, n: int | None = None
) -> StoredQuantized:
    """Appends a quantized weight to the spill file.

    Args:
        store: the spill file.
        quantized: the weight, or its blocks of rows in order, each made when the one before is written.
        name: of the weight, for messages.
        n: rows of all blocks together; needed with blocks only.

    Raises:
        ResourceError: the disk is full.
        ValueError: blocks of different schemes, or not of ``n`` rows.
    """
    if isinstance(quantized, AffineTensor):
        n, blocks = quantized.shape[0], _row_blocks(quantized)
    else:
        blocks = iter(quantized)
    first = next(blocks, None)
    if n is None or first is None:
        raise ValueError(f"{name}: blocks need their number of rows, and at least one of them")
    asked, k = first.scheme, first.shape[1]
    scheme = replace(asked, bits=asked.storage_bits)
    scales: list[npt.NDArray[np.float32]] = []
    zero_points: list[npt.NDArray[Any]] = []
    scale_type = SCALE_TYPES[scheme.scale_dtype]
    floats = scheme.has_float_zero_points

    def pieces(block: AffineTensor | None) -> Iterator[Bytes]:
        while block is not None:
            if block.scheme != asked or block.shape[1] != k:
                found = f"{block.scheme.label}, K={block.shape[1]}"
                raise ValueError(f"{name}: a block of {found} after {asked.label}, K={k}")
            lifted = packing.lift(block)
            scales.append(lifted.scale)
            if lifted.code_zero_point is not None:
                zero_points.append(packing.pack_zero_points(lifted.code_zero_point, scheme.bits))
            elif lifted.zero_point is not None:
                zero_points.append(lifted.zero_point.astype(scale_type.numpy()))
            yield _pack(lifted)
            block = next(blocks, None)

    width = -(-scheme.group_width(k) * scheme.bits // 8)
    packed = store.add(pieces(first), ir.DataType.UINT8, (n, scheme.groups(k), width), f"{name}.codes")
    if scheme.granularity is Granularity.TENSOR:  # every block repeats the one scale
        del scales[1:], zero_points[1:]
    shape = scheme.scale_shape(n, k)
    held = np.concatenate(scales).astype(scale_type.numpy())
    scale = store.add(held, scale_type, shape, f"{name}.scale")
    zero_point = None
    if zero_points:
        joined = np.concatenate(zero_points)
        kind = scale_type if floats else ir.DataType.UINT8
        zero_point = store.add(joined, kind, joined.shape, f"{name}.zero_point")
    return StoredQuantized(scheme, asked.label, n, k, packed, scale, zero_point)


def restore(store: WeightStore, record: dict[str, Any], name: str) -> StoredQuantized:
    """The weight that ``StoredQuantized.record`` described, in the spill file of the same bytes.

    Raises:
        ValueError: the file ends before it.
    """
    fields = record["scheme"]
    scheme = QuantScheme(**{**fields, "granularity": Granularity(fields["granularity"])})
    n, k = record["shape"]
    groups, width = scheme.groups(k), -(-scheme.group_width(k) * scheme.bits // 8)
    rows, columns = scheme.scale_shape(n, k)
    packed = store.at(record["packed"], ir.DataType.UINT8, (n, groups, width), f"{name}.codes")
    scale = store.at(record["scale"], SCALE_TYPES[scheme.scale_dtype], (rows, columns), f"{name}.scale")
    zero_point = None
    if record["zero_point"] is not None:
        floats = scheme.has_float_zero_points
        shape = (rows, columns if floats else -(-columns * scheme.bits // 8))
        kind = SCALE_TYPES[scheme.scale_dtype] if floats else ir.DataType.UINT8
        zero_point = store.at(record["zero_point"], kind, shape, f"{name}.zero_point")
    return StoredQuantized(scheme, record["label"], n, k, packed, scale, zero_point)


class StoredCodes(StreamedTensor):
    """Stored codes as the ONNX tensor [K, N] or [N, K] that DequantizeLinear takes.

    Symmetric codes are signed (intN, zero point 0), others unsigned (uintN). Nothing is turned around before
    it is read. ``kernel``: [N, ..], what K is laid out as in a convolution's kernel; "nk".
    """

    __slots__ = ("layout", "stored")

    def __init__(
        self, stored: StoredQuantized, layout: Layout, name: str, kernel: tuple[int, ...] | None = None
    ) -> None:
        kind = "INT" if stored.scheme.symmetric else "UINT"
        shape = kernel or ((stored.k, stored.n) if layout == "kn" else (stored.n, stored.k))
        pieces = self._strips if layout == "kn" else self._rows
        super().__init__(pieces, ir.DataType[f"{kind}{stored.scheme.bits}"], ir.Shape(shape), name=name)
        self.stored = stored
        self.layout = layout

    def _rows(self) -> Iterator[Bytes]:
        """Blocks of N, each a whole number of bytes: 8 codes are."""
        stored = self.stored
        step = max(8, _CHUNK // stored.k // 8 * 8)
        for start in range(0, stored.n, step):
            codes = stored.codes(slice(start, start + step))
            yield packing.pack_flat(self._signed(codes), stored.scheme.bits)

    def _strips(self) -> Iterator[Bytes]:
        """Strips of K, each a whole number of groups, or in a single group of bytes."""
        stored, bits = self.stored, self.stored.scheme.bits
        packed = stored.packed.numpy()
        groups = packed.shape[1]
        unit = stored.scheme.group_width(stored.k) if groups > 1 else 8
        step = max(unit, _CHUNK // stored.n // unit * unit)
        for start in range(0, stored.k, step):
            stop = min(start + step, stored.k)
            if groups > 1:
                part = packed[:, start // unit : -(-stop // unit)]
            else:
                part = packed[:, :, start * bits // 8 : -(-stop * bits // 8)]
            codes = packing.unpack_matmul_nbits(part, stop - start, bits)
            yield packing.pack_flat(self._signed(codes).T, bits)

    def _signed(self, codes: Bytes) -> Bytes:
        return packing.shift_sign(codes, self.stored.scheme.bits) if self.stored.scheme.symmetric else codes


def _row_blocks(quantized: AffineTensor) -> Iterator[AffineTensor]:
    n, k = quantized.shape
    one = quantized.scheme.granularity is Granularity.TENSOR
    step = max(1, _CHUNK // k)
    for start in range(0, n, step):
        rows = slice(start, start + step)
        sides = slice(None) if one else rows
        zero_point = None if quantized.zero_point is None else quantized.zero_point[sides]
        yield AffineTensor(quantized.scheme, quantized.codes[rows], quantized.scale[sides], zero_point)


def _pack(block: AffineTensor) -> Bytes:
    if block.scheme.granularity is Granularity.GROUP:
        # Beside float zero points the middle is what means 0: their part is added for a whole group.
        return packing.pack_matmul_nbits(block.codes, block.code_zero_point, block.scheme)
    # rows that each start a byte, as those of zero points do
    return packing.pack_zero_points(block.codes, block.scheme.bits)
