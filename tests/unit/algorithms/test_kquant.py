"""kquant: finds what is on its grid, beats rounding to nearest, uses what calibration saw; kinds of arrays agree."""

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from qcompiler.algorithms import arrays, kquant, rtn
from qcompiler.errors import SchemeError
from qcompiler.quant.scheme import Granularity, QuantScheme
from qcompiler.quant.statistics import InputStatistics

Q4_K = QuantScheme(4, False, Granularity.GROUP, 32, two_level=True)
Q3_K = QuantScheme(3, True, Granularity.GROUP, 16, two_level=True)
Q2_K = QuantScheme(2, False, Granularity.GROUP, 16, two_level=True)
by_scheme = pytest.mark.parametrize("scheme", [Q4_K, Q3_K, Q2_K], ids=["Q4_K", "Q3_K", "Q2_K"])


def _weight(n: int = 24, k: int = 320) -> npt.NDArray[np.float32]:
    return (np.random.default_rng(0).standard_t(5, (n, k)) * 0.05).astype(np.float32)


def _statistics(k: int = 320) -> InputStatistics:
    return InputStatistics(1000, mean_square=np.random.default_rng(1).lognormal(0, 1.5, k).astype(np.float32))


def _error(tensor: Any, weight: npt.NDArray[Any], h: npt.NDArray[Any] | float = 1.0) -> float:
    return float((h * np.square(tensor.dequantize() - weight, dtype=np.float64)).sum())


@by_scheme
def test_less_error_than_rounded_to_nearest_with_float32_scales(scheme: QuantScheme) -> None:
    """Two-level scales are coarser and yet the error that counts is less: the range is searched, and minima are no codes."""
    weight, statistics = _weight(), _statistics()
    plain = rtn.quantize(weight, None, dataclasses.replace(scheme, two_level=False))
    h = statistics.mean_square
    assert h is not None
    assert _error(kquant.quantize(weight, statistics, scheme), weight, h) < 0.8 * _error(plain, weight, h)
    assert _error(kquant.quantize(weight, None, scheme), weight) < 0.95 * _error(
        plain, weight
    )  # seen: 0.66 to 0.92


@by_scheme
def test_calibration_moves_errors_to_where_they_count_less(scheme: QuantScheme) -> None:
    weight, statistics = _weight(), _statistics()
    h = statistics.mean_square
    assert h is not None
    with_data, without = (kquant.quantize(weight, s, scheme) for s in (statistics, None))
    assert _error(with_data, weight, h) < 0.95 * _error(without, weight, h)
    unweighted = kquant.quantize(weight, statistics, scheme, kquant.KquantOptions(weighted=False))
    np.testing.assert_array_equal(unweighted.codes, without.codes)


@by_scheme
def test_codes_are_the_nearest_for_what_is_stored(scheme: QuantScheme) -> None:
    weight = _weight(5, 72)
    tensor = kquant.quantize(weight, None, scheme)
    best = np.abs(tensor.dequantize() - weight)
    for step in (-1, 1):
        moved = np.clip(tensor.codes.astype(int) + step, 0, scheme.max_code).astype(np.uint8)
        other = np.abs(dataclasses.replace(tensor, codes=moved).dequantize() - weight)
        assert (best <= other + 1e-7).all()  # float32 of numbers below 1


@by_scheme
@pytest.mark.parametrize("sign", [1, -1])
def test_nearly_constant_weights_keep_their_size(scheme: QuantScheme, sign: int) -> None:
    """Codes that are all the same but for one tell of no scale: a quotient of rounding errors is not taken for one."""
    noise = np.random.default_rng(3).standard_normal((8, 256)).astype(np.float32)
    weight = np.float32(sign / 64) * (1 + np.float32(1e-5) * noise)
    found = kquant.quantize(weight, None, scheme).dequantize()
    # Half a step of the coarsest codes of scales, 4 bits with a sign.
    np.testing.assert_allclose(found, weight, rtol=1 / 14)


def test_a_weight_on_the_grid_is_stored_exactly() -> None:
    """Scales of 63 steps of 2^-10, minima of 63 of 2^-8, every code used."""
    rng = np.random.default_rng(2)
    scale, minimum = rng.integers(32, 64, (4, 8)), rng.integers(20, 64, (4, 8))
    scale[:, 0] = minimum[:, 0] = 63  # one super-block a row
    codes = rng.integers(0, 16, (4, 8, 32))
    codes[..., 0], codes[..., 1] = 0, 15
    weight = (codes * scale[..., None] / 1024 - minimum[..., None] / 256).reshape(4, 256).astype(np.float32)
    found = kquant.quantize(weight, None, Q4_K)
    np.testing.assert_allclose(
        found.dequantize(), weight, atol=2**-9
    )  # the search ends within half a step of a scale


@pytest.mark.parametrize("scheme", [Q4_K, Q3_K], ids=["Q4_K", "Q3_K"])
def test_numpy_finds_what_torch_finds(scheme: QuantScheme, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, statistics = _weight(), _statistics()
    ours = kquant.quantize(weight, statistics, scheme)
    monkeypatch.setattr(arrays, "has_torch", lambda: False)
    plain = kquant.quantize(weight, statistics, scheme)
    # Sums in another order may prefer another range here and there.
    assert (ours.codes == plain.codes).mean() > 0.97


@by_scheme
def test_constant_and_empty_groups(scheme: QuantScheme) -> None:
    weight = _weight(4, 128)
    weight[1] = 0
    weight[2, :64] = -0.25
    found = kquant.quantize(weight, None, scheme).dequantize()
    assert (found[1] == 0).all()
    # a minimum within half of 63 steps (15 of a scale) of it; in a symmetric scheme a scale within half of 31
    assert np.abs(found[2, :64] + 0.25).max() <= 0.25 / 15


def test_one_level_is_refused() -> None:
    with pytest.raises(SchemeError, match="set two_level: true"):
        kquant.quantize(_weight(), None, QuantScheme(4, False, Granularity.GROUP, 32))


def test_a_weight_that_is_not_finite_is_refused() -> None:
    weight = _weight()
    weight[3, 3] = np.nan
    with pytest.raises(SchemeError, match="NaN or infinity"):
        kquant.quantize(weight, None, Q4_K)
