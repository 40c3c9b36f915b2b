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


def test_kl_divergence_of_two_known_distributions(place: Any) -> None:
    p, q = np.array([[0.5, 0.5]]), np.array([[0.9, 0.1]])
    expected = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    assert metrics.kl_divergence(place(np.log(p) + 3), place(np.log(q))) == pytest.approx(expected)
    assert metrics.kl_divergence(place(p), place(p)) == 0.0


def test_perplexity_of_uniform_logits_is_the_number_of_classes(place: Any) -> None:
    nats = metrics.mean_nats(place(np.zeros((2, 3, 7), np.float32)), place(np.ones((2, 3), np.int64)))
    assert metrics.perplexity(nats) == pytest.approx(7.0)


def test_perplexity_past_a_floats_range_is_infinite(place: Any) -> None:
    nats = metrics.mean_nats(place(np.array([[0.0, 5000.0]])), place(np.array([0])))
    assert nats == pytest.approx(5000.0)
    assert metrics.perplexity(nats) == math.inf


def test_a_class_that_both_exclude_adds_nothing_to_kl(place: Any) -> None:
    p, q = np.array([[0.5, 0.5]]), np.array([[0.9, 0.1]])
    excluded = np.array([[-np.inf]])
    with_excluded = (np.hstack([np.log(each), excluded]) for each in (p, q))
    plain = metrics.kl_divergence(place(np.log(p)), place(np.log(q)))
    assert metrics.kl_divergence(*(place(each) for each in with_excluded)) == pytest.approx(plain)
    only_reference = metrics.kl_divergence(
        place(np.hstack([np.log(p), excluded])), place(np.log([[0.8, 0.1, 0.1]]))
    )
    assert math.isfinite(only_reference)


def test_top1_agreement(place: Any) -> None:
    r = np.array([[1.0, 2.0], [2.0, 1.0], [0.0, 5.0], [3.0, 0.0]], np.float32)
    a = r.copy()
    a[1] = a[1, ::-1].copy()
    assert metrics.top1_agreement(place(r), place(a)) == 0.75


def test_blocks_give_what_the_whole_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    r, a = rng.normal(size=(4, 9, 31)), rng.normal(size=(4, 9, 31))
    targets = rng.integers(0, 31, (4, 9))
    whole = (metrics.kl_divergence(r, a), metrics.mean_nats(a, targets))
    monkeypatch.setattr(metrics, "_BLOCK", 100)
    assert (metrics.kl_divergence(r, a), metrics.mean_nats(a, targets)) == (pytest.approx(whole, rel=1e-12))


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="one shape"):
        metrics.kl_divergence(np.zeros((2, 3)), np.zeros((3, 2)))


def test_kl_of_each_row_and_their_mean() -> None:
    """Two tokens, three classes: 1/2 ln 2 + 1/4 ln 1/2, and ln 2 where the reference excludes all but one."""
    p, q = np.array([[[0.5, 0.25, 0.25], [1, 0, 0]]]), np.array([[[0.25, 0.5, 0.25], [0.5, 0.25, 0.25]]])
    with np.errstate(divide="ignore"):
        reference, logits = np.log(p) + 7, np.log(q)
    rows = metrics.kl_of_rows(reference, logits)
    assert rows.dtype == np.float64 and rows == pytest.approx([0.25 * math.log(2), math.log(2)])
    assert metrics.kl_divergence(reference, logits) == pytest.approx(rows.mean())
    near = np.array([[0.1, 0.8, 0.1]])  # the sum of such rows comes out as -1e-16
    assert metrics.kl_of_rows(np.log(near) + 5, np.log(near)) == [0.0]
