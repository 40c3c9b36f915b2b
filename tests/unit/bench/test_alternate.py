"""Rounds in turn, how many fit, and what is made of their times."""

from functools import partial

import pytest

from qcompiler.bench.alternate import LEAST, MOST, alternate, rounds_within
from qcompiler.bench.result import Spread, TimesAsFast


def test_both_are_called_in_turn_and_kept_apart() -> None:
    called: list[str] = []

    def take(name: str) -> int:
        called.append(name)
        return len(called)

    steps: list[tuple[int, int]] = []
    found = alternate([partial(take, "a"), partial(take, "b")], 3, lambda *step: steps.append(step))
    assert called == ["a", "b"] * 3
    assert found == [[1, 3, 5], [2, 4, 6]]
    assert steps == [(0, 3), (1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(
    ("seconds", "one_round", "rounds"),
    [(10, 0.5, 20), (10, 0.3, 34), (10, 60, LEAST), (10, 1e-6, MOST), (10, 0, MOST)],
)
def test_rounds_fill_the_time_within_limits(seconds: float, one_round: float, rounds: int) -> None:
    assert rounds_within(seconds, one_round) == rounds


def test_spread_is_the_median_and_the_outer_tenths() -> None:
    assert Spread.of([float(number) for number in range(10, -1, -1)]) == Spread(5.0, 1.0, 9.0)
    assert Spread.of([3.0]) == Spread(3.0, 3.0, 3.0)


def test_ratios_are_those_of_pairs_and_above_1_where_the_model_is_faster() -> None:
    # The machine was half as fast in the second half: pairs do not see it, each is 2.
    assert TimesAsFast.of([1, 1, 2, 2], [2, 2, 4, 4]) == TimesAsFast(2.0, 2.0, 2.0, 2.0)
    # Pairs 1, 2, 3, 4, 5; medians 2 and 4.
    assert TimesAsFast.of([4, 2, 2, 1, 1], [4, 4, 6, 4, 5]) == TimesAsFast(3.0, 2.0, 4.0, 2.0)
