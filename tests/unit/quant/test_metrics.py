import math
from typing import Any

import numpy as np
import pytest

from qcompiler.quant import metrics


@pytest.fixture(params=["numpy", "torch"])
def place(request: pytest.FixtureRequest) -> Any:
    if request.param == "numpy":
        return np.asarray
    return pytest.importorskip("torch", reason="torch is not installed").from_numpy


def test_sqnr(place: Any) -> None:
    r = np.array([[3.0, 4.0]], np.float32)
    assert metrics.sqnr_db(place(r), place(r * 1.1)) == pytest.approx(20.0, abs=1e-4)
    assert metrics.sqnr_db(place(r), place(r)) == math.inf
    assert metrics.sqnr_db(place(r * 0), place(r)) == -math.inf


def test_cosine(place: Any) -> None:
    r = np.array([[1.0, 0.0]], np.float32)
    assert metrics.cosine(place(r), place(r * 7)) == pytest.approx(1.0)
    assert metrics.cosine(place(r), place(r[:, ::-1].copy())) == pytest.approx(0.0)
    assert metrics.cosine(place(r * 0), place(r * 0)) == 1.0


def test_kl_divergence_of_two_known_distributions(place: Any) -> None:
    p, q = np.array([[0.5, 0.5]]), np.array([[0.9, 0.1]])
    expected = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    assert metrics.kl_divergence(place(np.log(p) + 3), place(np.log(q))) == pytest.approx(expected)
    assert metrics.kl_divergence(place(p), place(p)) == 0.0


def test_perplexity_of_uniform_logits_is_the_number_of_classes(place: Any) -> None:
    assert metrics.perplexity(place(np.zeros((2, 3, 7), np.float32)), place(np.ones((2, 3), np.int64))) == (
        pytest.approx(7.0)
    )


def test_top1_agreement(place: Any) -> None:
    r = np.array([[1.0, 2.0], [2.0, 1.0], [0.0, 5.0], [3.0, 0.0]], np.float32)
    a = r.copy()
    a[1] = a[1, ::-1].copy()
    assert metrics.top1_agreement(place(r), place(a)) == 0.75


def test_blocks_give_what_the_whole_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    r, a = rng.normal(size=(4, 9, 31)), rng.normal(size=(4, 9, 31))
    targets = rng.integers(0, 31, (4, 9))
    whole = (metrics.kl_divergence(r, a), metrics.perplexity(a, targets), metrics.sqnr_db(r, a))
    monkeypatch.setattr(metrics, "_BLOCK", 100)
    assert (metrics.kl_divergence(r, a), metrics.perplexity(a, targets), metrics.sqnr_db(r, a)) == (
        pytest.approx(whole, rel=1e-12)
    )


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="one shape"):
        metrics.sqnr_db(np.zeros((2, 3)), np.zeros((3, 2)))
