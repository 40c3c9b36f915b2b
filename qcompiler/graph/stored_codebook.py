"""A codebook weight in the spill file: codes and scales in the order of com.microsoft::MatMulBnb4.

Two codes a byte, the first in the higher bits, in the order of the row-major weight [N, K]; blocks run on from row to row. ONNX's uint4 has
the first code in the lower bits, so the middle form swaps them as it is read.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.graph.mapped_tensor import MappedTensor
from qcompiler.graph.stored_quantized import SCALE_TYPES
from qcompiler.graph.streamed_tensor import StreamedTensor
from qcompiler.graph.weight_store import WeightStore
from qcompiler.quant import packing
from qcompiler.quant.codebook import CodebookTensor, DoubleQuantized
from qcompiler.quant.scheme import SCALE_BLOCK, Granularity, QuantScheme

Bytes = npt.NDArray[np.uint8]

_CHUNK = 1 << 22  # bytes turned at a time


@dataclass(frozen=True, slots=True, eq=False)
class StoredCodebook:
    """A ``CodebookTensor`` [N, K] whose parts are in the spill file.

    Attributes:
        packed: uint8 [ceil(N K / 2)], the B input of MatMulBnb4.
        scale: scheme.scale_dtype [B], the absmax input; with double quantization its codes, uint8 [B].
        step: float32 [ceil(B / SCALE_BLOCK)] of double quantization, else None.
    """

    scheme: QuantScheme
    n: int
    k: int
    packed: MappedTensor
    scale: MappedTensor
    step: MappedTensor | None

    def tensor(self) -> CodebookTensor:
        """The weight in memory; its codes take N * K bytes."""
        codes = packing.unpack_high_first(self.packed.numpy(), (self.n, self.k))
        if self.step is None:
            return CodebookTensor(self.scheme, codes, self.scale.numpy().astype(np.float32))
        double = DoubleQuantized(self.scale.numpy(), self.step.numpy())
        return CodebookTensor(self.scheme, codes, double.scales(self.scheme.scale_dtype), double)

    def record(self) -> dict[str, Any]:
        """What ``restore_codebook`` needs to find it again in the same spill file; plain JSON."""
        return {
            "scheme": {**asdict(self.scheme), "granularity": self.scheme.granularity.value},
            "shape": [self.n, self.k],
            "packed": self.packed.offset,
            "scale": self.scale.offset,
            "step": None if self.step is None else self.step.offset,
        }


def store_codebook(store: WeightStore, quantized: CodebookTensor, name: str) -> StoredCodebook:
    """Appends a codebook weight to the spill file.

    Raises:
        ResourceError: the disk is full.
    """
    n, k = quantized.shape
    scheme, double = quantized.scheme, quantized.double
    flat = packing.pack_high_first(quantized.codes)
    packed = store.add(flat, ir.DataType.UINT8, flat.shape, f"{name}.codes")
    shape = quantized.scale.shape
    if double is None:
        kind = SCALE_TYPES[scheme.scale_dtype]
        scale = store.add(quantized.scale.astype(kind.numpy()), kind, shape, f"{name}.scale")
        return StoredCodebook(scheme, n, k, packed, scale, None)
    scale = store.add(double.codes, ir.DataType.UINT8, shape, f"{name}.scale")
    step = store.add(double.step, ir.DataType.FLOAT, double.step.shape, f"{name}.step")
    return StoredCodebook(scheme, n, k, packed, scale, step)


def restore_codebook(store: WeightStore, record: dict[str, Any], name: str) -> StoredCodebook:
    """The weight that ``StoredCodebook.record`` described, in the spill file of the same bytes.

    Raises:
        ValueError: the file ends before it.
    """
    fields = record["scheme"]
    scheme = QuantScheme(**{**fields, "granularity": Granularity(fields["granularity"])})
    n, k = record["shape"]
    blocks = scheme.blocks(n, k)
    packed = store.at(record["packed"], ir.DataType.UINT8, (-(-n * k // 2),), f"{name}.codes")
    if record["step"] is None:
        scale = store.at(record["scale"], SCALE_TYPES[scheme.scale_dtype], (blocks,), f"{name}.scale")
        return StoredCodebook(scheme, n, k, packed, scale, None)
    scale = store.at(record["scale"], ir.DataType.UINT8, (blocks,), f"{name}.scale")
    step = store.at(record["step"], ir.DataType.FLOAT, (-(-blocks // SCALE_BLOCK),), f"{name}.step")
    return StoredCodebook(scheme, n, k, packed, scale, step)


class BlockCodes(StreamedTensor):
    """Stored codes as the ONNX tensor uint4 [B, g] of the middle form; a short last block is filled up with code 0."""

    __slots__ = ("stored",)

    def __init__(self, stored: StoredCodebook, name: str) -> None:
        shape = (stored.scheme.blocks(stored.n, stored.k), stored.scheme.group_width(stored.k))
        super().__init__(self._swapped, ir.DataType.UINT4, ir.Shape(shape), name=name)
        self.stored = stored

    def _swapped(self) -> Iterator[Bytes]:
        packed = self.stored.packed.packed()
        for start in range(0, packed.size, _CHUNK):
            yield packing.swap_nibbles(packed[start : start + _CHUNK])
        missing = self.nbytes - packed.size
        if missing:
            yield np.zeros(missing, np.uint8)
