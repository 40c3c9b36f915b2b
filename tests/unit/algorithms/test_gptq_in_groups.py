"""GPTQ of groups: each group's codes are those of its own Hessian, and errors fall."""

import numpy as np
import pytest

from qcompiler.algorithms import gptq, mse, rtn
from qcompiler.algorithms.error import quantization_error
from qcompiler.errors import CalibrationError, SchemeError
from qcompiler.quant.scheme import Granularity, QuantScheme
from qcompiler.quant.statistics import GroupedStatistics, InputStatistics
from tests.layer_data import heavy_tailed

CHANNEL = QuantScheme(8, True, Granularity.CHANNEL)
TENSOR = QuantScheme(8, True, Granularity.TENSOR)
by_scheme = pytest.mark.parametrize("scheme", [CHANNEL, TENSOR], ids=["channel", "tensor"])


def _even_inputs(groups: int, k: int, seed: int = 0) -> GroupedStatistics:
    """Windows of images: neighbours are nearly alike, each channel with a strength of its own."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((groups, 500, 1)) + 0.1 * rng.standard_normal((groups, 500, k))
    rows = (rows * np.exp(rng.standard_normal((groups, 1, 1)))).astype(np.float32)
    return GroupedStatistics(500, rows.transpose(0, 2, 1) @ rows / 500)


@by_scheme
def test_even_inputs_lose_less_than_by_rounding_to_nearest(scheme: QuantScheme) -> None:
    statistics, weight = _even_inputs(32, 9), heavy_tailed(32, 9, 5)
    ours = quantization_error(weight, gptq.quantize(weight, statistics, scheme), statistics)
    nearest = quantization_error(weight, rtn.quantize(weight, None, scheme), statistics)
    searched = quantization_error(weight, mse.quantize(weight, None, scheme), statistics)
    assert ours.output < 0.2 * min(nearest.output, searched.output)


def test_groups_do_not_influence_one_another() -> None:
    statistics, weight = _even_inputs(6, 9), heavy_tailed(12, 9, 5)
    whole = gptq.quantize(weight, statistics, CHANNEL)
    for group in range(6):
        alone = GroupedStatistics(500, statistics.hessian[group : group + 1])
        rows = slice(2 * group, 2 * group + 2)
        part = gptq.quantize(weight[rows], alone, CHANNEL)
        np.testing.assert_array_equal(part.codes, whole.codes[rows])
        np.testing.assert_array_equal(part.scale, whole.scale[rows])


def test_one_group_does_as_well_as_the_algorithm_for_matrices() -> None:
    statistics, weight = _even_inputs(1, 25), heavy_tailed(16, 25, 5)
    same = InputStatistics(500, statistics.hessian[0])
    ours = quantization_error(weight, gptq.quantize(weight, statistics, CHANNEL), same).output
    plain = quantization_error(weight, gptq.quantize(weight, same, CHANNEL), same).output
    assert ours < 1.5 * plain  # another order of columns, and scales that start unweighted


def test_the_error_of_groups_is_the_sum_of_theirs() -> None:
    statistics, weight = _even_inputs(4, 9), heavy_tailed(8, 9, 5)
    stored = rtn.quantize(weight, None, CHANNEL)
    e, w = stored.dequantize(slice(None)).astype(np.float64) - weight, weight.astype(np.float64)
    h = np.repeat(statistics.hessian.astype(np.float64), 2, axis=0)
    noise, signal = (np.einsum("nk,nkl,nl->", a, h, a) for a in (e, w))
    found = quantization_error(weight, stored, statistics).output
    assert found == pytest.approx(noise / signal, rel=1e-4)  # float32 sums of 72 products


def test_groups_that_nothing_drives_are_rounded_to_nearest() -> None:
    statistics, weight = _even_inputs(3, 9), heavy_tailed(3, 9, 5)
    statistics.hessian[1] = 0
    stored = gptq.quantize(weight, statistics, CHANNEL)
    assert (np.abs(stored.dequantize(slice(None))[1] - weight[1]) <= 0.51 * np.abs(stored.scale[1])).all()


def test_bad_numbers_are_refused() -> None:
    statistics, weight = _even_inputs(2, 9), heavy_tailed(2, 9, 5)
    with pytest.raises(SchemeError, match="NaN"):
        gptq.quantize(np.full_like(weight, np.nan), statistics, CHANNEL)
    statistics.hessian[0, 0, 0] = np.nan
    with pytest.raises(CalibrationError, match="NaN"):
        gptq.quantize(weight, statistics, CHANNEL)
