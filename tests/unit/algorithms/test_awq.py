from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from qcompiler.algorithms import arrays, awq, rtn
from qcompiler.algorithms.equalize import equalize
from qcompiler.errors import CalibrationError, SchemeError
from qcompiler.quant.scheme import Granularity, QuantScheme
from qcompiler.quant.statistics import InputStatistics

INT4 = QuantScheme(4, False, Granularity.GROUP, 32)
SCHEMES = [
    INT4,
    QuantScheme(3, True, Granularity.GROUP, 16),
    QuantScheme(8, False, Granularity.CHANNEL),
    QuantScheme(4, True, Granularity.TENSOR),
    QuantScheme(4, False, Granularity.GROUP, 128, "float16"),
]


def _data(k: int = 96, seed: int = 0) -> tuple[list[npt.NDArray[np.float32]], InputStatistics]:
    """Two weights that read one input, in which a few channels are far louder than the others."""
    rng = np.random.default_rng(seed)
    weights = [rng.normal(size=(n, k)).astype(np.float32) for n in (40, 24)]
    x = rng.normal(size=(6 * k, k)) @ (np.eye(k) + 0.2 * rng.normal(size=(k, k)) / k**0.5)
    x = (x * np.exp(1.2 * rng.normal(size=k))).astype(np.float32)
    return weights, InputStatistics(x.shape[0], x.T @ x / x.shape[0], np.abs(x).mean(0), np.abs(x).max(0))


def _loss(
    weights: list[npt.NDArray[Any]], statistics: InputStatistics, scheme: QuantScheme, s: npt.NDArray[Any]
) -> float:
    """tr(E H E^T) in float64, straight from the definition."""
    assert statistics.hessian is not None
    total = 0.0
    for weight in weights:
        error = rtn.quantize(weight * s, None, scheme).dequantize() / s - weight.astype(np.float64)
        total += float(np.trace(error @ statistics.hessian @ error.T))
    return total


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.label)
def test_the_losses_are_what_they_say_and_fall(scheme: QuantScheme) -> None:
    weights, statistics = _data()
    choice = awq.search_scale(weights, statistics, [scheme] * 2)
    assert choice.scale.dtype == np.float32 and choice.scale.shape == (96,) and np.all(choice.scale > 0)
    assert choice.loss < choice.plain_loss
    # Every row is looked at here, so both are exact but for float32.
    assert choice.plain_loss == pytest.approx(_loss(weights, statistics, scheme, np.ones(96)), rel=1e-3)
    assert choice.loss == pytest.approx(_loss(weights, statistics, scheme, choice.scale), rel=1e-3)


def test_descent_beats_the_papers_grid() -> None:
    weights, statistics = _data()
    grid = awq.search_scale(weights, statistics, [INT4] * 2, awq.AwqOptions(steps=20, iterations=0))
    both = awq.search_scale(weights, statistics, [INT4] * 2)
    assert both.loss < 0.95 * grid.loss < 0.95 * grid.plain_loss  # seen: 0.87 of the grid's


def test_even_inputs_and_weights_are_left_alone() -> None:
    rng = np.random.default_rng(0)
    weight = rng.choice([-1.0, 1.0], size=(32, 64)).astype(np.float32)  # int4 holds these exactly
    statistics = InputStatistics(64, np.eye(64, dtype=np.float32), np.ones(64, np.float32))
    choice = awq.search_scale([weight], statistics, [INT4])
    assert np.all(choice.scale == 1) and choice.loss == choice.plain_loss


def test_tied_channels_get_one_scale() -> None:
    weights, statistics = _data()
    tie = np.arange(96) % 32  # three query heads that read one value head
    choice = awq.search_scale(weights, statistics, [INT4] * 2, tie=tie)
    by_head = choice.scale.reshape(3, 32)
    assert np.array_equal(by_head[0], by_head[1]) and np.array_equal(by_head[0], by_head[2])
    assert choice.scale.max() > choice.scale.min() and choice.loss < choice.plain_loss
    free = awq.search_scale(weights, statistics, [INT4] * 2)
    assert free.loss <= choice.loss


def test_each_weight_has_its_own_scheme() -> None:
    weights, statistics = _data()
    schemes = [INT4, QuantScheme(8, True, Granularity.CHANNEL)]
    choice = awq.search_scale(weights, statistics, schemes)
    expected = sum(
        _loss([weight], statistics, scheme, choice.scale)
        for weight, scheme in zip(weights, schemes, strict=True)
    )
    assert choice.loss == pytest.approx(expected, rel=1e-3)


def test_a_sample_of_rows_estimates_the_whole() -> None:
    rng = np.random.default_rng(1)
    _, statistics = _data()
    weight = rng.normal(size=(2000, 96)).astype(np.float32)
    choice = awq.search_scale([weight], statistics, [INT4], awq.AwqOptions(rows=400))
    # 400 of 2000 like rows: a few percent
    assert choice.plain_loss == pytest.approx(_loss([weight], statistics, INT4, np.ones(96)), rel=0.1)
    assert choice.loss == pytest.approx(_loss([weight], statistics, INT4, choice.scale), rel=0.1)


def test_a_short_last_group_and_dead_channels() -> None:
    weights, statistics = _data(k=72)
    assert statistics.hessian is not None and statistics.mean_abs is not None
    statistics.hessian[:5] = statistics.hessian[:, :5] = 0
    statistics.mean_abs[:5] = 0
    choice = awq.search_scale(weights, statistics, [INT4] * 2)
    assert np.all(np.isfinite(choice.scale)) and choice.loss < choice.plain_loss
    assert choice.scale.min() > 1e-2 and choice.scale.max() < 1e2


def test_numpy_alone_gives_what_torch_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    weights, statistics = _data()
    with_torch = awq.search_scale(weights, statistics, [INT4] * 2)
    monkeypatch.setattr(arrays, "has_torch", lambda: False)
    alone = awq.search_scale(weights, statistics, [INT4] * 2)
    # Adam's first steps look at signs alone: channels with almost no slope drift by a few per cent.
    np.testing.assert_allclose(alone.scale, with_torch.scale, rtol=0.05)
    assert alone.loss == pytest.approx(with_torch.loss, rel=0.02)


def test_what_cannot_be_searched_is_refused() -> None:
    weights, statistics = _data()
    with pytest.raises(CalibrationError, match="Hessian"):
        awq.search_scale(weights, InputStatistics(5, mean_abs=statistics.mean_abs), [INT4] * 2)
    assert statistics.hessian is not None
    weights[1][3, 3] = np.inf
    with pytest.raises(SchemeError, match="NaN or infinity"):
        awq.search_scale(weights, statistics, [INT4] * 2)
    statistics.hessian[0, 0] = np.nan
    with pytest.raises(CalibrationError, match="NaN or infinity"):
        awq.search_scale(weights, statistics, [INT4] * 2)


@pytest.mark.parametrize("option", ["steps", "iterations", "rows"])
def test_options_below_their_bounds_are_refused(option: str) -> None:
    with pytest.raises(SchemeError, match=rf"{option}: -1 is below \d; give at least \d"):
        awq.AwqOptions(**{option: -1})


def test_no_row_is_no_sample() -> None:
    with pytest.raises(SchemeError, match="rows: 0 is below 1"):
        awq.AwqOptions(rows=0)


def test_the_descent_alone_finds_a_scale() -> None:
    weights, statistics = _data()
    choice = awq.search_scale(weights, statistics, [INT4] * 2, awq.AwqOptions(steps=0))
    assert choice.loss < choice.plain_loss


def test_equalizing_two_channels_has_a_known_answer() -> None:
    # One group of two channels. Raising one's scale costs range; the minimum balances that against h e^{-2u}:
    # h_k e^{-2u_k} / sum_j h_j e^{-2u_j} = w_k^8 e^{8u_k} / sum_j w_j^8 e^{8u_j}
    weight = np.ones((4, 2), np.float32)
    scheme = QuantScheme(4, False, Granularity.CHANNEL)
    even = equalize([weight], [1.0], np.array([1.0, 1.0]), [scheme], None, 200, "cpu")
    assert even[0] == pytest.approx(even[1], rel=1e-3)
    loud = equalize([weight], [1.0], np.array([16.0, 1.0]), [scheme], None, 200, "cpu")
    # so (s_0 / s_1)^10 = h_0 / h_1 for like weights,
    assert loud[0] / loud[1] == pytest.approx(16 ** (1 / 10), rel=0.01)
    small = np.array([[0.25, 1.0]], np.float32).repeat(4, axis=0)
    # and (w_1 / w_0)^8 for like inputs
    found = equalize([small], [1.0], np.array([1.0, 1.0]), [scheme], None, 400, "cpu")
    assert found[0] / found[1] == pytest.approx(4**0.8, rel=0.01)
