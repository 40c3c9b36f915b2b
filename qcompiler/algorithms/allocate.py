"""Which of a few choices each weight gets, so that the losses add up to little within a budget.

    minimise  sum_w loss[w, c_w]   subject to   sum_w bytes[w, c_w] <= budget       (a multiple-choice knapsack)

Each weight's choices are cut down to their lower convex hull over bytes; the steps between neighbours on a hull are then taken in order of
loss saved per byte, from the smallest choice of every weight on (Sinha & Zoltners 1979, the linear relaxation). Every state on the way is
the best for its own size, and together they are the trade between size and loss. What is left of a budget is filled with
the best single steps that still fit, so the result is at most one step of one weight away from the optimum.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Allocation:
    """One choice for each weight.

    Attributes:
        choice: index of each weight's choice.
        bytes, loss: of all together.
    """

    choice: tuple[int, ...]
    bytes: int
    loss: float


@dataclass(frozen=True, slots=True)
class _Step:
    weight: int
    before: int
    after: int
    bytes: int
    saved: float


def trade(sizes: Sequence[Sequence[int]], losses: Sequence[Sequence[float]]) -> list[Allocation]:
    """The best allocations from the smallest to the one of least loss, each the best for its size.

    Args:
        sizes, losses: of each weight, of each of its choices; losses are finite.
    """
    hulls = [_hull(size, loss) for size, loss in zip(sizes, losses, strict=True)]
    choice = [hull[0] for hull in hulls]
    steps = [
        _Step(w, a, b, sizes[w][b] - sizes[w][a], losses[w][a] - losses[w][b])
        for w, hull in enumerate(hulls)
        for a, b in itertools.pairwise(hull)
    ]
    steps.sort(
        key=lambda step: step.saved / step.bytes, reverse=True
    )  # on a hull, earlier steps save more per byte
    points = [_allocation(choice, sizes, losses)]
    for step in steps:
        choice[step.weight] = step.after
        last = points[-1]
        points.append(Allocation(tuple(choice), last.bytes + step.bytes, max(last.loss - step.saved, 0.0)))
    return points


def within(budget: int, sizes: Sequence[Sequence[int]], losses: Sequence[Sequence[float]]) -> Allocation:
    """The allocation of least loss found in ``budget`` bytes; the smallest there is where none fits."""
    points = trade(sizes, losses)
    fitting = [point for point in points if point.bytes <= budget]
    if not fitting:
        return points[0]
    choice, spent = list(fitting[-1].choice), fitting[-1].bytes
    while True:
        moves = [
            (losses[w][choice[w]] - losses[w][c], w, c)
            for w in range(len(choice))
            for c in range(len(sizes[w]))
            if losses[w][c] < losses[w][choice[w]] and spent + sizes[w][c] - sizes[w][choice[w]] <= budget
        ]
        if not moves:
            return _allocation(choice, sizes, losses)
        _, w, c = max(moves)
        spent += sizes[w][c] - sizes[w][choice[w]]
        choice[w] = c


def at_most(loss: float, sizes: Sequence[Sequence[int]], losses: Sequence[Sequence[float]]) -> Allocation:
    """The smallest of the trade's allocations with at most that loss; the one of least loss where none has."""
    points = trade(sizes, losses)
    return next((point for point in points if point.loss <= loss), points[-1])


def _allocation(
    choice: Sequence[int], sizes: Sequence[Sequence[int]], losses: Sequence[Sequence[float]]
) -> Allocation:
    return Allocation(
        tuple(choice),
        sum(size[c] for size, c in zip(sizes, choice, strict=True)),
        float(sum(loss[c] for loss, c in zip(losses, choice, strict=True))),
    )


def _hull(sizes: Sequence[int], losses: Sequence[float]) -> list[int]:
    """Choices on the lower convex hull of loss over bytes, by falling loss."""
    hull: list[int] = []
    for c in sorted(range(len(sizes)), key=lambda c: (sizes[c], losses[c])):
        if hull and losses[c] >= losses[hull[-1]]:
            continue  # larger and no better
        while len(hull) > 1 and _slope(hull[-2], hull[-1], sizes, losses) <= _slope(
            hull[-1], c, sizes, losses
        ):
            hull.pop()
        hull.append(c)
    return hull


def _slope(a: int, b: int, sizes: Sequence[int], losses: Sequence[float]) -> float:
    """Loss saved per byte from one choice to another."""
    return (losses[a] - losses[b]) / (sizes[b] - sizes[a])
