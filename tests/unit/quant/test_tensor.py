import numpy as np
import pytest

from qcompiler.errors import SchemeError
from qcompiler.quant.affine_tensor import AffineTensor
from qcompiler.quant.scheme import Granularity, QuantScheme

CODES = np.arange(32, dtype=np.uint8).reshape(2, 16) % 16


def test_dequantize_means_codes_less_zero_point_times_scale() -> None:
    scheme = QuantScheme(4, False, Granularity.GROUP, 16)
    tensor = AffineTensor(scheme, CODES, np.array([[0.5], [2.0]], np.float32), np.array([[3], [5]], np.uint8))
    expected = (CODES.astype(np.float32) - [[3], [5]]) * [[0.5], [2.0]]
    assert tensor.shape == (2, 16)
    assert np.array_equal(tensor.dequantize(), expected)
    assert np.array_equal(tensor.dequantize(slice(1, 2)), expected[1:])


def test_symmetric_tensor_granularity_reads_rows_with_the_one_scale() -> None:
    tensor = AffineTensor(
        QuantScheme(4, True, Granularity.TENSOR), CODES, np.full((1, 1), 0.25, np.float32), None
    )
    expected = (CODES.astype(np.float32) - 8) * 0.25
    assert np.array_equal(tensor.dequantize(slice(1, 2)), expected[1:])


def test_parts_that_disagree_with_the_scheme_are_refused() -> None:
    symmetric = QuantScheme(4, True, Granularity.CHANNEL)
    scale, zero_point = np.ones((2, 1), np.float32), np.zeros((2, 1), np.uint8)
    with pytest.raises(SchemeError, match="codes"):
        AffineTensor(symmetric, CODES.astype(np.int8), scale, None)
    with pytest.raises(SchemeError, match="scale"):
        AffineTensor(symmetric, CODES, np.ones((2, 2), np.float32), None)
    with pytest.raises(SchemeError, match="must not have one"):
        AffineTensor(symmetric, CODES, scale, zero_point)
    asymmetric = QuantScheme(4, False, Granularity.CHANNEL)
    with pytest.raises(SchemeError, match="must have one"):
        AffineTensor(asymmetric, CODES, scale, None)
    with pytest.raises(SchemeError, match="zero_point"):
        AffineTensor(asymmetric, CODES, scale, zero_point[:1])


def test_scales_of_two_levels_are_another_tensors() -> None:
    two_level = QuantScheme(4, True, Granularity.GROUP, 16, two_level=True)
    with pytest.raises(
        SchemeError, match="int4 g16 sym two-level: its scales are of two levels; make a TwoLevelTensor"
    ):
        AffineTensor(two_level, CODES, np.ones((2, 1), np.float32), None)
