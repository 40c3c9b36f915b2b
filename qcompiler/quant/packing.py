"""Codes <-> bytes: the layouts of com.microsoft::MatMulNBits and MatMulBnb4, and ONNX's int2, uint2, int4 and uint4.

All of it but MatMulBnb4's bytes is little end first: the code with the lower index sits in the lower bits. One- and three-bit
codes have no layout of their own; ``lift`` makes two- and four-bit ones of them. Letters: N outputs, K reduction, G groups of g
along K.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from qcompiler.errors import SchemeError
from qcompiler.quant.affine_tensor import AffineTensor
from qcompiler.quant.scheme import QuantScheme

Bytes = npt.NDArray[np.uint8]

_CHUNK = 1 << 22  # codes turned at a time: temporaries of a few MB


def lift(tensor: AffineTensor) -> AffineTensor:
    """The same weights with codes that have a packed layout: three bits become four, one becomes two."""
    if tensor.scheme.bits == tensor.scheme.storage_bits:
        return tensor
    scheme = replace(tensor.scheme, bits=tensor.scheme.storage_bits)
    shift = scheme.midpoint - tensor.scheme.midpoint if tensor.zero_point is None else 0
    codes = tensor.codes + np.uint8(shift) if shift else tensor.codes
    return AffineTensor(scheme, codes, tensor.scale, tensor.zero_point)


def pack_matmul_nbits(codes: Bytes, zero_point: Bytes | None, scheme: QuantScheme) -> Bytes:
    """The B input of MatMulNBits: uint8 [N, G, g * bits / 8] from codes [N, K] of a group scheme.

    A short last group is filled up with its zero point, so that the padding means 0.

    Args:
        codes: uint8 [N, K].
        zero_point: uint8 [N, G], or None for the midpoint.
    """
    group = _group_size(scheme)
    n, k = codes.shape
    g = scheme.groups(k)
    packed = np.empty((n, g, group * scheme.bits // 8), np.uint8)
    whole = k // group
    step = max(1, _CHUNK // max(k, 1))
    for start in range(0, n, step):
        rows = slice(start, min(start + step, n))
        full = pack_flat(codes[rows, : whole * group], scheme.bits)
        packed[rows, :whole] = full.reshape(rows.stop - rows.start, whole, packed.shape[2])
        if whole == g:
            continue
        last = np.empty((rows.stop - rows.start, group), np.uint8)
        last[:] = scheme.midpoint if zero_point is None else zero_point[rows, -1:]
        last[:, : k - whole * group] = codes[rows, whole * group :]
        packed[rows, whole] = pack_flat(last, scheme.bits).reshape(-1, packed.shape[2])
    return packed


def unpack_matmul_nbits(packed: Bytes, k: int, bits: int) -> Bytes:
    """The codes uint8 [N, K] in the B input of MatMulNBits, [N, G, g * bits / 8]."""
    n, g, blob = packed.shape
    return unpack_flat(packed, (n, g * blob * 8 // bits), bits)[:, :k]


def pack_zero_points(zero_point: Bytes, bits: int) -> Bytes:
    """The zero_points input of MatMulNBits: uint8 [N, ceil(G * bits / 8)] from [N, G], a row at a time."""
    n, g = zero_point.shape
    per_byte = 8 // bits
    padded = np.zeros((n, -(-g // per_byte) * per_byte), np.uint8)
    padded[:, :g] = zero_point
    return pack_flat(padded, bits).reshape(n, -1)


def unpack_zero_points(packed: Bytes, g: int, bits: int) -> Bytes:
    """The zero points uint8 [N, G] in the zero_points input of MatMulNBits."""
    n, width = packed.shape
    return unpack_flat(packed, (n, width * 8 // bits), bits)[:, :g]


def pack_flat(codes: Bytes, bits: int) -> Bytes:
    """ONNX's sub-byte packing: uint8 [ceil(size * bits / 8)] of the codes in row-major order."""
    per_byte = _per_byte(bits)
    flat = np.ascontiguousarray(codes).reshape(-1)
    if per_byte == 1:
        return flat
    if flat.size % per_byte:
        flat = np.concatenate([flat, np.zeros(-flat.size % per_byte, np.uint8)])
    if per_byte == 2:
        pairs = flat.view("<u2")  # c1 << 8 | c0: one shift brings c1 beside c0
        two: Bytes = (pairs | (pairs >> 4)).astype(np.uint8)
        return two
    fours = flat.view("<u4")
    folded = fours | (fours >> 6)
    four: Bytes = (folded | (folded >> 12)).astype(np.uint8)
    return four


def unpack_flat(packed: Bytes, shape: tuple[int, ...], bits: int) -> Bytes:
    """The codes uint8 of ``shape`` that pack_flat packed; bytes that are left over hold padding."""
    per_byte = _per_byte(bits)
    flat = np.ascontiguousarray(packed).reshape(-1)
    if per_byte > 1:
        mask = np.uint8((1 << bits) - 1)
        spread = np.empty((flat.size, per_byte), np.uint8)
        for index in range(per_byte):
            np.right_shift(flat, np.uint8(index * bits), out=spread[:, index])
        spread &= mask
        flat = spread.reshape(-1)
    return flat[: int(np.prod(shape))].reshape(shape)


def pack_transposed(codes: Bytes, bits: int) -> Bytes:
    """pack_flat of the transpose: the bytes of a [K, N] tensor from codes [N, K], a strip of K at a time."""
    n, k = codes.shape
    packed = np.empty(-(-n * k * bits // 8), np.uint8)
    for columns in _strips(n, k):
        strip = pack_flat(codes[:, columns].T, bits)
        first = columns.start * n * bits // 8
        packed[first : first + strip.size] = strip
    return packed


def unpack_transposed(packed: Bytes, k: int, n: int, bits: int) -> Bytes:
    """The codes uint8 [N, K] that pack_transposed packed."""
    codes = np.empty((n, k), np.uint8)
    flat = packed.reshape(-1)
    for columns in _strips(n, k):
        first = columns.start * n * bits // 8
        last = -(-columns.stop * n * bits // 8)
        codes[:, columns] = unpack_flat(flat[first:last], (columns.stop - columns.start, n), bits).T
    return codes


def pack_high_first(codes: Bytes) -> Bytes:
    """The B input of MatMulBnb4: uint8 [ceil(size / 2)], the code with the lower index in the upper four bits."""
    return swap_nibbles(pack_flat(codes, 4))


def unpack_high_first(packed: Bytes, shape: tuple[int, ...]) -> Bytes:
    """The codes uint8 of ``shape`` that pack_high_first packed."""
    return unpack_flat(swap_nibbles(packed), shape, 4)


def swap_nibbles(packed: Bytes) -> Bytes:
    """Each byte with its upper and lower four bits exchanged: between ONNX's order and that of MatMulBnb4."""
    swapped: Bytes = (packed << np.uint8(4)) | (packed >> np.uint8(4))
    return swapped


def shift_sign(codes: Bytes, bits: int) -> Bytes:
    """Unsigned codes to two's complement within ``bits``, or back: c -> (c - 2^(bits - 1)) mod 2^bits."""
    return codes ^ np.uint8(1 << (bits - 1))


def shift_sign_packed(packed: Bytes, bits: int) -> Bytes:
    """``shift_sign`` of codes that are packed already."""
    pattern = sum(1 << (at + bits - 1) for at in range(0, 8, bits))
    return packed ^ np.uint8(pattern)


def _strips(n: int, k: int) -> "list[slice[int, int, Any]]":
    """Strips of K that begin on a byte of the packed [K, N] tensor, whatever N is."""
    step = max(8, _CHUNK // max(n, 1) // 8 * 8)
    return [slice(start, min(start + step, k)) for start in range(0, k, step)]


def _per_byte(bits: int) -> int:
    if bits not in (2, 4, 8):
        raise SchemeError(f"{bits}-bit codes have no packed layout; lift them first")
    return 8 // bits


def _group_size(scheme: QuantScheme) -> int:
    if scheme.group_size is None:
        raise SchemeError(
            f"{scheme.label}: MatMulNBits stores groups of 16..256 weights; use granularity group"
        )
    return scheme.group_size
