"""Where in a text a language model parts most from its reference."""

import heapq
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qcompiler.calibration.data import TOKENS
from qcompiler.quant.metrics import kl_of_rows
from qcompiler.report.evaluate import Array

KEPT = 12
BEFORE = 16  # tokens of context


@dataclass(frozen=True)
class WorstToken:
    """One place of the text.

    Attributes:
        window, position: of the token that the models read last.
        kl: KL(reference || model) of what comes next, in nats.
        context: the text up to there, or its token ids where there is no tokenizer.
        wanted, got: the likeliest next token of the reference and of the model.
        wanted_probability, got_probability: of ``wanted`` by the reference, and of the same token by the model.
    """

    window: int
    position: int
    kl: float
    context: str
    wanted: str
    got: str
    wanted_probability: float
    got_probability: float


class WorstTokens:
    """Collects them from the logits of window after window; memory is ``KEPT`` places.

    Args:
        decode: token ids to text; None shows the ids.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str] | None) -> None:
        self._decode = decode or (lambda ids: " ".join(map(str, ids)))
        self._windows = 0
        self._heap: list[tuple[float, int, int, WorstToken]] = []

    def watch(self, feed: Mapping[str, Array], name: str, wanted: Array, got: Array) -> None:
        """Logits [1, length, vocabulary] of a window whose tokens are in ``feed``; other outputs are none of ours."""
        tokens = feed.get(TOKENS)
        if tokens is None or wanted.ndim != 3 or wanted.shape[:2] != tokens.shape or len(tokens) != 1:
            return
        kls = kl_of_rows(wanted, got)
        for position in np.argsort(-kls, kind="stable")[:KEPT].tolist():
            kl = float(kls[position])
            if len(self._heap) == KEPT and kl <= self._heap[0][0]:
                break
            found = self._described(tokens[0], position, kl, wanted[0, position], got[0, position])
            heapq.heappush(self._heap, (kl, -self._windows, -position, found))
            if len(self._heap) > KEPT:
                heapq.heappop(self._heap)
        self._windows += 1

    def worst(self) -> list[WorstToken]:
        """Worst first."""
        return [entry[-1] for entry in sorted(self._heap, reverse=True)]

    def _described(self, tokens: Array, position: int, kl: float, wanted: Array, got: Array) -> WorstToken:
        best, chosen = int(wanted.argmax()), int(got.argmax())
        context = tokens[max(0, position + 1 - BEFORE) : position + 1].tolist()
        return WorstToken(
            self._windows, position, kl, self._decode(context), self._decode([best]), self._decode([chosen]),
            _probability(wanted, best), _probability(got, best),
        )  # fmt: skip


def _probability(logits: Array, token: int) -> float:
    shifted = logits.astype(np.float64) - float(logits.max())
    return math.exp(float(shifted[token])) / float(np.exp(shifted).sum())
