"""Codebooks: the published tables, blocks that run on from row to row, nearest codes, 8-bit scales."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompiler.errors import SchemeError
from qcompiler.quant.codebook import (
    TABLES,
    CodebookTensor,
    DoubleQuantized,
    block_scale,
    double_quantize,
    from_blocks,
    nearest_codes,
    nearest_values,
    table_name,
    to_blocks,
)
from qcompiler.quant.scheme import Granularity, QuantScheme

by_table = pytest.mark.parametrize("dtype", sorted(TABLES))


def _scheme(dtype: Any = "nf4", group: int = 16, double_quant: bool = False) -> QuantScheme:
    return QuantScheme(4, True, Granularity.GROUP, group, "float32", dtype, double_quant)


def _tensor(n: int, k: int, scheme: QuantScheme) -> CodebookTensor:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 16, (n, k)).astype(np.uint8)
    return CodebookTensor(scheme, codes, rng.uniform(0.5, 1.5, scheme.blocks(n, k)).astype(np.float32))


def test_nf4_is_the_published_table() -> None:
    """Appendix E of Dettmers et al. 2023."""
    assert TABLES["nf4"].tolist() == np.array(
        [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
         -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
         0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0], np.float32
    ).tolist()  # fmt: skip


@by_table
def test_a_table_reaches_one_on_both_sides_and_knows_its_name(dtype: str) -> None:
    table = TABLES[dtype]
    assert table.shape == (16,) and table.max() == 1 and table.min() == -1 and 0 in table
    assert table_name(table.copy()) == dtype
    assert table_name(table[::-1].copy()) is None


def test_fp4_differs_from_e2m1_in_its_subnormal_alone() -> None:
    ours, theirs = (np.unique(TABLES[name]) * 6 for name in ("fp4", "e2m1"))
    assert np.allclose(theirs[theirs >= 0], [0, 0.5, 1, 1.5, 2, 3, 4, 6])
    assert np.count_nonzero(~np.isclose(ours, theirs)) == 2  # +-1/32 in place of +-1/2


@pytest.mark.parametrize("k", range(1, 36))
def test_blocks_run_on_from_row_to_row(k: int) -> None:
    scheme, n = _scheme(), 7
    tensor = _tensor(n, k, scheme)
    expected = TABLES["nf4"][tensor.codes.reshape(-1)] * np.repeat(tensor.scale, 16)[: n * k]
    assert np.array_equal(tensor.dequantize(), expected.reshape(n, k))
    for rows in (slice(0, 1), slice(2, 5), slice(6, None), slice(3, 3)):
        assert np.array_equal(tensor.dequantize(rows), expected.reshape(n, k)[rows])
    weight = np.arange(n * k, dtype=np.float32).reshape(n, k)
    assert np.array_equal(from_blocks(to_blocks(weight, scheme), n, k), weight)
    assert to_blocks(weight, scheme).shape == (scheme.blocks(n, k), 16)


@by_table
@given(shares=st.lists(st.floats(-1.25, 1.25, width=32), min_size=1, max_size=40))
@settings(max_examples=50, deadline=None)
def test_the_nearest_entry_is_taken_in_numpy_and_torch(dtype: str, shares: list[float]) -> None:
    values = np.array(shares, np.float32)
    scheme = _scheme(dtype)
    codes = nearest_codes(values, scheme)
    table = TABLES[dtype]
    assert codes.dtype == np.uint8
    distance = np.abs(table[codes] - values)
    least = np.abs(table[None, :] - values[:, None]).min(axis=1)
    assert np.all(distance <= least + 1e-7)  # one rounding of a midpoint
    assert np.array_equal(nearest_values(values, scheme), table[codes])
    assert np.array_equal(nearest_codes(torch.from_numpy(values), scheme).numpy(), codes)


@by_table
def test_zero_is_stored_as_zero(dtype: str) -> None:
    code = nearest_codes(np.zeros(1, np.float32), _scheme(dtype))
    assert TABLES[dtype][code] == 0 and not np.signbit(TABLES[dtype][code])


@pytest.mark.parametrize("blocks", [1, 255, 256, 257, 1000])
def test_scales_in_8_bits_are_within_half_a_step(blocks: int) -> None:
    scale = np.random.default_rng(0).uniform(0.1, 2.0, blocks).astype(np.float32)
    double = double_quantize(scale)
    assert double.codes.shape == (blocks,) and double.step.shape == (-(-blocks // 256),)
    held = double.scales("float32")
    steps = np.repeat(double.step, 256)[:blocks]
    assert np.all(np.abs(held - scale) <= steps * 0.5001)  # one rounding of the quotient
    assert np.all(held > 0) and held.max() == pytest.approx(scale.max(), rel=1e-6)


def test_a_tiny_scale_beside_a_large_one_stays_positive() -> None:
    held = double_quantize(np.array([1e-9, 1.0], np.float32)).scales("float32")
    assert held[0] > 0


def test_a_block_that_is_no_number_is_refused() -> None:
    with pytest.raises(SchemeError, match="NaN or infinity"):
        block_scale(np.array([1.0, np.nan], np.float32), _scheme())


def test_parts_that_disagree_with_the_scheme_are_refused() -> None:
    codes, scale = np.zeros((2, 16), np.uint8), np.ones(2, np.float32)
    double: npt.NDArray[Any] = np.ones(2, np.uint8)
    with pytest.raises(SchemeError, match="no codebook"):
        CodebookTensor(QuantScheme(4, True, Granularity.GROUP, 16), codes, scale)
    with pytest.raises(SchemeError, match="codes"):
        CodebookTensor(_scheme(), codes.astype(np.int8), scale)
    with pytest.raises(SchemeError, match="scale"):
        CodebookTensor(_scheme(), codes, scale[:1])
    with pytest.raises(SchemeError, match="must not have it"):
        CodebookTensor(_scheme(), codes, scale, DoubleQuantized(double, np.ones(1, np.float32)))
    with pytest.raises(SchemeError, match="must have it"):
        CodebookTensor(_scheme(double_quant=True), codes, scale)
    with pytest.raises(SchemeError, match="not what its 8-bit codes mean"):
        CodebookTensor(
            _scheme(double_quant=True), codes, scale, DoubleQuantized(double, np.full(1, 2, np.float32))
        )


def test_stored_bytes_are_those_of_the_parts() -> None:
    plain, double = _scheme(group=64), _scheme(group=64, double_quant=True)
    assert plain.stored_bytes(64, 576) == 64 * 576 // 2 + 576 * 4
    assert double.stored_bytes(64, 576) == 64 * 576 // 2 + 576 + 3 * 4
    assert (plain.label, double.label) == ("nf4 g64", "nf4 g64 dq")


def test_schemes_that_mean_nothing_are_refused() -> None:
    with pytest.raises(SchemeError, match="nf4 has 4 bits, not 8"):
        QuantScheme(8, True, Granularity.GROUP, 64, "float32", "nf4")
    with pytest.raises(SchemeError, match="no zero points"):
        QuantScheme(4, False, Granularity.GROUP, 64, "float32", "nf4")
    with pytest.raises(SchemeError, match="set group_size to a number"):
        QuantScheme(4, True, Granularity.CHANNEL, None, "float32", "nf4")
    with pytest.raises(SchemeError, match="integers keep float scales"):
        QuantScheme(4, True, Granularity.GROUP, 64, double_quant=True)
    with pytest.raises(SchemeError, match="use one of int, nf4, fp4, e2m1"):
        QuantScheme(4, True, Granularity.GROUP, 64, "float32", "nf3")  # type: ignore[arg-type]
