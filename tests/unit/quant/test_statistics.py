import dataclasses

import numpy as np

from qcompiler.quant.statistics import InputStatistics


def _statistics(x: np.ndarray) -> InputStatistics:
    return InputStatistics(
        x.shape[0], x.T @ x / x.shape[0], np.abs(x).mean(0), np.abs(x).max(0), np.square(x).mean(0)
    )


def test_scaled_statistics_are_those_of_the_scaled_input() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 6)).astype(np.float32)
    s = rng.uniform(0.3, 3, 6).astype(np.float32)
    scaled, expected = _statistics(x).scaled(s), _statistics(x / s)
    assert scaled.rows == 50
    for name in ("hessian", "mean_abs", "max_abs", "mean_square"):
        np.testing.assert_allclose(getattr(scaled, name), getattr(expected, name), rtol=2e-6, atol=1e-6)


def test_what_was_not_gathered_stays_absent() -> None:
    scaled = InputStatistics(7).scaled(np.ones(3))
    assert dataclasses.asdict(scaled) == dataclasses.asdict(InputStatistics(7))
    assert InputStatistics(0).diagonal() is None


def test_diagonal_comes_from_either() -> None:
    square = np.array([1.0, 4.0], np.float32)
    for statistics in (InputStatistics(1, hessian=np.diag(square)), InputStatistics(1, mean_square=square)):
        diagonal = statistics.diagonal()
        assert diagonal is not None and diagonal.tolist() == [1.0, 4.0]
