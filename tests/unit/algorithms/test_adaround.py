"""AdaRound: less output error than rounding to nearest, every code next to its weight."""

import numpy as np
import pytest

from qcompiler.algorithms import adaround, mse, rtn
from qcompiler.errors import CalibrationError, SchemeError
from qcompiler.quant.affine_tensor import AffineTensor
from qcompiler.quant.scheme import Granularity, QuantScheme
from qcompiler.quant.statistics import GroupedStatistics, InputStatistics
from tests.layer_data import OTHER_SCHEMES, correlated_inputs, heavy_tailed, output_error

INT4 = QuantScheme(4, False, Granularity.GROUP, 32)
INT8 = QuantScheme(8, True, Granularity.CHANNEL)


@pytest.mark.parametrize("scheme", [INT4, INT8, *OTHER_SCHEMES], ids=lambda scheme: scheme.label)
def test_less_is_lost_than_with_the_same_scales_and_nearest_codes(scheme: QuantScheme) -> None:
    statistics, weight = correlated_inputs(64, 400), heavy_tailed(24, 64, 5)
    learned = adaround.quantize(weight, statistics, scheme)
    nearest = mse.quantize(weight, statistics, scheme)
    np.testing.assert_array_equal(learned.scale, nearest.scale)
    assert output_error(weight, learned, statistics) < 0.8 * output_error(weight, nearest, statistics)
    assert output_error(weight, learned, statistics) < 0.8 * output_error(
        weight, rtn.quantize(weight, None, scheme), statistics
    )


def test_every_code_is_next_to_its_weight() -> None:
    statistics, weight = correlated_inputs(64, 400), heavy_tailed(24, 64, 5)
    learned = adaround.quantize(weight, statistics, INT8)
    inside = (learned.codes > 0) & (learned.codes < 255)
    away = np.abs(learned.dequantize(slice(None)) - weight) / np.abs(learned.scale)
    assert (away[inside] < 1 + 1e-5).all()


def test_groups_are_learned_each_by_its_own_hessian() -> None:
    rng = np.random.default_rng(0)
    rows = (rng.standard_normal((8, 300, 1)) + 0.1 * rng.standard_normal((8, 300, 9))).astype(np.float32)
    hessian = rows.transpose(0, 2, 1) @ rows / 300
    weight = heavy_tailed(16, 9, 5)
    whole = adaround.quantize(weight, GroupedStatistics(300, hessian), INT8)
    nearest = rtn.quantize(weight, None, INT8)
    learned, rounded = 0.0, 0.0
    for group in range(8):
        part = slice(2 * group, 2 * group + 2)
        alone = InputStatistics(300, hessian[group])
        learned += output_error(weight[part], _rows(whole, part), alone)
        rounded += output_error(weight[part], _rows(nearest, part), alone)
    assert learned < 0.5 * rounded


def test_blocks_of_rows_are_learned_as_if_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    statistics, weight = correlated_inputs(32, 200), heavy_tailed(20, 32, 5)
    whole = adaround.quantize(weight, statistics, INT8)
    monkeypatch.setattr(adaround, "ROWS", 3 * 32)
    parts = adaround.quantize(weight, statistics, INT8)
    # another order of sums in float32 may tip a code whose two neighbours cost the same
    assert (whole.codes != parts.codes).mean() < 0.01


def test_without_a_hessian_it_is_mse() -> None:
    weight = heavy_tailed(8, 32, 5)
    dead = InputStatistics(10, np.zeros((32, 32), np.float32))
    for statistics in (None, dead):
        tensor = adaround.quantize(weight, statistics, INT8)
        np.testing.assert_array_equal(tensor.codes, mse.quantize(weight, statistics, INT8).codes)


def test_bad_numbers_and_options_are_refused() -> None:
    statistics, weight = correlated_inputs(32, 100), heavy_tailed(4, 32, 5)
    assert statistics.hessian is not None
    with pytest.raises(SchemeError, match="NaN"):
        adaround.quantize(np.full_like(weight, np.inf), statistics, INT8)
    statistics.hessian[3, 3] = np.nan
    with pytest.raises(CalibrationError, match="NaN"):
        adaround.quantize(weight, statistics, INT8)
    with pytest.raises(SchemeError, match="learning_rate"):
        adaround.AdaroundOptions(learning_rate=0)
    with pytest.raises(SchemeError, match="iterations"):
        adaround.AdaroundOptions(iterations=-1)


def _rows(tensor: AffineTensor, rows: slice) -> AffineTensor:
    return AffineTensor(tensor.scheme, tensor.codes[rows], tensor.scale[rows], None)
