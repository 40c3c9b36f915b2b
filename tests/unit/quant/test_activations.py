"""Rounding of activations: by rows and as a whole."""

import numpy as np
import pytest

from qcompiler.quant.activations import rounded_rows, rounded_tensor


def test_a_row_is_rounded_with_its_own_scale() -> None:
    x = np.array([[127.0, -63.4, 0.0], [1.27, 0.636, 0.0], [0.0, 0.0, 0.0]], np.float32)
    found = rounded_rows(x)
    np.testing.assert_allclose(found, [[127, -63, 0], [1.27, 0.64, 0], [0, 0, 0]], rtol=1e-6)


def test_a_row_with_infinity_is_nan_and_the_others_are_not() -> None:
    x = np.array([[np.inf, 1.0], [1.0, 0.5], [np.nan, 1.0]], np.float32)
    assert np.isnan(rounded_rows(x)).any(axis=1).tolist() == [True, False, True]


def test_a_tensor_is_rounded_within_half_a_step_and_clipped_outside() -> None:
    x = np.linspace(-2, 3, 1001, dtype=np.float32)
    found = rounded_tensor(x, -1.0, 3.0)
    step = 4 / 255
    inside = x >= -1
    assert np.abs(found - x)[inside].max() <= step * 0.5001 + step / 2  # the zero point is rounded too
    assert found[~inside].max() == found.min() >= -1 - step / 2


@pytest.mark.parametrize(("low", "high"), [(0.5, 2.0), (-2.0, -0.5), (-1.0, 1.0)])
def test_zero_is_held_exactly(low: float, high: float) -> None:
    assert rounded_tensor(np.zeros(3, np.float32), low, high).tolist() == [0, 0, 0]


def test_a_range_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        rounded_tensor(np.zeros(3, np.float32), 0.0, float("inf"))
