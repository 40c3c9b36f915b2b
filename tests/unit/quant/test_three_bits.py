"""Codes of 3 bits: three quarters of the bytes, and every code comes back."""

import numpy as np
import pytest

from qcompiler.quant import packing, three_bits


def _even(*shape: int) -> np.ndarray:
    """Two even 4-bit codes a byte."""
    return np.random.default_rng(sum(shape)).integers(0, 256, shape).astype(np.uint8) & np.uint8(0xEE)


@pytest.mark.parametrize("block_size", [16, 32, 48, 256])
def test_codes_come_back_from_three_quarters_of_the_bytes(block_size: int) -> None:
    even = _even(5, 3, block_size // 2)
    short = three_bits.shorten(even)
    assert short.shape == (5, 3, block_size * 3 // 8)
    np.testing.assert_array_equal(three_bits.lengthen(short), even)


def test_any_bytes_are_codes() -> None:
    short = np.random.default_rng(0).integers(0, 256, (7, 2, 12)).astype(np.uint8)
    np.testing.assert_array_equal(three_bits.shorten(three_bits.lengthen(short)), short)


@pytest.mark.parametrize(("symmetric", "about"), [(True, 8), (False, 0)])
def test_four_bits_that_hold_three_are_halved(symmetric: bool, about: int) -> None:
    codes = np.arange(8, dtype=np.uint8)  # of 3 bits, about 4 where they are symmetric
    held = packing.pack_flat(codes + np.uint8(about // 2), 4)
    assert three_bits.fits(held, symmetric)
    twice = three_bits.twice(held, symmetric)
    np.testing.assert_array_equal(packing.unpack_flat(twice, (8,), 4), 2 * codes)


@pytest.mark.parametrize(("symmetric", "code"), [(True, 3), (True, 12), (True, 0), (False, 8), (False, 15)])
@pytest.mark.parametrize("upper", [False, True])
def test_a_code_that_needs_four_bits_does_not_fit(symmetric: bool, code: int, upper: bool) -> None:
    fine = 4
    held = np.array([fine << 4 | code, fine << 4 | fine], np.uint8)
    if upper:
        held = (held << np.uint8(4)) | (held >> np.uint8(4))
    assert not three_bits.fits(held, symmetric)
