"""Worst tokens of a text, on numbers that can be computed by hand."""

import math

import numpy as np
import pytest

from qcompiler.report.worst_tokens import KEPT, WorstTokens

# Two tokens, three classes.
P = np.array([[[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]])
Q = np.array([[[0.25, 0.5, 0.25], [0.1, 0.1, 0.8]]])
KL = [0.25 * math.log(2), 0.7 * math.log(8)]  # 1/2 ln 2 + 1/4 ln 1/2; 0.8 ln 8 + 0.1 ln 1/8
WORDS = ["zero", "one", "two"]


def collected(*windows: tuple[list[int], np.ndarray, np.ndarray]) -> WorstTokens:
    found = WorstTokens(lambda ids: " ".join(WORDS[index] for index in ids))
    for tokens, p, q in windows:
        found.watch({"input_ids": np.array([tokens])}, "logits", np.log(p) + 5, np.log(q))
    return found


def test_both_tokens_worst_first() -> None:
    worst, second = collected(([2, 0], P, Q)).worst()
    assert (worst.window, worst.position, worst.context) == (0, 1, "two zero")
    assert (worst.wanted, worst.got) == ("one", "two")
    assert (worst.wanted_probability, worst.got_probability) == pytest.approx((0.8, 0.1))
    assert (second.position, second.context, second.wanted, second.got) == (0, "two", "zero", "one")
    assert (second.wanted_probability, second.got_probability) == pytest.approx((0.5, 0.25))
    assert [worst.kl, second.kl] == pytest.approx(KL[::-1])


def test_windows_are_told_apart_and_the_earlier_of_equals_comes_first() -> None:
    found = collected(([2, 0], P, P), ([0, 1], P, Q), ([1, 1], P, Q)).worst()
    assert [(token.window, token.position) for token in found][:4] == [(1, 1), (2, 1), (1, 0), (2, 0)]
    assert [token.kl for token in found[4:]] == [0.0, 0.0]


def test_no_more_are_kept_than_are_shown() -> None:
    found = collected(*[([2, 0], P, P)] * KEPT, ([0, 1], P, Q)).worst()
    assert len(found) == KEPT and [token.window for token in found[:2]] == [KEPT, KEPT]


def test_without_a_tokenizer_ids_are_shown_and_other_outputs_are_none_of_it() -> None:
    found = WorstTokens(None)
    found.watch({"input_ids": np.array([[7, 9]])}, "logits", np.log(P), np.log(Q))
    found.watch({"input_ids": np.array([[7, 9]])}, "hidden", P[0], Q[0])
    found.watch({"pixels": np.array([[7, 9]])}, "logits", np.log(P), np.log(Q))
    worst, second = found.worst()
    assert (worst.context, worst.wanted, second.context) == ("7 9", "1", "7")
