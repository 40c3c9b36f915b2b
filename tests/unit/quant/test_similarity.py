"""Similarity: sums over parts give the figures of the whole."""

import math

import numpy as np
import pytest

from qcompiler.quant.similarity import Similarity
from tests.small_models import Array


def _of(reference: Array, approximation: Array) -> Similarity:
    made = Similarity()
    made.add(reference, approximation)
    return made


def test_sqnr() -> None:
    r = np.array([[3.0, 4.0]], np.float32)
    assert _of(r, r * 1.1).sqnr_db == pytest.approx(20.0, abs=1e-4)
    assert _of(r, r).sqnr_db == math.inf
    assert _of(r * 0, r).sqnr_db == -math.inf


def test_cosine() -> None:
    r = np.array([[1.0, 0.0]], np.float32)
    assert _of(r, r * 7).cosine == pytest.approx(1.0)
    assert _of(r, r[:, ::-1]).cosine == pytest.approx(0.0)
    assert _of(r * 0, r * 0).cosine == 1.0


def test_parts_give_what_the_whole_gives() -> None:
    rng = np.random.default_rng(1)
    reference = rng.standard_normal((6, 50)).astype(np.float32)
    other = reference + 0.1 * rng.standard_normal((6, 50)).astype(np.float32)
    parts = Similarity()
    for row in range(6):
        parts.add(reference[row], other[row])
    r, a = reference.astype(np.float64), other.astype(np.float64)
    # float64 sums in another order
    assert parts.sqnr_db == pytest.approx(10 * np.log10((r**2).sum() / ((r - a) ** 2).sum()), rel=1e-12)
    assert parts.cosine == pytest.approx((r * a).sum() / (np.linalg.norm(r) * np.linalg.norm(a)), rel=1e-12)


def test_infinities_that_both_hold_count_nothing() -> None:
    r, a = np.array([3.0, 4.0]), np.array([3.3, 4.4])
    excluded = np.array([-np.inf])
    both = _of(np.concatenate([r, excluded]), np.concatenate([a, excluded]))
    assert both.sqnr_db == _of(r, a).sqnr_db
    assert both.cosine == _of(r, a).cosine


@pytest.mark.parametrize("side", [0, 1])
def test_an_infinity_that_one_holds_is_no_likeness(side: int) -> None:
    pair = [np.array([3.0, 4.0]), np.array([3.0, 4.0])]
    pair[side][1] = -np.inf
    assert _of(pair[0], pair[1]).sqnr_db == -math.inf
    assert _of(pair[0], pair[1]).cosine == 0.0
