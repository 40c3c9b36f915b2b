"""GPTQ: the factor of the Hessian, the textbook's codes, and error that each step lowers."""

import numpy as np
import numpy.typing as npt
import pytest
import torch

from qcompiler.algorithms import gptq, hessian, mse, rtn
from qcompiler.errors import CalibrationError, SchemeError
from qcompiler.quant.scheme import Granularity, QuantScheme
from qcompiler.quant.statistics import InputStatistics
from tests.layer_data import OTHER_SCHEMES, correlated_inputs, heavy_tailed, output_error

Float = npt.NDArray[np.float32]
INT4 = QuantScheme(4, False, Granularity.GROUP, 32)
SCHEMES = [INT4, *OTHER_SCHEMES]
by_scheme = pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.label)


def _weight(n: int, k: int) -> Float:
    return heavy_tailed(n, k, 5)


def test_the_factor_is_the_cholesky_factor_of_the_inverse() -> None:
    statistics = correlated_inputs(24, 100)
    found = hessian.factor(statistics, 0.01, "cpu")
    h = np.asarray(statistics.hessian, np.float64)
    h = h + np.eye(24) * 0.01 * np.diagonal(h).mean()
    p = found.order
    upper = np.linalg.cholesky(np.linalg.inv(h[np.ix_(p, p)])).T
    assert (np.diff(np.diagonal(statistics.hessian)[p]) <= 0).all()
    # The factor is computed in float32; the matrix's condition is about 1e4.
    np.testing.assert_allclose(found.spread, (upper / np.diagonal(upper)[:, None]).T, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(found.remaining[p], 1 / np.square(np.diagonal(upper)), rtol=1e-3)


@pytest.mark.parametrize("rows", [1, 5])
def test_too_few_rows_for_a_hessian_are_damped(rows: int) -> None:
    statistics, weight = correlated_inputs(64, rows), _weight(8, 64)
    tensor = gptq.quantize(weight, statistics, INT4)
    assert np.isfinite(tensor.scale).all()
    assert output_error(weight, tensor, statistics) <= output_error(
        weight, rtn.quantize(weight, None, INT4), statistics
    )


def test_a_matrix_that_is_not_positive_definite_gets_more_damping() -> None:
    h = np.diag(np.array([1.0, 1.0, -0.5, 1.0], np.float32))
    found = hessian.factor(InputStatistics(9, h), 0.01, "cpu")
    assert found.damping > 0.5 and (found.remaining > 0).all()


def test_channels_that_nothing_drives_are_kept() -> None:
    statistics, weight = correlated_inputs(64, 300), _weight(8, 64)
    assert statistics.hessian is not None
    dead = [3, 40]
    statistics.hessian[dead] = 0
    statistics.hessian[:, dead] = 0
    stored = gptq.quantize(weight, statistics, INT4)
    step = np.repeat(stored.scale, 32, axis=1)[:, dead]
    # Nothing makes up for them and they make up for nothing: to the nearest code, but for a clipped end of the range.
    assert np.median(np.abs(stored.dequantize()[:, dead] - weight[:, dead]) / step) <= 0.5
    assert (np.abs(stored.dequantize()[:, dead] - weight[:, dead]) <= 2 * step).all()
    assert np.isfinite(
        gptq.quantize(weight, InputStatistics(9, np.zeros((64, 64), np.float32)), INT4).scale
    ).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_hessian_that_is_not_finite_is_refused(bad: float) -> None:
    statistics = correlated_inputs(32, 100)
    assert statistics.hessian is not None
    statistics.hessian[1, 2] = bad
    with pytest.raises(CalibrationError, match="Hessian holds NaN or infinity"):
        gptq.quantize(_weight(4, 32), statistics, INT4)


@pytest.mark.parametrize("text", ["damping", "refine", "steps", "shrink", "rounds"])
def test_options_have_bounds(text: str) -> None:
    """Those of the search for scales too, before any weight is there."""
    with pytest.raises(SchemeError, match=text):
        gptq.GptqOptions(**{text: -1})


@pytest.mark.filterwarnings("error")  # 0 / 0 warned, and cast to whatever the processor makes of NaN
@pytest.mark.parametrize("scheme", [INT4, QuantScheme(4, True, Granularity.GROUP, 32)], ids=lambda s: s.label)
def test_a_row_of_zeros_stays_zero_where_activations_are_small(scheme: QuantScheme) -> None:
    """Such a row has the smallest scale that is stored, 2^-126, and activations of 3e-5 a Hessian of 1e-9."""
    statistics, weight = correlated_inputs(64, 300), _weight(8, 64)
    weight[2] = 0
    assert statistics.hessian is not None
    statistics.hessian[:] *= 1e-9
    stored = gptq.quantize(weight, statistics, scheme)
    middle = scheme.midpoint if stored.zero_point is None else np.repeat(stored.zero_point[2], 32)
    np.testing.assert_array_equal(stored.codes[2], np.broadcast_to(middle, 64))


def test_codes_are_those_of_the_textbook() -> None:
    """Equation 2 of the paper, column by column, with the inverse brought up to date after each (equation 3)."""
    statistics, weight = (
        correlated_inputs(200, 800),
        _weight(5, 200),
    )  # more columns than are brought up to date at once
    options = gptq.GptqOptions(damping=0.01, refine=0)
    tensor = gptq.quantize(weight, statistics, QuantScheme(4, False, Granularity.GROUP, 64), options)
    assert tensor.zero_point is not None
    h = np.asarray(statistics.hessian, np.float64)
    order = np.argsort(-np.diagonal(h), kind="stable")
    inverse = np.linalg.inv(h + np.eye(200) * 0.01 * np.diagonal(h).mean())
    left, codes = weight.astype(np.float64), np.zeros(weight.shape)
    for column in order:
        scale, zero = tensor.scale[:, column // 64], tensor.zero_point[:, column // 64].astype(float)
        codes[:, column] = np.clip(np.rint(left[:, column] / scale + zero), 0, 15)
        error = left[:, column] - (codes[:, column] - zero) * scale
        left -= np.outer(error, inverse[column] / inverse[column, column])
        inverse -= np.outer(inverse[:, column], inverse[column]) / inverse[column, column]
    # float32 against float64: a value next to a rounding border may fall on its other side, and later columns follow.
    assert np.mean(codes != tensor.codes) < 0.02


@by_scheme
def test_each_step_lowers_the_output_error(scheme: QuantScheme) -> None:
    statistics, weight = correlated_inputs(160, 640), _weight(48, 160)
    plain = output_error(weight, mse.quantize(weight, statistics, scheme), statistics)
    spread = output_error(
        weight, gptq.quantize(weight, statistics, scheme, gptq.GptqOptions(refine=0)), statistics
    )
    refined = output_error(weight, gptq.quantize(weight, statistics, scheme), statistics)
    assert spread < 0.8 * plain  # seen: 0.3 to 0.7
    assert refined < spread


@by_scheme
def test_refining_never_raises_the_error_that_it_minimises(scheme: QuantScheme) -> None:
    statistics, weight = correlated_inputs(64, 256), _weight(16, 64)
    tensor = mse.quantize(weight, statistics, scheme)
    h = np.ascontiguousarray(statistics.hessian) + 0.1 * np.eye(64, dtype=np.float32)
    grid = gptq.Grid.of(tensor, slice(None), "cpu")
    target, codes = np.ascontiguousarray(weight.T), tensor.codes.T.astype(np.float32)

    def loss(codes: Float, grid: gptq.Grid) -> float:
        e = gptq._values(codes, grid) - target
        return float((e * (h @ e)).sum())

    losses = [loss(codes, grid)]
    for _ in range(4):
        if scheme.granularity is not Granularity.TENSOR:
            grid = gptq.refit(target, codes, grid, h)
            losses.append(loss(codes, grid))
        codes = gptq.descend(target, codes, grid, h)
        losses.append(loss(codes, grid))
    assert (np.diff(losses) <= 1e-5 * losses[0]).all()  # float32 sums
    assert losses[-1] < 0.9 * losses[0]


def test_torch_gives_the_same_as_numpy() -> None:
    statistics, weight = correlated_inputs(96, 400), _weight(8, 96)
    plan = hessian.factor(statistics, 0.01, "cpu")
    grid = gptq.Grid.of(mse.quantize(weight, statistics, INT4), slice(None), "cpu")
    placed = gptq.Grid(
        grid.scheme, torch.from_numpy(grid.scale), torch.from_numpy(grid.zero_point), grid.group
    )
    target, h = np.ascontiguousarray(weight.T), np.ascontiguousarray(statistics.hessian)
    ours = gptq.round_columns(target, grid, plan)
    theirs = gptq.round_columns(torch.from_numpy(target), placed, plan)
    assert np.mean(ours != theirs.numpy()) < 0.02  # see the textbook's test
    refined = gptq.refit(torch.from_numpy(target), torch.from_numpy(ours), placed, torch.from_numpy(h))
    np.testing.assert_allclose(refined.scale.numpy(), gptq.refit(target, ours, grid, h).scale, rtol=1e-3)
    moved = gptq.descend(torch.from_numpy(target), torch.from_numpy(ours), placed, torch.from_numpy(h))
    assert np.mean(moved.numpy() != gptq.descend(target, ours, grid, h)) < 0.02


def test_half_precision_and_a_short_last_group() -> None:
    weight, statistics = _weight(6, 80).astype(np.float16), correlated_inputs(80, 400)
    tensor = gptq.quantize(weight, statistics, INT4)  # groups of 32, 32 and 16
    plain = mse.quantize(weight, statistics, INT4)
    full = weight.astype(np.float32)
    assert output_error(full, tensor, statistics) < 0.9 * output_error(full, plain, statistics)


def test_without_statistics_it_is_mse() -> None:
    weight = _weight(4, 64)
    np.testing.assert_array_equal(
        gptq.quantize(weight, None, INT4).codes, mse.quantize(weight, None, INT4).codes
    )
