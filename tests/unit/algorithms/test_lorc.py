"""The part of low rank: against a full singular value decomposition, and laws that rounding must not break."""

import numpy as np
import numpy.typing as npt
import pytest

from qcompiler.algorithms import arrays, codebook, gptq, lorc, rtn
from qcompiler.algorithms.error import quantization_error
from qcompiler.algorithms.lorc import LorcOptions
from qcompiler.errors import SchemeError
from qcompiler.quant.low_rank import LowRank
from qcompiler.quant.scheme import Granularity, QuantScheme, ScaleDtype
from qcompiler.quant.statistics import InputStatistics
from qcompiler.quant.tensor import CorrectedTensor, QuantizedTensor
from tests.layer_data import correlated_inputs

Float = npt.NDArray[np.float32]
INT4 = QuantScheme(4, False, Granularity.GROUP, 32)


def _weight(n: int, k: int) -> Float:
    """Normal, over a few strong directions."""
    rng = np.random.default_rng(1)
    return (rng.normal(size=(n, k)) + 2 * rng.normal(size=(n, 3)) @ rng.normal(size=(3, k))).astype(
        np.float32
    )


def _never(weight: Float) -> QuantizedTensor:
    raise AssertionError("the quantizer was asked again")


def _damped(statistics: InputStatistics, damping: float) -> npt.NDArray[np.float64]:
    h = np.asarray(statistics.hessian, np.float64)
    return h + np.eye(len(h)) * damping * np.diagonal(h).mean()


def _output(error: npt.NDArray[np.floating], hessian: npt.NDArray[np.float64]) -> float:
    e = np.asarray(error, np.float64)
    return float(np.sum((e @ hessian) * e))


@pytest.mark.parametrize(("n", "k"), [(40, 64), (96, 64), (64, 64)])
def test_the_part_is_the_weighted_singular_value_decomposition(n: int, k: int) -> None:
    weight, statistics = _weight(n, k), correlated_inputs(k)
    base = rtn.quantize(weight, None, INT4)
    found = lorc.correct(weight, base, statistics, LorcOptions(rank=4, rounds=0), _never)
    assert found.base is base
    h = _damped(statistics, LorcOptions().damping)
    error = (weight - base.dequantize()).astype(np.float64)
    root = np.linalg.cholesky(h)
    u, s, vt = np.linalg.svd(error @ root, full_matrices=False)
    best = _output(error - (u[:, :4] * s[:4]) @ vt[:4] @ np.linalg.inv(root), h)
    assert best == pytest.approx(np.square(s[4:]).sum())
    # Rounding errors have no leading directions, the hardest case for an iteration from a random start: 1 % more than the least.
    assert best * (1 - 1e-4) <= _output(weight - found.dequantize(), h) <= best * 1.01


def test_without_statistics_it_is_the_plain_decomposition() -> None:
    weight = _weight(40, 64)
    base = rtn.quantize(weight, None, INT4)
    found = lorc.correct(weight, base, None, LorcOptions(rank=8, rounds=0), _never)
    s = np.linalg.svd(weight - base.dequantize(), compute_uv=False)
    assert np.square(weight - found.dequantize()).sum() <= np.square(s[8:]).sum() * 1.01


@pytest.mark.parametrize("silent", ["hessian", "mean_square"])
def test_an_input_that_was_never_driven_counts_as_none(silent: str) -> None:
    weight = _weight(8, 32)
    base = rtn.quantize(weight, None, INT4)
    zeros = np.zeros((32, 32) if silent == "hessian" else 32, np.float32)
    statistics = InputStatistics(1, **{silent: zeros})
    options = LorcOptions(rank=2, rounds=0)
    found = lorc.correct(weight, base, statistics, options, _never)
    plain = lorc.correct(weight, base, None, options, _never)
    np.testing.assert_array_equal(found.dequantize(), plain.dequantize())


def test_mean_squares_alone_weigh_channels() -> None:
    weight, driven = _weight(40, 64), np.geomspace(1e-3, 10, 64).astype(np.float32)
    base = rtn.quantize(weight, None, INT4)
    known = InputStatistics(9, mean_square=driven)
    found = lorc.correct(weight, base, known, LorcOptions(rank=4, rounds=0), _never)
    same = InputStatistics(9, hessian=np.diag(driven))
    full = lorc.correct(weight, base, same, LorcOptions(rank=4, rounds=0), _never)
    # The same sums in another order, through three orthogonalizations.
    np.testing.assert_allclose(found.dequantize(), full.dequantize(), atol=1e-3)


def test_more_rank_and_more_rounds_never_cost() -> None:
    weight, statistics = _weight(48, 64), correlated_inputs(64)
    h = _damped(statistics, LorcOptions().damping)

    def quantizer(rest: Float) -> QuantizedTensor:
        return gptq.quantize(rest, statistics, INT4)

    base = quantizer(weight)

    def left(rank: int, rounds: int) -> float:
        options = LorcOptions(rank, rounds)
        return _output(weight - lorc.correct(weight, base, statistics, options, quantizer).dequantize(), h)

    by_rank = [_output(weight - base.dequantize(), h), *(left(rank, 0) for rank in (1, 4, 16))]
    assert by_rank == sorted(by_rank, reverse=True)
    by_round = [left(4, rounds) for rounds in (0, 1, 3)]
    assert by_round == sorted(by_round, reverse=True)
    assert by_round[1] < 0.9 * by_round[0], "strong directions leave the weight before it is rounded"


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_factors_are_numbers_that_the_scales_type_holds(dtype: ScaleDtype) -> None:
    weight, statistics = _weight(40, 64), correlated_inputs(64)
    scheme = QuantScheme(4, False, Granularity.GROUP, 32, dtype)
    base = rtn.quantize(weight, None, scheme)
    found = lorc.correct(weight, base, statistics, LorcOptions(rank=8, rounds=0), _never)
    assert found.low_rank is not None and found.low_rank.dtype == dtype
    assert found.stored_bytes == scheme.stored_bytes(40, 64) + lorc.stored_bytes(
        LorcOptions(8), scheme, 40, 64
    )
    exact = rtn.quantize(weight, None, INT4)
    full = lorc.correct(weight, exact, statistics, LorcOptions(rank=8, rounds=0), _never)
    # A part of a hundredth of the weight's size, rounded to 8 bits of mantissa in the worst type.
    assert _gain(weight, found, statistics) < 1.02 * _gain(weight, full, statistics)


def _gain(weight: Float, found: CorrectedTensor, statistics: InputStatistics) -> float:
    after = quantization_error(weight, found, statistics).output
    return after / quantization_error(weight, found.base, statistics).output


def test_codes_of_a_table_are_corrected_too() -> None:
    weight, statistics = _weight(40, 64), correlated_inputs(64)
    scheme = QuantScheme(4, True, Granularity.GROUP, 32, dtype="nf4")
    base = codebook.round_to_nearest(weight, None, scheme)
    found = lorc.correct(weight, base, statistics, LorcOptions(rank=8, rounds=0), _never)
    assert _gain(weight, found, statistics) < 0.7


def test_a_second_part_takes_the_place_of_the_first() -> None:
    weight, statistics = _weight(40, 64), correlated_inputs(64)
    base = rtn.quantize(weight, None, INT4)
    once = lorc.correct(weight, base, statistics, LorcOptions(rank=4, rounds=0), _never)
    again = lorc.correct(weight, once, statistics, LorcOptions(rank=4, rounds=0), _never)
    np.testing.assert_array_equal(once.dequantize(), again.dequantize())


def test_an_exact_weight_gets_a_part_of_zeros() -> None:
    weight = np.zeros((8, 32), np.float32)
    base = rtn.quantize(weight, None, INT4)
    found = lorc.correct(weight, base, None, LorcOptions(rank=2, rounds=0), _never)
    np.testing.assert_array_equal(found.dequantize(), weight)


@pytest.mark.parametrize(("dtype", "size"), [("float16", 0.02), ("bfloat16", 1.0)])
def test_an_error_of_fewer_directions_than_the_rank(dtype: ScaleDtype, size: float) -> None:
    """Of very different size too: float16 holds a short column of A as 0, and the squares of others are subnormal."""
    scheme = QuantScheme(4, False, Granularity.GROUP, 64, dtype)
    rng = np.random.default_rng(1)
    free = rng.normal(size=(96, 256)) + 2 * rng.normal(size=(96, 3)) @ rng.normal(size=(3, 256))
    on_grid = rtn.quantize((size * free).astype(np.float32), None, scheme).dequantize()
    base = rtn.quantize(on_grid, None, scheme)
    weight = on_grid.copy()
    weight[3, 5] += 1e-3
    weight[20, 77] += 1e-7
    error = weight - base.dequantize()
    assert np.linalg.matrix_rank(error, tol=1e-6 * np.abs(error).max()) < LorcOptions().rank
    found = lorc.correct(weight, base, None, LorcOptions(rounds=0), _never)
    # Half of the last place of bfloat16 in either factor; and in float32 a sum beside the weight.
    limit = np.abs(error).max() * 2.0**-7 + np.abs(weight).max() * 2.0**-22
    assert np.abs(weight - found.dequantize()).max() <= limit


def test_rank_is_at_most_that_of_the_weight() -> None:
    weight = _weight(4, 32)
    base = rtn.quantize(weight, None, INT4)
    options = LorcOptions(rank=100, rounds=0)
    found = lorc.correct(weight, base, None, options, _never)
    assert found.low_rank is not None and found.low_rank.rank == 4
    assert found.stored_bytes - INT4.stored_bytes(4, 32) == lorc.stored_bytes(options, INT4, 4, 32)
    # Full rank leaves what float32 rounds away.
    np.testing.assert_allclose(found.dequantize(), weight, atol=1e-5)


def test_numpy_and_torch_find_the_same_part(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, statistics = _weight(40, 64), correlated_inputs(64)
    base = rtn.quantize(
        np.zeros_like(weight), None, INT4
    )  # the whole weight is left, with three strong directions
    options = LorcOptions(rank=3, rounds=0)
    with_torch = lorc.correct(weight, base, statistics, options, _never)
    monkeypatch.setattr(arrays, "has_torch", lambda: False)
    with_numpy = lorc.correct(weight, base, statistics, options, _never)
    # Directions far from the others: three squarings of float32 numbers apart.
    np.testing.assert_allclose(with_numpy.dequantize(), with_torch.dequantize(), atol=1e-3)


@pytest.mark.parametrize("given", [{"rank": 0}, {"rounds": -1}, {"damping": -0.1}])
def test_options_that_make_no_sense(given: dict[str, int]) -> None:
    with pytest.raises(SchemeError, match=next(iter(given))):
        LorcOptions(**given)


def test_a_low_rank_part_says_what_it_cannot_hold() -> None:
    left, right = np.ones((3, 2), np.float32), np.ones((2, 5), np.float32)
    with pytest.raises(SchemeError, match=r"\[N, r\] and \[r, K\]"):
        LowRank(left, right.T.copy(), "float32")
    with pytest.raises(SchemeError, match="NaN"):
        LowRank(left * np.nan, right, "float32")
    with pytest.raises(SchemeError, match="does not hold"):
        LowRank(left + np.float32(1e-6), right, "float16")
    base = rtn.quantize(np.ones((4, 32), np.float32), None, INT4)
    with pytest.raises(SchemeError, match=r"for a weight of \(3, 5\)"):
        CorrectedTensor(base, LowRank(left, right, "float32"))
    with pytest.raises(SchemeError, match="use the base"):
        CorrectedTensor(base)
