"""Measuring in turn, A B A B, so that what else the machine does meets both alike."""

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

Taken = TypeVar("Taken")
WARM_UP = 2  # rounds: the first allocates, the second tells how long one takes
LEAST, MOST = 10, 1000  # rounds in the time that is given: fewer make no spread, more tell nothing new


def alternate(
    takes: Sequence[Callable[[], Taken]], rounds: int, progress: Callable[[int, int], None]
) -> list[list[Taken]]:
    """What each of ``takes`` returns, called in turn, ``rounds`` times each; ``progress`` gets (done, rounds)."""
    found: list[list[Taken]] = [[] for _ in takes]
    for done in range(rounds):
        progress(done, rounds)
        for place, take in enumerate(takes):
            found[place].append(take())
    progress(rounds, rounds)
    return found


def rounds_within(seconds: float, one_round: float) -> int:
    """How many rounds of ``one_round`` seconds fit, within LEAST and MOST."""
    return min(max(math.ceil(seconds / max(one_round, 1e-9)), LEAST), MOST)
