"""InputObserver: sums over batches are the statistics of all rows."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompiler.algorithms import Need
from qcompiler.calibration.observers import BLOCK_ROWS, InputObserver
from qcompiler.errors import CalibrationError

ALL = frozenset(Need)


def _rows(n: int, k: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, k)).astype(np.float32)


@settings(max_examples=20, deadline=None)
@given(parts=st.lists(st.integers(0, 40), min_size=1, max_size=5).filter(lambda p: sum(p) > 0))
def test_any_batches_give_the_statistics_of_the_whole(parts: list[int]) -> None:
    rows = _rows(sum(parts))
    observer = InputObserver(8, ALL, "x")
    for part in np.split(rows, np.cumsum(parts)[:-1]):
        observer.add(part)
    seen = observer.statistics()
    assert seen is not None and seen.hessian is not None and seen.mean_abs is not None
    assert seen.max_abs is not None and seen.mean_square is not None
    assert seen.rows == sum(parts)
    exact = rows.astype(np.float64)
    # float32 sums of at most 200 products of order 1: 200 epsilons
    np.testing.assert_allclose(seen.hessian, exact.T @ exact / len(rows), rtol=0, atol=200 * 1.2e-7)
    np.testing.assert_allclose(seen.mean_abs, np.abs(exact).mean(axis=0), rtol=1e-6)
    np.testing.assert_array_equal(seen.max_abs, np.abs(rows).max(axis=0))
    np.testing.assert_allclose(seen.mean_square, (exact**2).mean(axis=0), rtol=1e-6)


def test_leading_axes_are_rows_and_long_inputs_go_in_blocks() -> None:
    rows = _rows(BLOCK_ROWS + 5)
    observer = InputObserver(8, ALL, "x")
    observer.add(rows.reshape(-1, 3, 8))
    seen = observer.statistics()
    assert seen is not None and seen.hessian is not None
    assert seen.rows == BLOCK_ROWS + 5
    np.testing.assert_allclose(
        np.diagonal(seen.hessian), (rows.astype(np.float64) ** 2).mean(axis=0), rtol=1e-4
    )


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
def test_every_float_type_is_taken(dtype: type) -> None:
    rows = _rows(6).astype(dtype)
    observer = InputObserver(8, ALL, "x")
    observer.add(rows)
    seen = observer.statistics()
    assert seen is not None and seen.max_abs is not None
    assert seen.max_abs.dtype == np.float32
    np.testing.assert_array_equal(seen.max_abs, np.abs(rows.astype(np.float32)).max(axis=0))


def test_only_what_is_needed_is_gathered() -> None:
    hessian, channels = (
        InputObserver(8, frozenset({Need.HESSIAN}), "x"),
        InputObserver(8, frozenset({Need.CHANNELS}), "x"),
    )
    for observer in (hessian, channels):
        observer.add(_rows(3))
    first, second = hessian.statistics(), channels.statistics()
    assert first is not None and first.hessian is not None and first.mean_abs is None
    assert second is not None and second.hessian is None and second.mean_abs is not None


def test_nothing_seen_is_none() -> None:
    observer = InputObserver(8, ALL, "x")
    assert observer.statistics() is None
    observer.add(np.zeros((2, 0, 8), np.float32))
    assert observer.statistics() is None


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_by_name(bad: float) -> None:
    rows = _rows(3)
    rows[1, 2] = bad
    with pytest.raises(CalibrationError, match=r"^some_value: NaN or infinity"):
        InputObserver(8, ALL, "some_value").add(rows)


def test_rows_of_zeros_are_not_counted() -> None:
    padded, plain = InputObserver(8, ALL, "x"), InputObserver(8, ALL, "x")
    rows = _rows(5)
    padded.add(np.concatenate([np.zeros((3, 8), np.float32), rows, np.zeros((2, 8), np.float32)]))
    plain.add(rows)
    seen, expected = padded.statistics(), plain.statistics()
    assert seen is not None and expected is not None
    assert seen.rows == 5
    np.testing.assert_array_equal(seen.hessian, expected.hessian)
    np.testing.assert_array_equal(seen.mean_abs, expected.mean_abs)


def test_zeros_and_no_rows_at_all_are_nothing_seen() -> None:
    observer = InputObserver(8, ALL, "x")
    observer.add(np.zeros((4, 8), np.float32))
    observer.add(np.zeros((0, 1, 8), np.float32))
    assert observer.statistics() is None
