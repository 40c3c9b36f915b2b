"""SmoothQuant's scales: the formula, the search, the descent."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from qcompiler.algorithms import rtn, smoothquant
from qcompiler.algorithms.smoothquant import SmoothQuantOptions
from qcompiler.errors import CalibrationError, SchemeError
from qcompiler.quant.activations import rounded_rows
from qcompiler.quant.scheme import Granularity, QuantScheme
from qcompiler.quant.statistics import InputStatistics

INT8 = QuantScheme(8, True, Granularity.CHANNEL)


def _data(k: int = 96, seed: int = 0) -> tuple[list[npt.NDArray[np.float32]], InputStatistics]:
    """Two weights that read one input, three channels of which are forty times as large as the others."""
    rng = np.random.default_rng(seed)
    weights = [rng.normal(size=(n, k)).astype(np.float32) for n in (40, 24)]
    x = rng.normal(size=(300, k)).astype(np.float32)
    x[:, [5, 40, 77]] *= 40
    return weights, InputStatistics(len(x), max_abs=np.abs(x).max(0), sample=x)


def _loss(weights: list[npt.NDArray[Any]], statistics: InputStatistics, s: npt.NDArray[Any]) -> float:
    """Squared output error for each row, straight from the definition."""
    x = statistics.sample
    assert x is not None
    total = 0.0
    for weight in weights:
        rounded = rounded_rows(x / s) @ rtn.quantize(weight * s, None, INT8).dequantize().T
        total += float(np.square(rounded - x @ weight.T, dtype=np.float64).sum()) / len(x)
    return total


def test_a_given_alpha_is_the_papers_formula() -> None:
    weights, statistics = _data()
    choice = smoothquant.search_scale(weights, statistics, [INT8] * 2, SmoothQuantOptions(alpha=0.5))
    largest_w = np.maximum(*(np.abs(weight).max(axis=0) for weight in weights))
    assert statistics.max_abs is not None
    expected = np.sqrt(statistics.max_abs / largest_w)
    np.testing.assert_allclose(choice.scale, expected / np.exp(np.log(expected).mean()), rtol=1e-5)


def test_the_losses_are_what_they_say_and_fall() -> None:
    weights, statistics = _data()
    choice = smoothquant.search_scale(weights, statistics, [INT8] * 2)
    assert choice.plain_loss == pytest.approx(_loss(weights, statistics, np.ones(96)), rel=1e-3)
    assert choice.loss == pytest.approx(_loss(weights, statistics, choice.scale), rel=1e-3)
    assert choice.loss < 0.1 * choice.plain_loss  # seen: 0.02


def test_descent_beats_the_best_exponent() -> None:
    rng = np.random.default_rng(3)
    weights, statistics = _data()
    weights = [weight * np.exp(rng.normal(size=96)).astype(np.float32) for weight in weights]
    grid = smoothquant.search_scale(weights, statistics, [INT8] * 2, SmoothQuantOptions(iterations=0))
    both = smoothquant.search_scale(weights, statistics, [INT8] * 2)
    assert both.loss < 0.97 * grid.loss  # seen: 0.90


def test_tied_channels_get_one_scale() -> None:
    weights, statistics = _data()
    tie = np.arange(96) % 32
    scale = smoothquant.search_scale(weights, statistics, [INT8] * 2, tie=tie).scale.reshape(3, 32)
    np.testing.assert_allclose(scale[0], scale[1], rtol=1e-6)
    np.testing.assert_allclose(scale[0], scale[2], rtol=1e-6)


def test_dead_channels_of_either_side_get_finite_scales() -> None:
    weights, statistics = _data()
    weights[0][:, 3] = weights[1][:, 3] = 0
    assert statistics.sample is not None and statistics.max_abs is not None
    statistics.sample[:, 7] = statistics.max_abs[7] = 0
    choice = smoothquant.search_scale(weights, statistics, [INT8] * 2)
    assert np.isfinite(choice.scale).all() and (choice.scale > 0).all() and choice.loss <= choice.plain_loss


def test_one_scale_for_all_rows_is_found_too() -> None:
    weights, statistics = _data()
    choice = smoothquant.search_scale(weights, statistics, [INT8] * 2, activations="tensor")
    assert choice.loss < 0.2 * choice.plain_loss


def test_statistics_that_lack_rows_are_refused() -> None:
    weights, statistics = _data()
    with pytest.raises(CalibrationError, match="rows; calibrate"):
        smoothquant.search_scale(weights, InputStatistics(1, max_abs=statistics.max_abs), [INT8] * 2)


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_an_alpha_outside_is_refused(alpha: float) -> None:
    with pytest.raises(SchemeError, match="outside 0 to 1"):
        SmoothQuantOptions(alpha=alpha)
