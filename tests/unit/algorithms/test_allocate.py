"""Bits given out under a budget, beside the optimum of all combinations."""

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from qcompiler.algorithms import allocate

CHOICES = st.lists(st.tuples(st.integers(1, 50), st.floats(0, 10, allow_nan=False)), min_size=1, max_size=4)
WEIGHTS = st.lists(CHOICES, min_size=1, max_size=5)


def _split(weights: list[list[tuple[int, float]]]) -> tuple[list[list[int]], list[list[float]]]:
    return [[b for b, _ in w] for w in weights], [[x for _, x in w] for w in weights]


def _all(sizes: list[list[int]], losses: list[list[float]]) -> list[tuple[int, float]]:
    return [
        (sum(s[c] for s, c in zip(sizes, choice, strict=True)), sum(x[c] for x, c in zip(losses, choice, strict=True)))
        for choice in itertools.product(*(range(len(size)) for size in sizes))
    ]  # fmt: skip


@given(weights=WEIGHTS, share=st.floats(0, 1))
@settings(max_examples=200, deadline=None)
def test_within_a_budget_it_is_near_the_optimum(weights: list[list[tuple[int, float]]], share: float) -> None:
    sizes, losses = _split(weights)
    every = _all(sizes, losses)
    least, most = min(b for b, _ in every), max(b for b, _ in every)
    budget = int(least + share * (most - least))
    found = allocate.within(budget, sizes, losses)
    assert found.bytes <= budget
    assert found.bytes == sum(size[c] for size, c in zip(sizes, found.choice, strict=True))
    best = min(loss for size, loss in every if size <= budget)
    # At most what one weight can gain is missed.
    slack = max(max(loss) - min(loss) for loss in losses)
    assert best - 1e-9 <= found.loss <= best + slack + 1e-9


@given(weights=WEIGHTS)
@settings(max_examples=200, deadline=None)
def test_each_point_of_the_trade_is_the_best_of_its_size(weights: list[list[tuple[int, float]]]) -> None:
    sizes, losses = _split(weights)
    every = _all(sizes, losses)
    points = allocate.trade(sizes, losses)
    for point in points:
        assert point.loss <= min(loss for size, loss in every if size <= point.bytes) + 1e-6
    assert [p.bytes for p in points] == sorted({p.bytes for p in points})
    assert points[0].bytes == min(size for size, _ in every)
    assert abs(points[-1].loss - min(loss for _, loss in every)) < 1e-6


def test_what_is_felt_most_gets_most() -> None:
    sizes, losses = [[2, 4, 8]] * 3, [[9.0, 3.0, 0.1], [0.9, 0.3, 0.01], [90.0, 30.0, 1.0]]
    assert allocate.within(14, sizes, losses).choice == (1, 0, 2)
    assert allocate.within(5, sizes, losses).choice == (0, 0, 0)  # nothing fits: the smallest there is
    assert allocate.at_most(5.0, sizes, losses).choice == (1, 0, 2)
    assert allocate.at_most(0.001, sizes, losses).choice == (2, 2, 2)
