"""Weights in the order that our kernels read them: lines of 64 bytes with 4 for each of 16 rows.

The NumPy reference of the layout that ``runtime_ops/kernels/matmul_nbits/matmul_nbits.h`` describes. Rows come in blocks of 16, K in
groups, a group in lines. Byte j of a row in a line holds, from its lowest bits on, the codes of k = 4 i + j for i = 0, 1, .. as many as
fit: two for 4 bits, four for 2 bits, one for 8 bits. Of 3 bits, each 32 k are two lines of 2-bit codes, their low bits, and one of their
high bits, bit i of byte j being that of k = 4 i + j; the last 16 k of a group have one line of low bits and half of one of high bits.
Scales and zero points are [blocks, groups, 16]. What fills up blocks and groups is 0 and changes nothing.
"""

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Number = TypeVar("Number", bound=np.generic)

ROWS = 16
"""Of a block."""
LINE = 64
"""Bytes."""
MAX_GROUP = 128
"""Of the kernels: longer blocks of weights are several of their groups, with the same scale."""


def kernel_group(block_size: int, k: int) -> int:
    """The kernels' group for weights that share a scale: all of them, or the longest equal parts of at most MAX_GROUP.

    Args:
        block_size: a multiple of 16.
    """
    if block_size >= k:
        return min(-(-k // 16) * 16, MAX_GROUP)
    return max(size for size in range(16, min(block_size, MAX_GROUP) + 1, 16) if block_size % size == 0)


@dataclass(frozen=True, slots=True)
class Lines:
    """The sizes of a weight [N, K] of so many bits in blocks of ``block_size``, laid out.

    Attributes:
        group: k of a group, a multiple of 16; the last one of a row may be short, and is filled up.
    """

    n: int
    k: int
    bits: int
    block_size: int

    @property
    def group(self) -> int:
        """k of a group."""
        return kernel_group(self.block_size, self.k)

    @property
    def cells(self) -> tuple[int, int, int]:
        """[blocks, groups, 16]: the shape of scales and zero points."""
        return -(-self.n // ROWS), -(-self.k // self.group), ROWS

    @property
    def codes(self) -> tuple[int, int, int, int]:
        """[blocks, groups, lines, 64]: the shape of the codes, uint8."""
        blocks, groups, _ = self.cells
        lines = self.group // 16 + -(-self.group // 32) if self.bits == 3 else self.group * self.bits // 32
        return blocks, groups, lines, LINE


def lay_out_codes(codes: Bytes, sizes: Lines) -> Bytes:
    """uint8 [blocks, groups, lines, 64] from codes uint8 [N, K], 0 .. 2^bits - 1."""
    blocks, groups, _ = sizes.cells
    full = np.zeros((blocks * ROWS, groups * sizes.group), np.uint8)
    full[: sizes.n, : sizes.k] = codes
    # [blocks, groups, quads, rows, 4]
    quads = full.reshape(blocks, ROWS, groups, sizes.group // 4, 4).transpose(0, 2, 3, 1, 4)
    if sizes.bits != 3:
        return _fold(quads, sizes.bits)
    low, high = _fold(quads & np.uint8(3), 2), _fold(quads >> np.uint8(2), 1)
    made = np.empty(sizes.codes, np.uint8)
    of_high = _high_lines(sizes)
    made[:, :, of_high] = high
    made[:, :, ~of_high] = low
    return made


def read_codes(lines: Bytes, sizes: Lines) -> Bytes:
    """The codes uint8 [N, K] that ``lay_out_codes`` laid out."""
    if sizes.bits == 3:
        of_high = _high_lines(sizes)
        quads = _spread(lines[:, :, ~of_high], 2)
        quads = quads | _spread(lines[:, :, of_high], 1)[:, :, : quads.shape[2]] << np.uint8(2)
    else:
        quads = _spread(lines, sizes.bits)
    blocks, groups, _ = sizes.cells
    rows = quads.transpose(0, 3, 1, 2, 4).reshape(blocks * ROWS, groups * sizes.group)
    return rows[: sizes.n, : sizes.k]


def lay_out_cells(values: npt.NDArray[Number], sizes: Lines) -> npt.NDArray[Number]:
    """[blocks, groups, 16] from scales or zero points [N, G], G = ceil(K / block_size)."""
    blocks, groups, _ = sizes.cells
    full = np.zeros((blocks * ROWS, groups), values.dtype)
    full[: sizes.n] = values[:, np.arange(groups) * sizes.group // sizes.block_size]
    return full.reshape(blocks, ROWS, groups).transpose(0, 2, 1)


def read_cells(cells: npt.NDArray[Number], sizes: Lines) -> npt.NDArray[Number]:
    """The values [N, G] that ``lay_out_cells`` laid out."""
    blocks, groups, _ = sizes.cells
    rows: npt.NDArray[Any] = cells.transpose(0, 2, 1).reshape(blocks * ROWS, groups)[: sizes.n]
    count = -(-sizes.k // sizes.block_size)
    return rows[:, np.arange(count) * sizes.block_size // sizes.group]


def _fold(quads: Bytes, bits: int) -> Bytes:
    """Lines [blocks, groups, lines, 64] of quads [blocks, groups, quads, rows, 4], as many of them as a byte has codes of ``bits``."""
    blocks, groups, count = quads.shape[:3]
    per_byte = 8 // bits
    lines = -(-count // per_byte)
    folded = np.zeros((blocks, groups, lines, ROWS, 4), np.uint8)
    for i in range(per_byte):
        part = quads[:, :, i::per_byte]
        folded[:, :, : part.shape[2]] |= part << np.uint8(i * bits)
    return folded.reshape(blocks, groups, lines, LINE)


def _spread(lines: Bytes, bits: int) -> Bytes:
    """What ``_fold`` folded, with quads of zeros that fill up the last line."""
    blocks, groups, count, _ = lines.shape
    bytes_of_rows = lines.reshape(blocks, groups, count, 1, ROWS, 4)
    shifts = np.arange(0, 8, bits, dtype=np.uint8).reshape(-1, 1, 1)
    quads: Bytes = bytes_of_rows >> shifts & np.uint8((1 << bits) - 1)
    return quads.reshape(blocks, groups, -1, ROWS, 4)


def _high_lines(sizes: Lines) -> npt.NDArray[np.bool_]:
    """Which of a group's lines hold the high bits of 3: every third, and the last."""
    lines = np.arange(sizes.codes[2])
    of_high: npt.NDArray[np.bool_] = (lines % 3 == 2) | (lines == lines[-1])
    return of_high
