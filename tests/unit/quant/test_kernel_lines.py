"""The kernels' lines: every code is where the definition says, and comes back."""

import numpy as np
import pytest

from qcompiler.quant.kernel_lines import (
    Lines,
    kernel_group,
    lay_out_cells,
    lay_out_codes,
    read_cells,
    read_codes,
)

SIZES = [(1, 1, 16), (17, 100, 32), (33, 421, 48), (16, 64, 64), (5, 300, 256), (20, 200, 208)]


def _code_at(group: np.ndarray, bits: int, size: int, row: int, k: int) -> int:
    """Code k of a row in a group's lines [lines, 64], by the text at the head of matmul_nbits.h."""
    quad, byte = k // 4, 4 * row + k % 4
    if bits != 3:
        per_byte = 8 // bits
        return int(group[quad // per_byte, byte]) >> quad % per_byte * bits & ((1 << bits) - 1)
    part, of_part = quad // 8, quad % 8
    low_lines = 2 if size - 32 * part > 16 else 1
    low = int(group[3 * part + of_part // 4, byte]) >> of_part % 4 * 2 & 3
    return low | (int(group[3 * part + low_lines, byte]) >> of_part & 1) << 2


@pytest.mark.parametrize(("n", "k", "block_size"), SIZES)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_codes_are_where_the_definition_says_and_come_back(
    bits: int, n: int, k: int, block_size: int
) -> None:
    sizes = Lines(n, k, bits, block_size)
    codes = np.random.default_rng(n).integers(0, 1 << bits, (n, k), np.uint8)
    lines = lay_out_codes(codes, sizes)
    assert lines.shape == sizes.codes
    full = np.zeros((sizes.codes[0] * 16, sizes.codes[1] * sizes.group), np.uint8)
    full[:n, :k] = codes
    for row in range(full.shape[0]):
        for at in range(full.shape[1]):
            group = lines[row // 16, at // sizes.group]
            assert _code_at(group, bits, sizes.group, row % 16, at % sizes.group) == full[row, at]
    np.testing.assert_array_equal(read_codes(lines, sizes), codes)


@pytest.mark.parametrize(("n", "k", "block_size"), SIZES)
def test_every_group_has_the_scale_of_its_block(n: int, k: int, block_size: int) -> None:
    sizes = Lines(n, k, 4, block_size)
    scales = np.random.default_rng(n).random((n, -(-k // block_size)), np.float32)
    cells = lay_out_cells(scales, sizes)
    assert cells.shape == sizes.cells and cells.dtype == scales.dtype
    for row in range(n):
        for at in range(k):
            assert cells[row // 16, at // sizes.group, row % 16] == scales[row, at // block_size]
    assert not cells.reshape(-1, 16)[-1, (n - 1) % 16 + 1 :].any()
    np.testing.assert_array_equal(read_cells(cells, sizes), scales)


@pytest.mark.parametrize(
    ("block_size", "k", "group"), [(16, 100, 16), (128, 100, 112), (256, 1000, 128), (160, 400, 80), (512, 300, 128)]
)  # fmt: skip
def test_long_blocks_are_cut(block_size: int, k: int, group: int) -> None:
    assert kernel_group(block_size, k) == group
