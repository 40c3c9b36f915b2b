"""Fisher scores: what is drawn has the moments it should, and the square of a gradient is the curvature of KL."""

import numpy as np
import pytest

from qcompiler.quant import metrics
from tests.small_models import weight

torch = pytest.importorskip("torch")

from qcompiler.algorithms import fisher  # noqa: E402  after the skip


def test_a_drawn_score_has_mean_0_and_the_covariance_of_the_labels() -> None:
    logits = torch.tensor([0.0, 1.0, -2.0])
    count = 200_000
    scores = fisher.drawn_score(logits.expand(count, 3), torch.Generator().manual_seed(0)).double()
    p = torch.softmax(logits.double(), 0)
    # Each product of two entries lies in [-1, 1]: a standard error of at most 1 / sqrt(200,000) = 0.0022; four of them.
    np.testing.assert_allclose(scores.mean(0), 0, atol=0.009)
    np.testing.assert_allclose(scores.T @ scores / count, torch.diag(p) - torch.outer(p, p), atol=0.009)


def test_a_class_that_is_ruled_out_is_never_drawn() -> None:
    scores = fisher.drawn_score(torch.tensor([[0.0, -torch.inf]] * 50), torch.Generator().manual_seed(0))
    assert not scores.any()


def test_random_signs_are_uncorrelated() -> None:
    signs = fisher.random_signs(torch.empty(100_000, 3), torch.Generator().manual_seed(0))
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    # A standard error of 1 / sqrt(100,000) = 0.0032; four of them.
    np.testing.assert_allclose(signs.T @ signs / len(signs), np.eye(3), atol=0.013)


def test_the_mean_square_of_gradients_predicts_the_kl_of_one_changed_weight() -> None:
    """Of one weight the diagonal is all there is. The logits of a linear are 4 classes for 6 tokens."""
    x, w = torch.from_numpy(weight(6, 5)), torch.from_numpy(weight(4, 5, seed=1))
    logits = x @ w.T
    generator = torch.Generator().manual_seed(0)
    runs = 5_000
    squares = torch.zeros(4, 5)
    for _ in range(runs):
        squares += fisher.gradient_of_weight(x, fisher.drawn_score(logits, generator), (4, 5)).square()
    scores = squares / runs / len(x)
    for n, k in ((0, 0), (2, 3), (3, 4)):
        changed = w.clone()
        changed[n, k] += 0.01
        found = metrics.kl_divergence(logits.double(), (x @ changed.T).double())
        # A squared gradient is off by sqrt(2) of itself: 1.41 / sqrt(5,000) = 2 %; four of them, and 1 % for the third order.
        assert 0.5 * float(scores[n, k]) * 0.01**2 == pytest.approx(found, rel=0.09)


def test_gradients_of_weights_are_those_of_autograd() -> None:
    at_result = torch.from_numpy(weight(2, 3, 4))
    w = torch.from_numpy(weight(4, 6, seed=1)).requires_grad_()
    x = torch.from_numpy(weight(2, 3, 6, seed=2))
    (expected,) = torch.autograd.grad(x @ w.T, w, at_result)
    # 6 float32 terms of order 1
    np.testing.assert_allclose(fisher.gradient_of_weight(x, at_result, (4, 6)), expected, atol=1e-6)


def test_gradients_of_a_table_are_added_up_by_row() -> None:
    at_result = torch.ones(4, 2)
    found = fisher.gradient_of_weight(torch.tensor([2, 0, 2, -1]), at_result, (3, 2))
    np.testing.assert_array_equal(found, [[1, 1], [0, 0], [3, 3]])
