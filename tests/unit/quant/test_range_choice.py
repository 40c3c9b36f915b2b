"""Ranges chosen from histograms: what they are for, they do better than the extremes."""

import numpy as np
import pytest

from qcompiler.quant.activations import rounded_tensor
from qcompiler.quant.histogram import Bins, Histogram
from qcompiler.quant.range_choice import entropy_range, mse_range, percentile_range
from qcompiler.quant.ranges import Range, code_limits

NUMBERS = 200_000


def _numbers(kind: str, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    drawn = {
        "normal": lambda: random.standard_normal(NUMBERS),
        "laplace": lambda: random.laplace(size=NUMBERS),
        "t3": lambda: random.standard_t(3, NUMBERS),
        "t2": lambda: random.standard_t(2, NUMBERS),
        "relu": lambda: np.maximum(random.standard_normal(NUMBERS), 0),
        "outliers": lambda: random.standard_normal(NUMBERS) * np.where(np.arange(NUMBERS) % 10_000, 1, 100),
    }[kind]()
    return drawn.astype(np.float32)


def _bins(numbers: np.ndarray) -> Bins:
    histogram = Histogram(2048)
    histogram.add(numbers)
    assert histogram.bins is not None
    return histogram.bins


def _rounded(numbers: np.ndarray, found: Range, bits: int, symmetric: bool) -> np.ndarray:
    scale, zero_point = found.scale_and_zero_point(bits, True, symmetric)
    first, last = code_limits(bits, True)
    codes = np.clip(np.rint(numbers / np.float64(scale)) + zero_point, first + symmetric, last)
    return (codes - zero_point) * np.float64(scale)


def _error(numbers: np.ndarray, found: Range, bits: int = 8, symmetric: bool = False) -> float:
    return float(np.mean((_rounded(numbers, found, bits, symmetric) - numbers) ** 2))


def _divergence(numbers: np.ndarray, found: Range) -> float:
    """KL of the distribution after rounding, each code's share spread evenly over its step, in bins of 1/40 of the inner 90 %."""
    width = np.quantile(np.abs(numbers), 0.9) / 40
    rounded = rounded_tensor(numbers, found.lowest, found.highest).astype(np.float64)
    step = float(found.scale_and_zero_point(8, False, False)[0])
    spread = rounded + np.random.default_rng(7).uniform(-step / 2, step / 2, len(numbers))
    edges = np.arange(-80, 81) * width
    p, q = (np.histogram(np.clip(x, edges[0], edges[-1]), edges)[0] + 1.0 for x in (numbers, spread))
    p, q = p / p.sum(), q / q.sum()
    return float(np.sum(p * np.log(p / q)))


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(
    ("kind", "gain"), [("normal", 0.9), ("laplace", 0.8), ("t3", 0.8), ("outliers", 0.8)]
)
def test_mse_has_less_squared_error_than_the_extremes(kind: str, gain: float, symmetric: bool) -> None:
    numbers = _numbers(kind)
    bins = _bins(numbers)
    extremes = _error(numbers, Range(bins.lowest, bins.highest), symmetric=symmetric)
    assert _error(numbers, mse_range(bins, 8, symmetric), symmetric=symmetric) < gain * extremes


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("kind", ["normal", "laplace", "t3", "t2", "relu", "outliers"])
def test_mse_is_near_the_best_of_all_ranges(kind: str, symmetric: bool, bits: int) -> None:
    numbers = _numbers(kind)
    bins = _bins(numbers)
    ratios = np.linspace(0.1, 1, 46)
    tried = [
        Range(low * bins.lowest, high * bins.highest)
        for low, high in (
            [(r, r) for r in ratios] if symmetric else [(a, b) for a in ratios[::5] for b in ratios[::5]]
        )
    ]
    best = min(_error(numbers, one, bits, symmetric) for one in tried)
    # searches in steps of 5 %, where the error is flat, over bins that count as filled evenly
    assert _error(numbers, mse_range(bins, bits, symmetric), bits, symmetric) < 1.03 * best


# Measured: 0.14, 0.016, 0.015 of the extremes' divergence.
@pytest.mark.parametrize(("kind", "gain"), [("t3", 0.3), ("t2", 0.05), ("outliers", 0.05)])
def test_entropy_keeps_more_of_the_distribution_than_the_extremes(kind: str, gain: float) -> None:
    numbers = _numbers(kind)
    bins = _bins(numbers)
    extremes = _divergence(numbers, Range(bins.lowest, bins.highest))
    assert _divergence(numbers, entropy_range(bins, 8, False)) < gain * extremes


def test_entropy_of_16_bits_clips_nothing() -> None:
    for kind in ("normal", "laplace", "t3", "t2", "relu", "outliers"):
        bins = _bins(_numbers(kind))
        assert entropy_range(bins, 16, False) == Range(bins.lowest, bins.highest)


@pytest.mark.parametrize("symmetric", [False, True])
def test_zeros_change_no_range_of_entropy(symmetric: bool) -> None:
    numbers = np.abs(_numbers("laplace"))
    alone = entropy_range(_bins(numbers), 8, symmetric)
    padded = entropy_range(_bins(np.concatenate([numbers, np.zeros(4 * NUMBERS, np.float32)])), 8, symmetric)
    assert padded.highest == alone.highest < numbers.max()


@pytest.mark.parametrize("symmetric", [False, True])
def test_ranges_lie_within_what_was_seen(symmetric: bool) -> None:
    for numbers in (_numbers("t3"), _numbers("relu"), -_numbers("relu"), _numbers("normal") + 10):
        bins = _bins(numbers)
        for found in (
            percentile_range(bins, 99.0, symmetric),
            entropy_range(bins, 8, symmetric),
            mse_range(bins, 8, symmetric),
        ):
            assert min(bins.lowest, 0) <= found.lowest <= found.highest <= max(bins.highest, 0)


@pytest.mark.parametrize("symmetric", [False, True])
def test_two_values_are_their_range(symmetric: bool) -> None:
    bins = _bins(np.array([-1.0, 3.0] * 10, np.float32))
    assert mse_range(bins, 16, symmetric) == Range(-1.0, 3.0)
    assert entropy_range(bins, 8, symmetric) == Range(-1.0, 3.0)
    assert percentile_range(bins, 100.0, symmetric) == Range(-1.0, 3.0)


@pytest.mark.parametrize("symmetric", [False, True])
def test_entropy_keeps_most_of_numbers_that_lie_away_from_zero(symmetric: bool) -> None:
    """As a Relu makes them of few different ones: with all but its zeros outside, P and Q would be alike."""
    above = np.random.default_rng(0).uniform(1, 2, 1000).astype(np.float32)
    found = entropy_range(_bins(np.concatenate([np.zeros(1000, np.float32), above])), 8, symmetric)
    # A bin is 2 / 2048 wide, and one that the end is in counts as inside.
    assert np.mean(above <= found.highest + 1e-3) >= 0.5
