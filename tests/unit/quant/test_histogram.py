"""Histogram: exact counts in bins that widen."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompiler.quant.histogram import Bins, Histogram


def _bins(*batches: np.ndarray, bins: int = 16) -> Bins:
    histogram = Histogram(bins)
    for batch in batches:
        histogram.add(np.asarray(batch, np.float32))
    assert histogram.bins is not None
    return histogram.bins


def _assert_same(a: Bins, b: Bins) -> None:
    assert (a.first, a.exponent, a.lowest, a.highest) == (b.first, b.exponent, b.lowest, b.highest)
    np.testing.assert_array_equal(a.counts, b.counts)


# From 2^-60 on: times a bin's inverse width nothing here is too small for float32.
NUMBERS = st.floats(-1e6, 1e6, allow_subnormal=False).map(lambda x: 0.0 if abs(x) < 2.0**-60 else x)


@settings(max_examples=200, deadline=None)
@given(batches=st.lists(st.lists(NUMBERS, max_size=20), min_size=1, max_size=6).filter(any))
def test_any_batches_in_any_order_give_the_same(batches: list[list[float]]) -> None:
    whole = [x for batch in batches for x in batch]
    _assert_same(_bins(*batches), _bins(whole))
    _assert_same(_bins(*reversed(batches)), _bins(whole))


@settings(max_examples=200, deadline=None)
@given(numbers=st.lists(NUMBERS, min_size=1, max_size=60))
def test_every_number_is_counted_where_it_lies(numbers: list[float]) -> None:
    values = np.asarray(numbers, np.float32)
    bins = _bins(values)
    edges = bins.edges()
    assert bins.counts.sum() == len(values) and len(bins.counts) <= 32
    assert bins.counts[0] > 0 and bins.counts[-1] > 0
    assert edges[0] == values.min() and edges[-1] == values.max()
    for index, count in enumerate(bins.counts):
        start = np.ldexp(float(bins.first + index), bins.exponent)
        assert count == ((values >= start) & (values < start + 2.0**bins.exponent)).sum()


def test_at_least_as_many_bins_as_asked_for_are_in_use() -> None:
    for highest in (1.0, 1.3, 1.99, 2.0, 1000.0):
        assert 2048 <= len(_bins(np.array([-0.3 * highest, highest]), bins=2048).counts) <= 4096


@pytest.mark.parametrize("value", [0.0, 5.0, -3e-30, 3e38, 1e-42])
def test_one_value_is_one_bin(value: float) -> None:
    bins = _bins(np.full(7, value))
    assert bins.counts.tolist() == [7]
    assert bins.lowest == bins.highest == np.float32(value)


def test_magnitudes_are_the_histogram_of_absolute_values() -> None:
    values = np.random.default_rng(0).standard_normal(1000).astype(np.float32) + 0.3
    of_values, of_sizes = _bins(values).magnitudes(), _bins(values)
    start = np.ldexp(np.arange(len(of_values.counts)), of_sizes.exponent)
    expected = [((np.abs(values) >= s) & (np.abs(values) < s + 2.0**of_sizes.exponent)).sum() for s in start]
    assert of_values.counts.tolist() == expected
    assert of_values.highest == np.abs(values).max()


@pytest.mark.parametrize("sign", [1, -1])
def test_magnitudes_of_numbers_on_one_side(sign: int) -> None:
    bins = _bins(sign * np.array([1.0, 1.5, 2.0])).magnitudes()
    assert (bins.lowest, bins.highest, bins.counts.sum()) == (1.0, 2.0, 3)


def test_nothing_added_is_nothing() -> None:
    histogram = Histogram(16)
    histogram.add(np.zeros((0, 3), np.float32))
    assert histogram.bins is None
