"""rtn and mse on codebooks: what a result is, and that the search is never worse than none."""

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from qcompiler.algorithms import Algorithm, arrays, checked, find, mse
from qcompiler.errors import SchemeError
from qcompiler.quant.codebook import TABLES, CodebookTensor
from qcompiler.quant.scheme import Granularity, QuantScheme
from qcompiler.quant.statistics import InputStatistics

SCHEMES = [
    QuantScheme(4, True, Granularity.GROUP, 32, "float32", dtype, double)  # type: ignore[arg-type]
    for dtype in sorted(TABLES)
    for double in (False, True)
]
by_scheme = pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.label)
by_name = pytest.mark.parametrize("algorithm", [find("rtn"), find("mse")], ids=lambda found: found.name)


def _run(
    algorithm: Algorithm, weight: npt.NDArray[Any], statistics: InputStatistics | None, scheme: QuantScheme
) -> CodebookTensor:
    found = algorithm.run(weight, statistics, scheme, algorithm.options())
    tensor = checked(found, scheme, weight.shape, "test")  # type: ignore[arg-type]
    assert isinstance(tensor, CodebookTensor)
    return tensor


def _data(n: int, k: int) -> tuple[npt.NDArray[np.float32], InputStatistics]:
    """A heavy-tailed weight, and channels driven unequally."""
    rng = np.random.default_rng(0)
    weight = rng.standard_t(4, (n, k)).astype(np.float32)
    return weight, InputStatistics(4 * k, mean_square=np.exp(rng.normal(size=k)).astype(np.float32))


def _error(tensor: CodebookTensor, weight: npt.NDArray[Any], importance: npt.NDArray[Any]) -> float:
    return float((importance * np.square(tensor.dequantize() - weight.astype(np.float32))).sum())


@by_name
@by_scheme
@pytest.mark.parametrize("k", [1, 17, 32, 33, 80, 96])
def test_codes_are_the_nearest_for_the_stored_scales(
    algorithm: Algorithm, scheme: QuantScheme, k: int
) -> None:
    weight, statistics = _data(12, k)
    tensor = _run(algorithm, weight, statistics, scheme)
    table = TABLES[scheme.dtype]
    scales = np.repeat(tensor.scale, 32)[: weight.size].reshape(weight.shape)
    least = np.abs(table * scales[..., None] - weight[..., None]).min(axis=-1)
    # Codes are chosen by the quotient, which is rounded once.
    assert np.all(np.abs(tensor.dequantize() - weight) <= least + 1e-6 * scales)


@by_scheme
@pytest.mark.parametrize("k", [31, 96])
def test_round_to_nearest_keeps_the_largest_of_each_block(scheme: QuantScheme, k: int) -> None:
    weight, _ = _data(12, k)
    flat = np.zeros(-(-weight.size // 32) * 32, np.float32)
    flat[: weight.size] = weight.reshape(-1)
    largest = np.abs(flat.reshape(-1, 32)).max(axis=1)
    tensor = _run(find("rtn"), weight, None, scheme)
    slack = largest.max() / 255 if scheme.double_quant else 0.0
    assert np.all(np.abs(tensor.scale - largest) <= slack)


@by_scheme
def test_the_search_pays_and_weighs_channels(scheme: QuantScheme) -> None:
    weight, statistics = _data(64, 96)
    importance = statistics.diagonal()
    assert importance is not None
    plain = _error(_run(find("rtn"), weight, None, scheme), weight, importance)
    blind = _error(_run(find("mse"), weight, None, scheme), weight, importance)
    searched = _error(_run(find("mse"), weight, statistics, scheme), weight, importance)
    assert searched < blind < plain
    assert searched < 0.9 * plain  # seen: 0.75 to 0.82


@pytest.mark.parametrize("k", [24, 32])
def test_no_block_is_worse_than_rounded_to_nearest(k: int) -> None:
    scheme = SCHEMES[4]
    weight, statistics = _data(16, k)
    importance = np.broadcast_to(statistics.diagonal(), weight.shape).reshape(-1, 32)  # type: ignore[arg-type]

    def errors(name: str) -> npt.NDArray[Any]:
        found = _run(find(name), weight, statistics, scheme).dequantize()
        sums: npt.NDArray[Any] = (importance * np.square(found - weight).reshape(-1, 32)).sum(axis=1)
        return sums

    assert np.all(errors("mse") <= errors("rtn") * (1 + 1e-4))  # float32 sums of 32 terms


@by_name
@by_scheme
def test_a_weight_of_zeros_is_stored_exactly(algorithm: Algorithm, scheme: QuantScheme) -> None:
    assert not _run(algorithm, np.zeros((3, 40), np.float32), None, scheme).dequantize().any()


@by_name
@by_scheme
def test_nan_is_refused(algorithm: Algorithm, scheme: QuantScheme) -> None:
    weight = np.ones((3, 40), np.float32)
    weight[1, 1] = np.nan
    with pytest.raises(SchemeError, match="NaN or infinity"):
        _run(algorithm, weight, None, scheme)


@by_name
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_weights_are_their_float32_values(algorithm: Algorithm, dtype: Any) -> None:
    half = _data(6, 48)[0].astype(dtype)
    one, other = (_run(algorithm, w, None, SCHEMES[4]) for w in (half, half.astype(np.float32)))
    assert np.array_equal(one.codes, other.codes) and np.array_equal(one.scale, other.scale)


@by_name
@by_scheme
def test_numpy_alone_finds_the_same(
    algorithm: Algorithm, scheme: QuantScheme, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight, statistics = _data(9, 70)
    with_torch = _run(algorithm, weight, statistics, scheme)
    monkeypatch.setattr(arrays, "has_torch", lambda: False)
    alone = _run(algorithm, weight, statistics, scheme)
    # Sums in another order may tip a tie between two scales.
    assert np.mean(with_torch.codes != alone.codes) <= 0.01


@by_name
def test_chunks_change_nothing(algorithm: Algorithm, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, statistics = _data(50, 40)
    whole = [_run(algorithm, weight, statistics, scheme) for scheme in SCHEMES]
    monkeypatch.setattr(arrays, "CHUNK", 40 * 9)
    monkeypatch.setattr(arrays.row_blocks, "__defaults__", (40 * 21, 1))
    for scheme, expected in zip(SCHEMES, whole, strict=True):
        tensor = _run(algorithm, weight, statistics, scheme)
        assert np.array_equal(tensor.codes, expected.codes)
        assert np.array_equal(tensor.scale, expected.scale)


def test_options_of_the_search_are_those_of_mse() -> None:
    weight, statistics = _data(8, 64)
    none = find("mse").run(weight, statistics, SCHEMES[4], mse.MseOptions(steps=1, rounds=0))
    assert np.array_equal(none.scale, _run(find("rtn"), weight, None, SCHEMES[4]).scale)


def test_what_finds_integers_says_so() -> None:
    assert not find("gptq").codebooks
    scheme = SCHEMES[4]
    integers = QuantScheme(4, True, Granularity.GROUP, 32)
    result = find("rtn").run(np.ones((2, 32), np.float32), None, integers, None)
    with pytest.raises(SchemeError, match=f"returned {integers.label} .* where {scheme.label}"):
        checked(result, scheme, (2, 32), "mine")
    with pytest.raises(SchemeError, match="return a CodebookTensor"):
        checked(None, scheme, (2, 32), "mine")


@by_name
def test_a_row_of_zeros_costs_its_neighbours_nothing(algorithm: Algorithm) -> None:
    """Its scale is free; as 1 it would be the largest of those that are stored in 8 bits together."""
    scheme = QuantScheme(4, True, Granularity.GROUP, 32, "float32", "nf4", True)
    weight = (0.001 * np.random.default_rng(0).standard_normal((8, 64))).astype(np.float32)
    without = np.delete(_run(algorithm, weight, None, scheme).dequantize(), 3, axis=0)
    weight[3] = 0
    found = _run(algorithm, weight, None, scheme).dequantize()
    assert not found[3].any()
    # At most the step of the 8-bit scales differs, where the row held the largest of them.
    np.testing.assert_allclose(np.delete(found, 3, axis=0), without, atol=2e-5)
