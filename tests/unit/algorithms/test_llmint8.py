"""LLM.int8(): which columns are kept, that the others are rounded as if those were not there, and what is refused."""

import numpy as np
import numpy.typing as npt
import pytest

from qcompiler.algorithms import llmint8, rtn
from qcompiler.algorithms.llmint8 import LlmInt8Options
from qcompiler.errors import SchemeError
from qcompiler.quant.affine import store_values
from qcompiler.quant.affine_tensor import AffineTensor
from qcompiler.quant.scheme import Granularity, QuantScheme, ScaleDtype
from qcompiler.quant.statistics import InputStatistics
from qcompiler.quant.tensor import CorrectedTensor
from tests.layer_data import heavy_tailed

INT8 = QuantScheme(8, True, Granularity.CHANNEL)
ASYM = QuantScheme(4, False, Granularity.GROUP, 16)
N, K = 12, 48
REACHED = (3, 17, 40)


def _reaching(*channels: int, size: float = 6.0) -> InputStatistics:
    largest = np.full(K, np.nextafter(np.float32(size), np.float32(0)), np.float32)
    largest[list(channels)] = size
    return InputStatistics(100, max_abs=largest)


def _weight() -> npt.NDArray[np.float32]:
    return heavy_tailed(N, K, 4)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("scheme", [INT8, ASYM], ids=lambda scheme: scheme.label)
def test_columns_that_outliers_reach_are_kept(scheme: QuantScheme, dtype: ScaleDtype) -> None:
    scheme = QuantScheme(scheme.bits, scheme.symmetric, scheme.granularity, scheme.group_size, dtype)
    weight = _weight()
    found = llmint8.quantize(weight, _reaching(*REACHED), scheme)
    assert isinstance(found, CorrectedTensor) and found.columns is not None
    assert found.columns.places.tolist() == list(REACHED) and found.label == "3 outlier columns"
    kept = found.dequantize()[:, REACHED]
    assert np.array_equal(kept, store_values(weight[:, REACHED], dtype))
    assert not found.base.dequantize()[:, REACHED].any()
    beside = 3 * (N * (4 if dtype == "float32" else 2) + 8)
    assert found.stored_bytes == scheme.stored_bytes(N, K) + beside


def test_the_others_are_rounded_without_them() -> None:
    weight = _weight()
    weight[:, REACHED] *= 1000  # scales that saw them would leave nothing of the others
    found = llmint8.quantize(weight, _reaching(*REACHED), INT8)
    others = np.delete(weight, REACHED, axis=1)
    alone = rtn.quantize(others, None, INT8).dequantize()
    assert np.array_equal(np.delete(found.dequantize(), REACHED, axis=1), alone)


def test_the_threshold_is_reached_by_what_is_as_large() -> None:
    statistics = _reaching(5, size=2.5)
    for threshold, kept in ((2.5, 1), (np.nextafter(np.float32(2.5), np.float32(3)), 0)):
        found = llmint8.quantize(_weight(), statistics, INT8, LlmInt8Options(threshold=float(threshold)))
        assert isinstance(found, CorrectedTensor) == bool(kept)


@pytest.mark.parametrize("statistics", [None, InputStatistics(5), _reaching()])
def test_without_outliers_there_are_codes_alone(statistics: InputStatistics | None) -> None:
    found = llmint8.quantize(_weight(), statistics, INT8)
    assert isinstance(found, AffineTensor)
    assert np.array_equal(found.codes, rtn.quantize(_weight(), None, INT8).codes)


def test_all_columns_may_be_kept() -> None:
    weight = _weight()
    found = llmint8.quantize(weight, _reaching(*range(K)), INT8)
    assert np.array_equal(found.dequantize(), weight)


@pytest.mark.parametrize("threshold", [0.0, -1.0, float("nan")])
def test_a_threshold_is_positive(threshold: float) -> None:
    with pytest.raises(SchemeError, match=r"^threshold: .*give a positive number, the paper's is 6"):
        LlmInt8Options(threshold=threshold)


def test_what_cannot_be_rounded_is_refused() -> None:
    floats = QuantScheme(4, False, Granularity.GROUP, 16, zero_point="float")
    with pytest.raises(SchemeError, match="no code means 0 with a float zero point"):
        llmint8.quantize(_weight(), _reaching(1), floats)
    weight = _weight()
    weight[2, 3] = np.nan
    with pytest.raises(SchemeError, match="NaN or infinity"):
        llmint8.quantize(weight, _reaching(1), INT8)
