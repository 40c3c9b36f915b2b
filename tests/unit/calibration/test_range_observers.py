"""RangeObserver: ranges by each method, from batches of any size, in bounded memory."""

import tracemalloc
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompiler.calibration.range_observers import (
    BLOCK,
    ChannelRangeObserver,
    RangeMethod,
    RangeObserver,
    RangeOptions,
)
from qcompiler.errors import CalibrationError
from qcompiler.quant.ranges import Range

METHODS: tuple[RangeMethod, ...] = ("minmax", "average", "percentile", "entropy", "mse")


def _range(
    method: RangeMethod, *batches: np.ndarray, options: RangeOptions | None = None, **form: Any
) -> Range:
    observer = RangeObserver(method, "x", options)
    for batch in batches:
        observer.add(np.asarray(batch))
    found = observer.range(**form)
    assert found is not None
    return found


def _normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@settings(max_examples=20, deadline=None)
@given(
    parts=st.lists(st.integers(0, 300), min_size=1, max_size=6).filter(lambda p: sum(p) > 0),
    seed=st.integers(0, 99),
)
@pytest.mark.parametrize("method", ["minmax", "percentile"])
def test_any_batches_give_the_range_of_the_whole(method: RangeMethod, parts: list[int], seed: int) -> None:
    numbers = _normal(sum(parts), seed=seed)
    split = np.split(numbers, np.cumsum(parts)[:-1])
    assert _range(method, *split) == _range(method, *reversed(split)) == _range(method, numbers)


def test_minmax_is_what_was_seen() -> None:
    numbers = _normal(1000)
    assert _range("minmax", numbers) == Range(float(numbers.min()), float(numbers.max()))


def test_the_average_of_few_batches_is_near_their_mean() -> None:
    batches = [_normal(100, seed=seed) for seed in range(10)]
    found = _range("average", *batches)
    ends = np.array([[b.min(), b.max()] for b in batches])
    weights = 0.99 ** np.arange(9, -1, -1.0)
    expected = weights @ ends / weights.sum()
    np.testing.assert_allclose([found.lowest, found.highest], expected, rtol=1e-12)  # float64 sums of ten
    np.testing.assert_allclose([found.lowest, found.highest], ends.mean(axis=0), rtol=0.02)


def test_the_average_of_many_batches_forgets_the_first() -> None:
    options = RangeOptions(averaging=0.5)
    found = _range("average", np.array([-1000.0, 1000.0]), *[np.array([-1.0, 2.0])] * 40, options=options)
    # what is left of the first weighs 2^-40 / 2
    np.testing.assert_allclose([found.lowest, found.highest], [-1, 2], atol=1000 * 2.0**-40)


@pytest.mark.parametrize("percentile", [90.0, 99.0, 99.99])
@pytest.mark.parametrize("draw", ["standard_normal", "standard_cauchy", "standard_exponential", "random"])
def test_percentiles_are_those_of_the_numbers_within_a_bin(percentile: float, draw: str) -> None:
    numbers = getattr(np.random.default_rng(1), draw)(200_000).astype(np.float32)
    found = _range("percentile", *np.split(numbers, 8), options=RangeOptions(percentile=percentile))
    cut = (100 - percentile) / 2
    expected = np.percentile(numbers.astype(np.float64), [cut, 100 - cut], method="inverted_cdf")
    width = (float(numbers.max()) - float(numbers.min())) / 2048  # of a bin, at most
    np.testing.assert_allclose([found.lowest, found.highest], expected, rtol=0, atol=width)


def test_symmetric_percentiles_are_those_of_the_magnitudes() -> None:
    numbers = _normal(100_000) + np.float32(0.5)
    found = _range("percentile", numbers, options=RangeOptions(percentile=99.0), symmetric=True)
    width = float(np.ptp(numbers)) / 2048
    expected = np.percentile(np.abs(numbers), 99)
    assert found.highest == pytest.approx(expected, abs=width)
    assert found.lowest == -found.highest


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
@pytest.mark.parametrize("method", METHODS)
def test_every_float_type_is_taken(method: RangeMethod, dtype: type) -> None:
    numbers = _normal(300).astype(dtype)
    assert _range(method, numbers) == _range(method, numbers.astype(np.float32))


@pytest.mark.parametrize("method", METHODS)
def test_the_layout_in_memory_does_not_matter(method: RangeMethod) -> None:
    numbers = _normal(70, 5, 500)
    assert numbers.size > 2 * BLOCK
    whole = _range(method, numbers[:, ::2])
    assert _range(method, numbers[:, ::2].copy()) == whole
    assert _range(method, numbers[:, ::2].transpose(2, 0, 1)) == whole


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("value", [3.0, -2.5, 1e-30, 1e30, 0.0])
def test_one_value_is_its_own_range(method: RangeMethod, symmetric: bool, bits: int, value: float) -> None:
    value = float(np.float32(value))
    for numbers in (np.full((2, 3), value, np.float32), np.float32(value)):
        assert _range(method, numbers, bits=bits, symmetric=symmetric) == Range(value, value)


@pytest.mark.parametrize("method", METHODS)
def test_numbers_on_one_side_stay_there(method: RangeMethod) -> None:
    numbers = np.maximum(_normal(10_000), 0)
    above, below = _range(method, numbers), _range(method, -numbers)
    assert 0 <= above.lowest < 1e-3 and above.highest > 3
    assert -1e-3 < below.highest <= 0 and below.lowest < -3


def test_nothing_seen_is_none() -> None:
    observer = RangeObserver("mse", "x")
    observer.add(np.zeros((0, 8), np.float32))
    assert observer.range() is None
    assert (observer.batches, observer.numbers) == (0, 0)


def test_what_was_seen_is_counted() -> None:
    observer = RangeObserver("minmax", "x")
    for size in (3, 0, 4):
        observer.add(_normal(2, size))
    assert (observer.batches, observer.numbers) == (2, 14)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_what_is_not_finite_is_refused_by_name(method: RangeMethod, bad: float, dtype: type) -> None:
    numbers = _normal(3, 4).astype(dtype)
    numbers[1, 2] = bad
    with pytest.raises(CalibrationError, match=r"^some_value: NaN or infinity"):
        RangeObserver(method, "some_value").add(numbers)


def test_numbers_past_float32_are_refused() -> None:
    with pytest.raises(CalibrationError, match=r"^some_value: NaN or infinity"):
        RangeObserver("minmax", "some_value").add(np.array([1e300]))


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.bool_, np.complex64, np.str_])
def test_what_is_no_float_is_refused(dtype: type) -> None:
    with pytest.raises(CalibrationError, match=r"^x: holds .*only float tensors"):
        RangeObserver("minmax", "x").add(np.zeros(3, dtype))


@pytest.mark.parametrize(
    "option", [{"percentile": 0.0}, {"percentile": 101.0}, {"averaging": 0.0}, {"bins": 1}]
)
def test_options_out_of_bounds_are_refused(option: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(option))} must be"):
        RangeOptions(**option)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("axis", [1, -2])
def test_channels_have_the_ranges_they_would_have_alone(method: RangeMethod, axis: int) -> None:
    batches = [
        _normal(4, 3, 50, seed=seed) * np.array([1, 10, 0.1], np.float32)[:, None] for seed in range(3)
    ]
    observer = ChannelRangeObserver(method, "x", axis)
    for batch in batches:
        observer.add(batch)
    assert observer.ranges() == [_range(method, *(b[:, i] for b in batches)) for i in range(3)]


def test_channels_of_nothing_are_none() -> None:
    observer = ChannelRangeObserver("minmax", "x", 1)
    assert observer.ranges() is None
    observer.add(np.zeros((0, 3), np.float32))
    assert observer.ranges() is None


def test_channels_that_do_not_fit_are_refused() -> None:
    observer = ChannelRangeObserver("minmax", "x", 1)
    with pytest.raises(CalibrationError, match=r"^x: has 1 dimensions, so no channels along axis 1"):
        observer.add(_normal(3))
    observer.add(_normal(2, 3))
    with pytest.raises(CalibrationError, match=r"^x: 4 channels along axis 1, 3 in earlier batches"):
        observer.add(_normal(2, 4))
    broken = _normal(2, 3)
    broken[1, 2] = np.nan
    with pytest.raises(CalibrationError, match=r"^x, channel 2: NaN"):
        observer.add(broken)


@pytest.mark.parametrize("method", METHODS)
def test_memory_does_not_grow_with_batches(method: RangeMethod) -> None:
    batch = _normal(64, 1000)
    observer = RangeObserver(method, "x")
    tracemalloc.start()
    try:
        for _ in range(3):
            observer.add(batch)
        early, _ = tracemalloc.get_traced_memory()
        for _ in range(100):
            observer.add(batch)
        late, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert late - early < 16_384  # nothing is kept; what Python itself allocates on the way
    assert peak < 6 * 8 * BLOCK  # places and indices of a block, and the counts


def test_a_large_half_precision_tensor_is_not_widened_whole() -> None:
    batch = np.zeros((40, BLOCK), np.float16)
    observer = RangeObserver("mse", "x")
    tracemalloc.start()
    try:
        observer.add(batch)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < batch.nbytes / 2  # 4 * size for a whole copy, twice the tensor
