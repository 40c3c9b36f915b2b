"""Runs of a sequence that repeat: the blocks of a model whose graph names nothing.

*Given* what each product of a graph looks like (its kind and the sizes of its weight), in graph order.
*Result* stretches in which a period repeats at least twice, longest first found, in order.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

SHORTEST_PERIOD = 2  # a chain of single products has no blocks
LONGEST_PERIOD = 64  # products of one block; a mixture of many experts has more and stays without blocks


@dataclass(frozen=True)
class Repeats:
    """``count`` stretches of ``period`` elements from ``start`` on."""

    start: int
    period: int
    count: int

    @property
    def end(self) -> int:
        return self.start + self.period * self.count


def find_repeats(looks: Sequence[Hashable], width: Callable[[int], int]) -> list[Repeats]:
    """The stretches that cover most, then those left and right of them.

    Args:
        looks: what elements are compared by.
        width: values that are alive before element i: where a period may begin at several places, it begins where fewest are.
    """
    return _find(looks, width, 0, len(looks))


def _find(looks: Sequence[Hashable], width: Callable[[int], int], start: int, end: int) -> list[Repeats]:
    best: Repeats | None = None
    length = 0
    for period in range(SHORTEST_PERIOD, min(LONGEST_PERIOD, (end - start) // 2) + 1):
        first, like = _longest(looks, period, start, end - period)
        count = like // period + 1
        if count > 1 and (best is None or count * period > best.period * best.count):
            best, length = Repeats(first, period, count), like + period
    if best is None:
        return []
    found = _at_the_narrowest(best, length, width)
    return [*_find(looks, width, start, found.start), found, *_find(looks, width, found.end, end)]


def _at_the_narrowest(best: Repeats, length: int, width: Callable[[int], int]) -> Repeats:
    """The same period begun at another of its elements, where the graph is narrower by a value or more; a repetition less is worth it."""
    choices = []
    for shift in range(best.period):
        count = (length - shift) // best.period
        places = [best.start + shift + i * best.period for i in range(count)]
        if count > 1:
            choices.append((round(sum(map(width, places)) / count), -count, places[0]))
    _, count, place = min(choices)
    return Repeats(place, best.period, -count)


def _longest(looks: Sequence[Hashable], period: int, start: int, end: int) -> tuple[int, int]:
    """(first, length) of the longest stretch in which each element is as the one a period later."""
    best, first = (start, 0), start
    for i in range(start, end):
        if looks[i] != looks[i + period]:
            first = i + 1
        elif i + 1 - first > best[1]:
            best = (first, i + 1 - first)
    return best
