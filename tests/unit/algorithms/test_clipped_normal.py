"""Mean and variance of clipped normal variables: as drawn ones have them."""

import numpy as np
import pytest

from qcompiler.algorithms.clipped_normal import clipped_normal

INF = float("inf")
DRAWN = 400_000


@pytest.mark.parametrize(
    ("low", "high"), [(0, INF), (0, 6), (-1, 1), (-INF, 0.5), (-INF, INF), (2, 2), (100, 101)]
)
def test_as_drawn_numbers_have_them(low: float, high: float) -> None:
    mean, deviation = np.array([-3.0, -0.4, 0.0, 1.7, 5.5, 100.4]), np.array([0.5, 1.0, 2.0, 0.1, 3.0, 0.7])
    drawn = np.random.default_rng(0).standard_normal((DRAWN, 6)) * deviation + mean
    clipped = np.clip(drawn, low, high)
    expected, variance = clipped_normal(mean, deviation, low, high)
    # five standard errors of a mean; a variance's own are below 5 * sqrt(2 / DRAWN) of a normal's
    assert (np.abs(expected - clipped.mean(0)) <= 5 * deviation / np.sqrt(DRAWN)).all()
    assert (np.abs(variance - clipped.var(0)) <= 5 * np.sqrt(2 / DRAWN) * np.square(deviation) * 2).all()


def test_without_a_deviation_it_is_the_clipped_mean() -> None:
    mean = np.array([-2.0, 0.0, 3.0, 9.0])
    expected, variance = clipped_normal(mean, np.zeros(4), 0, 6)
    assert expected.tolist() == [0, 0, 3, 6] and variance.tolist() == [0, 0, 0, 0]


def test_far_from_the_bound_nothing_is_lost() -> None:
    """The mean of a ReLU 8 deviations below 0 is d p(8) / 64 and a little; a difference of larger numbers would be 0 or negative."""
    expected, variance = clipped_normal(np.array([-8.0]), np.ones(1), 0, INF)
    assert 7.0e-17 < expected[0] < 8.0e-17 and variance[0] >= 0


def test_bounds_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(ValueError, match="nothing lies between 6 and 0"):
        clipped_normal(np.zeros(1), np.ones(1), 6, 0)
