"""How far a tensor is from its reference."""

import math

import numpy as np
import pytest

from qcompiler.quant.tensor_difference import TensorDifference
from qcompiler.quant.value_summary import CodeSaturation, ValueSummary


def of(*pairs: tuple[np.ndarray, np.ndarray]) -> TensorDifference:
    found = TensorDifference()
    for reference, approximation in pairs:
        found.add(reference, approximation)
    return found


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_figures_in_parts_are_those_of_the_whole() -> None:
    r = normal(6, 50, 8)
    a = r + 0.1 * normal(6, 50, 8, seed=1)
    whole, parted = of((r, a)), of((r[:2], a[:2]), (r[2:], a[2:]))
    error = a.astype(np.float64) - r
    expected = 10 * math.log10(np.square(r.astype(np.float64)).sum() / np.square(error).sum())
    for found in (whole, parted):
        assert found.sqnr_db == pytest.approx(expected)
        assert found.mean_error == pytest.approx(error.mean())
        assert found.max_error == pytest.approx(np.abs(error).max())
        assert (found.least, found.greatest, found.elements) == (r.min(), r.max(), r.size)
        assert found.cosine == pytest.approx(np.vdot(r, a) / np.linalg.norm(r) / np.linalg.norm(a), rel=1e-6)


def test_equal_and_empty() -> None:
    r = normal(3, 4)
    assert of((r, r)).sqnr_db == math.inf and of((r, r)).cosine == pytest.approx(1)
    assert of().sqnr_db == math.inf
    assert of((r[:0], r[:0])).elements == 0
    with pytest.raises(ValueError, match=r"\[3, 4\] and \[4, 3\]"):
        of((r, r.T))


@pytest.mark.parametrize("shape", [(40, 16), (5, 12, 16), (4, 16, 6, 6), (2, 4, 30, 16)])
def test_a_factor_for_each_channel_is_seen_through(shape: tuple[int, ...]) -> None:
    r = normal(*shape)
    axes = {2: (-1,), 3: (-1,), 4: (1, -1)}[len(shape)]
    sizes = [
        shape[axis] if axis % len(shape) in [each % len(shape) for each in axes] else 1
        for axis in range(len(shape))
    ]
    factors = np.random.default_rng(1).uniform(0.2, 5, sizes).astype(np.float32)
    found = of((r, r * factors))
    assert found.sqnr_db < 0 and found.rescaled_sqnr_db > 100
    assert of((r, -r)).rescaled_sqnr_db == pytest.approx(0, abs=1e-6)  # a factor is positive


def test_noise_gains_little_by_factors() -> None:
    r = normal(40, 64)
    found = of((r, r + normal(40, 64, seed=1)))
    assert found.rescaled_sqnr_db < found.sqnr_db + 4


def test_one_row_has_no_factors() -> None:
    r = normal(1, 64)
    assert of((r, 2 * r)).rescaled_sqnr_db == -math.inf


def test_a_rotation_keeps_lengths() -> None:
    turn, _ = np.linalg.qr(normal(64, 64, seed=2))
    r = normal(30, 64)
    found = of((r, r @ turn))
    assert found.length_error < 1e-5 and abs(found.cosine) < 0.2
    assert of((r, 2 * r)).length_error == pytest.approx(1)


def test_what_is_not_finite() -> None:
    r = normal(4, 8)
    r[0, 0] = -np.inf
    r[0, 1] = np.finfo(np.float32).min  # as masks have it
    r[0, 2] = np.nan
    assert of((r, r)).sqnr_db == math.inf and of((r, r)).unlike == 0
    a = r.copy()
    a[1, 0], a[1, 1] = np.nan, np.inf
    assert of((r, a)).sqnr_db == -math.inf and of((r, a)).unlike == 2


def test_summary_of_values() -> None:
    found = ValueSummary()
    for array in (np.array([0, 1, -3], np.float32), np.array([np.nan, np.inf, 2], np.float32)):
        found.add(array)
    assert (found.elements, found.zeros, found.nan, found.infinite) == (6, 1, 1, 1)
    assert (found.least, found.greatest, found.mean) == (-3, 2, 0)
    assert found.deviation == pytest.approx(np.std([0, 1, -3, 2]))


@pytest.mark.parametrize(("zero_point", "share"), [(128, 0.5), (0, 0.25), (255, 0.25)])
def test_saturation_leaves_out_zeros(zero_point: int, share: float) -> None:
    found = CodeSaturation(zero_point)
    found.add(np.array([0, 255, 7, 9], np.uint8))
    assert found.share == share


def test_the_range_is_of_numbers_alone() -> None:
    found = TensorDifference()
    found.add(np.array([[2.0, np.nan, 5.0, 1.0]]), np.array([[2.0, 0.0, 5.0, np.nan]]))
    assert (found.least, found.greatest, found.unlike) == (2.0, 5.0, 2)


def test_given_factors_are_not_fitted() -> None:
    r = normal(400, 16)
    factors = np.ones(16)
    factors[[3, 9]] = 2.0, 0.5
    found = of((r, (r * factors).astype(np.float32)))
    assert found.channels("last") == 16 and found.channels("first") == 0
    assert found.most_rescaled("last", 2).tolist() == [3, 9]
    assert found.scaled_sqnr_db("last", np.ones(16)) == pytest.approx(found.sqnr_db)
    assert found.scaled_sqnr_db("last", 1 / factors) > 100
    assert found.scaled_sqnr_db("last", np.zeros(16)) == pytest.approx(0)
