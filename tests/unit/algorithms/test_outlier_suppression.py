"""Outlier Suppression+: what is shifted and scaled, that it errs less where it should, and what is refused."""

import numpy as np
import numpy.typing as npt
import pytest

from qcompiler.algorithms.outlier_suppression import OutlierSuppressionOptions, search
from qcompiler.errors import CalibrationError, SchemeError
from qcompiler.quant.activations import Activations
from qcompiler.quant.scheme import Granularity, QuantScheme
from qcompiler.quant.statistics import InputStatistics
from tests.small_models import weight

INT8 = QuantScheme(8, True, Granularity.CHANNEL)
N, K, ROWS = 24, 32, 128
Float = npt.NDArray[np.float32]


def _statistics(x: Float) -> InputStatistics:
    return InputStatistics(len(x), lowest=x.min(axis=0), highest=x.max(axis=0), mean=x.mean(axis=0), sample=x)


def _rows() -> Float:
    return np.random.default_rng(1).uniform(-1, 1, (ROWS, K)).astype(np.float32)


def _lopsided() -> Float:
    """Some channels far to one side of 0, each as narrow as the others."""
    x = _rows()
    x[:, ::5] += 40
    x[:, 1::5] -= 30
    return x


@pytest.mark.parametrize("activations", ["tensor", "static", "token"])
def test_channels_to_one_side_are_shifted(activations: Activations) -> None:
    x = _lopsided()
    options = OutlierSuppressionOptions(shift=True)
    found = search([weight(N, K)], _statistics(x), [INT8], options, activations=activations)
    assert found.shift is not None
    assert np.allclose(found.shift, (x.min(axis=0) + x.max(axis=0)) / 2, rtol=1e-6)
    # Steps of a range of 2 in place of one of 72: squared, a thousandth, and what rounding the weight leaves of the rest.
    assert found.loss < 0.01 * found.plain_loss
    still = search(
        [weight(N, K)],
        _statistics(x),
        [INT8],
        OutlierSuppressionOptions(shift=False),
        activations=activations,
    )
    assert still.shift is None and found.loss < still.loss


def test_static_ranges_are_not_shifted_unasked() -> None:
    for activations, shifted in (("static", False), ("tensor", True)):
        found = search([weight(N, K)], _statistics(_lopsided()), [INT8], activations=activations)
        assert (found.shift is not None) is shifted


def test_wide_channels_alone_are_scaled() -> None:
    x = _rows()
    x[:, [3, 8]] *= 50
    found = search([weight(N, K), weight(4, K, seed=2)], _statistics(x), [INT8, INT8], activations="tensor")
    assert (
        found.loss < 0.2 * found.plain_loss
    )  # steps a ninth as wide, and weights whose two columns are nine times as large
    wide = np.zeros(K, bool)
    wide[[3, 8]] = True
    assert (found.scale[wide] > 5).all() and (found.scale >= 1).all()
    assert found.scale[~wide].max() < found.scale[wide].min() / 5


def test_tied_channels_have_one_scale() -> None:
    x = _rows()
    x[:, 3] *= 50
    tie = np.arange(K) // 4
    found = search([weight(N, K)], _statistics(x), [INT8], tie=tie, activations="tensor")
    assert found.scale[3] > 1
    assert all(len(set(found.scale[tie == group])) == 1 for group in range(K // 4))


def test_nothing_to_gain_leaves_all_as_it_is() -> None:
    x = np.zeros((ROWS, K), np.float32)
    found = search([weight(N, K)], _statistics(x), [INT8], activations="static")
    assert found.shift is None and (found.scale == 1).all() and found.loss == found.plain_loss == 0


def test_statistics_are_those_of_what_is_left() -> None:
    x = _lopsided()
    shift = np.linspace(-3, 40, K).astype(np.float32)
    whole = InputStatistics(
        ROWS, x.T @ x / ROWS, np.abs(x).mean(axis=0), np.abs(x).max(axis=0), np.square(x).mean(axis=0),
        sample=x, lowest=x.min(axis=0), highest=x.max(axis=0), mean=x.mean(axis=0),
    )  # fmt: skip
    found, left = whole.shifted(shift), x - shift
    # Sums of squares up to 70^2 from which as much is taken away, in float32: 70^2 times some 2^-24.
    for got, expected in (
        (found.hessian, left.T @ left / ROWS),
        (found.mean_square, np.square(left).mean(axis=0)),
        (found.max_abs, np.abs(left).max(axis=0)),
        (found.mean_abs, np.abs(left).mean(axis=0)),
        (found.mean, left.mean(axis=0)),
    ):
        assert got is not None and np.allclose(got, expected, rtol=1e-5, atol=2e-2)
    assert found.lowest is not None and np.array_equal(found.lowest, x.min(axis=0) - shift)


def test_what_is_refused() -> None:
    with pytest.raises(CalibrationError, match="needs the ranges of channels, and rows"):
        search([weight(N, K)], InputStatistics(5), [INT8])
    with pytest.raises(SchemeError, match="steps: 1"):
        OutlierSuppressionOptions(steps=1)
    with pytest.raises(ValueError, match="cannot be shifted"):
        InputStatistics(5).shifted(np.zeros(K))
