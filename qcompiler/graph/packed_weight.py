"""A quantized weight as the tensors that ONNX Runtime's blockwise kernels read: packed bytes, scales [N, G], packed zero points.

Bytes of the spill file are used as they are where the scheme is one of the kernel's; a scale for a whole row or weight is repeated for
each block, and three-bit codes are lifted to four (same values).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.graph.mapped_tensor import MappedTensor
from qcompiler.graph.quantized import read_quantized, stored
from qcompiler.quant import packing
from qcompiler.quant.affine_tensor import AffineTensor
from qcompiler.quant.scheme import Granularity, QuantScheme

BLOCKS = (128, 64, 32, 16)  # for scales that a whole row shares: the fewer the better


@dataclass(frozen=True)
class PackedWeight:
    """One weight [N, K] in blocks.

    Attributes:
        block: weights that share a scale, 16 to 256.
        packed: uint8 [N, G, block * bits / 8]; a short last block is padded with its zero point.
        scales: [N, G] in the type of the activations.
        zero_points: uint8 [N, ceil(G * bits / 8)], or None for the midpoint.
    """

    name: str
    n: int
    k: int
    bits: int
    block: int
    packed: ir.TensorProtocol
    scales: ir.TensorProtocol
    zero_points: ir.TensorProtocol | None

    @property
    def block_shape(self) -> tuple[int, int, int]:
        """(N, G, bytes of a block)."""
        return self.n, -(-self.k // self.block), self.block * self.bits // 8

    @property
    def is_padded(self) -> bool:
        """The last block is short, so rows are not K weights in a row."""
        return self.k % self.block != 0

    def blocks(self) -> ir.TensorProtocol:
        """uint8 [N, G, bytes]."""
        return self.packed

    def rows(self) -> ir.TensorProtocol:
        """uint8 [N, G * bytes of a block], the same bytes: a row holds K weights and the padding of a short last block."""
        n, groups, width = self.block_shape
        return _reshaped(self.packed, (n, groups * width))


def packed_weight(dequantize: ir.Node) -> PackedWeight:
    """The weight behind a DequantizeLinear of the middle form."""
    source = dequantize.outputs[0]
    dtype = source.dtype or ir.DataType.FLOAT
    name = (source.name or "weight").removesuffix(".dequantized")
    ours = stored(dequantize)
    if ours is not None and ours.scheme.granularity is Granularity.GROUP:
        scales = (
            ours.scale
            if ours.scale.dtype == dtype
            else _tensor(ours.scales().astype(dtype.numpy()), dtype, name)
        )
        assert ours.scheme.group_size is not None
        return PackedWeight(
            name,
            ours.n,
            ours.k,
            ours.scheme.bits,
            ours.scheme.group_size,
            ours.packed,
            scales,
            ours.zero_point,
        )
    weight = packing.lift(_in_blocks(read_quantized(dequantize)))
    scheme = weight.scheme
    n, k = weight.shape
    assert scheme.group_size is not None
    packed = packing.pack_matmul_nbits(weight.codes, weight.code_zero_point, scheme)
    points = (
        None
        if weight.code_zero_point is None
        else ir.Tensor(packing.pack_zero_points(weight.code_zero_point, scheme.bits))
    )
    return PackedWeight(
        name,
        n,
        k,
        scheme.bits,
        scheme.group_size,
        ir.Tensor(packed),
        _tensor(weight.scale.astype(dtype.numpy()), dtype, name),
        points,
    )


def _in_blocks(weight: AffineTensor) -> AffineTensor:
    """The same weight with a scale for each block."""
    if weight.scheme.granularity is Granularity.GROUP:
        return weight
    n, k = weight.shape
    block = next((b for b in BLOCKS if k % b == 0), 32)
    groups = -(-k // block)
    scheme = QuantScheme(
        weight.scheme.bits, weight.scheme.symmetric, Granularity.GROUP, block, weight.scheme.scale_dtype
    )
    scale = np.ascontiguousarray(np.broadcast_to(weight.scale, (n, groups)))
    points = (
        None
        if weight.zero_point is None
        else np.ascontiguousarray(np.broadcast_to(weight.zero_point, (n, groups)))
    )
    return AffineTensor(scheme, weight.codes, scale, points)


def _tensor(values: npt.NDArray[Any], dtype: ir.DataType, name: str) -> ir.TensorProtocol:
    return ir.Tensor(values, dtype=dtype, name=f"{name}.scales")


def _reshaped(tensor: ir.TensorProtocol, shape: tuple[int, ...]) -> ir.TensorProtocol:
    if isinstance(tensor, ir.ExternalTensor):
        assert isinstance(tensor, MappedTensor) and tensor.offset is not None
        return MappedTensor(tensor.file, tensor.offset, tensor.dtype, ir.Shape(shape), tensor.name or "")
    return ir.Tensor(tensor.numpy().reshape(shape))
