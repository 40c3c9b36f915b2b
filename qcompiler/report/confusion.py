"""Which classes a classifier takes for which others, beside its reference."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from qcompiler.report.evaluate import Array

KEPT = 12


@dataclass(frozen=True)
class Confusion:
    """First classes of both models over all rows of one output.

    Attributes:
        output: its name.
        rows: that were compared; agreeing: of them with the same first class.
        classes: those of the most frequent differences, at most KEPT, in order.
        counts: [reference's class][model's class] of ``classes``.
        pairs: (reference's class, model's class, how often), the most frequent first, at most KEPT.
    """

    output: str
    rows: int
    agreeing: int
    classes: list[int]
    counts: list[list[int]]
    pairs: list[tuple[int, int, int]]


class ConfusionCounter:
    """Counts them from the outputs of feed after feed: the first output [rows, classes] that comes."""

    def __init__(self) -> None:
        self._output: str | None = None
        self._pairs: Counter[tuple[int, int]] = Counter()

    def watch(self, feed: Mapping[str, Array], name: str, wanted: Array, got: Array) -> None:
        """Floats [rows, classes]; what has another rank is no classifier's."""
        if wanted.ndim != 2 or wanted.shape[1] < 2 or wanted.dtype.kind != "f":
            return
        if self._output not in (None, name):
            return
        self._output = name
        firsts = zip(wanted.argmax(axis=-1).tolist(), got.argmax(axis=-1).tolist(), strict=True)
        self._pairs.update(firsts)

    def found(self) -> Confusion | None:
        """None where no output was a classifier's."""
        if self._output is None:
            return None
        agreeing = sum(count for (wanted, got), count in self._pairs.items() if wanted == got)
        apart = [(*pair, count) for pair, count in self._pairs.most_common() if pair[0] != pair[1]]
        frequent = apart or [(*pair, count) for pair, count in self._pairs.most_common(KEPT)]
        classes = sorted(list(dict.fromkeys(c for pair in frequent for c in pair[:2]))[:KEPT])
        counts = np.array([[self._pairs[wanted, got] for got in classes] for wanted in classes])
        return Confusion(
            self._output, sum(self._pairs.values()), agreeing, classes, counts.tolist(), apart[:KEPT]
        )
