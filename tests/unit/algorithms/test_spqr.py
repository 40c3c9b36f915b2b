"""SpQR: which weights are kept, that they are exact where nothing is made up for, and what they save."""

import numpy as np
import numpy.typing as npt
import pytest

from qcompiler.algorithms import gptq, hessian, mse, spqr
from qcompiler.algorithms.spqr import SpqrOptions
from qcompiler.errors import CalibrationError, SchemeError
from qcompiler.quant.affine import store_values
from qcompiler.quant.affine_tensor import AffineTensor
from qcompiler.quant.outliers import Outliers, outliers_label
from qcompiler.quant.scheme import Granularity, QuantScheme, ScaleDtype
from qcompiler.quant.statistics import InputStatistics
from qcompiler.quant.tensor import CorrectedTensor
from tests.layer_data import OTHER_SCHEMES, correlated_inputs, heavy_tailed, output_error

Float = npt.NDArray[np.float32]
INT3 = QuantScheme(3, False, Granularity.GROUP, 32)
SCHEMES = [INT3, *OTHER_SCHEMES]
by_scheme = pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.label)


def _weight(n: int, k: int) -> Float:
    return heavy_tailed(n, k, 4)


def _mask(found: CorrectedTensor) -> npt.NDArray[np.bool_]:
    assert found.outliers is not None
    mask = np.zeros(found.shape, bool)
    mask[np.repeat(np.arange(found.shape[0]), np.diff(found.outliers.offsets)), found.outliers.columns] = True
    return mask


@by_scheme
def test_the_share_is_kept_and_its_codes_mean_zero(scheme: QuantScheme) -> None:
    weight, statistics = _weight(24, 64), correlated_inputs(64)
    options = SpqrOptions(share=0.02)
    found = spqr.quantize(weight, statistics, scheme, options)
    assert isinstance(found.base, AffineTensor) and found.base.scheme == scheme
    mask = _mask(found)
    assert mask.sum() == round(0.02 * weight.size)
    assert not found.base.dequantize()[mask].any()
    assert found.stored_bytes == scheme.stored_bytes(24, 64) + spqr.stored_bytes(options, scheme, 24, 64)


@by_scheme
def test_outliers_save_more_than_they_cost_others(scheme: QuantScheme) -> None:
    weight, statistics = _weight(48, 64), correlated_inputs(64)
    plain = output_error(weight, gptq.quantize(weight, statistics, scheme), statistics)
    few, more = (
        output_error(weight, spqr.quantize(weight, statistics, scheme, SpqrOptions(share=share)), statistics)
        for share in (0.01, 0.05)
    )
    assert more < few < plain


def test_the_most_sensitive_are_kept() -> None:
    weight, statistics = _weight(16, 32), correlated_inputs(32)
    found = spqr.quantize(weight, statistics, INT3, SpqrOptions(share=0.05))
    h = np.asarray(statistics.hessian, np.float64)
    inverse = np.linalg.inv(h + np.eye(32) * SpqrOptions().damping * np.diagonal(h).mean())
    cost = np.square(weight.astype(np.float64)) / np.diagonal(inverse)
    mask = _mask(found)
    assert cost[mask].min() >= cost[~mask].max() * (1 - 1e-3)  # the factor is computed in float32


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_kept_weights_take_up_the_errors_of_columns_before_them(dtype: ScaleDtype) -> None:
    """The textbook's loop: round, spread over what is left; a kept weight is stored as it then is, as nearly as its type holds it."""
    weight, statistics = _weight(4, 24), correlated_inputs(24)
    scheme = QuantScheme(3, False, Granularity.GROUP, 8, dtype)
    found = spqr.quantize(weight, statistics, scheme, SpqrOptions(share=0.1, refine=0))
    mask = _mask(found)
    base = found.base
    assert isinstance(base, AffineTensor) and base.zero_point is not None
    plan = hessian.factor(statistics, SpqrOptions().damping, "cpu")
    left = weight.astype(np.float64).copy()
    expected = np.zeros_like(left)
    for at, j in enumerate(plan.order):
        scale, zero = base.scale[:, j // 8].astype(np.float64), base.zero_point[:, j // 8].astype(np.float64)
        rounded = (np.clip(np.rint(left[:, j] / scale + zero), 0, 7) - zero) * scale
        held = store_values(left[:, j].astype(np.float32), dtype)
        expected[:, j] = np.where(mask[:, j], held, rounded)
        error = left[:, j] - expected[:, j]
        later = plan.order[at + 1 :]
        left[:, later] -= error[:, None] * plan.spread[at + 1 :, at]
    # One weight of 96 may round the other way, in float32, at a tie.
    close = np.isclose(found.dequantize(), expected, atol=1e-3)
    assert close.mean() > 0.98


@pytest.mark.parametrize("refine", [0, 1])
def test_what_the_type_of_a_kept_weight_does_not_hold_others_make_up_for(refine: int) -> None:
    hessian = np.array([[1.1, 1, 0], [1, 1, 0], [0, 0, 1]], np.float32)  # the first two channels go together
    weight, mask = np.array([[257, 1, 4]], np.float32), np.array([[True, False, False]])
    scheme = QuantScheme(4, False, Granularity.CHANNEL, None, "bfloat16")
    options = SpqrOptions(damping=1e-3, refine=refine)
    base, kept = gptq.round_together(weight, InputStatistics(9, hessian), scheme, options, mask)
    assert kept is not None and kept[0, 0] in (256, 258)  # 8 bits of mantissa: in steps of 2 there
    # Half a step of the code, and what bfloat16 rounds its scale by.
    assert abs(kept[0, 0] + base.dequantize()[0, 1] - 258) <= base.scale[0, 0] * 0.55


@pytest.mark.parametrize("scheme", [INT3, QuantScheme(3, False, Granularity.GROUP, 32, "bfloat16")])
def test_refinement_never_costs(scheme: QuantScheme) -> None:
    weight, statistics = _weight(32, 64), correlated_inputs(64)
    h = np.asarray(statistics.hessian)
    damped = InputStatistics(
        1, h + np.eye(64, dtype=np.float32) * SpqrOptions().damping * np.diagonal(h).mean()
    )
    errors = [
        output_error(weight, spqr.quantize(weight, statistics, scheme, SpqrOptions(refine=refine)), damped)
        for refine in (0, 1, 3)
    ]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.97 * errors[0]


def test_without_data_the_largest_are_kept_as_they_are() -> None:
    weight = _weight(24, 64)
    found = spqr.quantize(weight, None, INT3, SpqrOptions(share=0.02))
    mask = _mask(found)
    assert np.abs(weight[mask]).min() >= np.abs(weight[~mask]).max()
    np.testing.assert_array_equal(found.dequantize()[mask], weight[mask])
    zeroed = mse.quantize(np.where(mask, 0, weight), None, INT3)
    np.testing.assert_array_equal(found.base.dequantize(), zeroed.dequantize())
    never_driven = spqr.quantize(
        weight, InputStatistics(1, np.zeros((64, 64), np.float32)), INT3, SpqrOptions(share=0.02)
    )
    np.testing.assert_array_equal(never_driven.dequantize(), found.dequantize())


def test_equal_weights_give_the_share_all_the_same() -> None:
    found = spqr.quantize(np.ones((8, 32), np.float32), None, INT3, SpqrOptions(share=0.1))
    assert _mask(found).sum() == 26


def test_at_least_one_is_kept() -> None:
    assert _mask(spqr.quantize(_weight(2, 16), None, QuantScheme(3, False, Granularity.CHANNEL))).sum() == 1


def test_what_is_not_a_number_is_refused() -> None:
    bad = _weight(4, 32)
    bad[1, 2] = np.nan
    with pytest.raises(SchemeError, match="NaN"):
        spqr.quantize(bad, None, INT3)
    with pytest.raises(SchemeError, match="no code means 0"):
        spqr.quantize(_weight(4, 32), None, QuantScheme(4, False, Granularity.GROUP, 32, zero_point="float"))
    with pytest.raises(CalibrationError, match="NaN"):
        spqr.quantize(_weight(4, 32), InputStatistics(9, np.full((32, 32), np.nan, np.float32)), INT3)


@pytest.mark.parametrize(
    "given", [{"share": 0.0}, {"share": 0.6}, {"damping": 0.0}, {"refine": -1}, {"rounds": -1}]
)
def test_options_that_make_no_sense(given: dict[str, float]) -> None:
    with pytest.raises(SchemeError, match=next(iter(given))):
        SpqrOptions(**given)  # type: ignore[arg-type]


def test_the_weight_is_not_written_to() -> None:
    weight = _weight(8, 32)
    weight.flags.writeable = False
    spqr.quantize(weight, correlated_inputs(32), INT3)


def test_outliers_row_after_row() -> None:
    rng = np.random.default_rng(0)
    mask, values = rng.random((9, 20)) < 0.2, rng.standard_normal((9, 20)).astype(np.float32)
    mask[4] = False
    found = Outliers.at(mask, values, "float16")
    held = values.astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(found.dense(slice(None)), np.where(mask, held, 0))
    np.testing.assert_array_equal(found.dense(slice(3, 6)), np.where(mask, held, 0)[3:6])
    assert found.stored_bytes == int(mask.sum()) * 4 + 4 * 10
    assert outliers_label(1, 300) == "0.33 % outliers"


@pytest.mark.parametrize(
    ("columns", "offsets", "why"),
    [
        ([0, 2], [0, 1, 1], "do not divide"),
        ([0, 2], [0, 2, 1, 2], "do not divide"),
        ([2, 0], [0, 2, 2], "must rise"),
        ([1, 1], [0, 2, 2], "must rise"),
        ([0, 9], [0, 1, 2], "from 0 to 3"),
    ],
)
def test_outliers_that_are_no_rows(columns: list[int], offsets: list[int], why: str) -> None:
    with pytest.raises(SchemeError, match=why):
        Outliers(
            np.ones(2, np.float32), np.array(columns, np.int32), np.array(offsets, np.int32), 4, "float32"
        )
