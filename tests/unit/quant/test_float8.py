"""8-bit floats: the nearest number, what saturates, what a tensor of them means, and what is none."""

import numpy as np
import pytest

from qcompiler.algorithms import float8 as algorithm
from qcompiler.errors import SchemeError
from qcompiler.quant import float8
from qcompiler.quant.affine_tensor import AffineTensor
from qcompiler.quant.float8 import Float8Tensor
from qcompiler.quant.scheme import Dtype, Granularity, QuantScheme
from tests.small_models import weight

N, K = 7, 33
MANTISSA = {"e4m3": 3, "e5m2": 2}
by_dtype = pytest.mark.parametrize("dtype", ["e4m3", "e5m2"])
by_width = pytest.mark.parametrize("granularity", [Granularity.CHANNEL, Granularity.TENSOR])


@by_dtype
def test_every_number_is_its_own_nearest_and_the_largest_is_where_it_saturates(dtype: Dtype) -> None:
    values = np.arange(256, dtype=np.uint8).view(float8.TYPES[dtype]).astype(np.float32)
    finite = np.isfinite(values)
    assert values[finite].max() == float8.LARGEST[dtype]
    codes = float8.nearest_codes(values[finite], dtype)
    assert np.array_equal(codes, np.arange(256)[finite])
    beyond = np.array([1e9, -1e9, float8.LARGEST[dtype] * 1.2], np.float32)
    held = float8.nearest_codes(beyond, dtype).view(float8.TYPES[dtype]).astype(np.float32)
    assert np.array_equal(held, float8.LARGEST[dtype] * np.array([1, -1, 1]))


@by_width
@by_dtype
def test_a_weight_is_within_half_a_step(dtype: Dtype, granularity: Granularity) -> None:
    values = weight(N, K)
    values[3] = 0
    found = algorithm.round_to_nearest(values, None, QuantScheme(8, True, granularity, dtype=dtype))
    # Half of the last bit of the mantissa; of numbers below the normal ones, half of the least.
    smallest = float8.TYPES[dtype].type(np.uint8(1).view(float8.TYPES[dtype])).astype(np.float32)
    bound = np.abs(values) * 2.0 ** -(MANTISSA[dtype] + 1) + found.scale * smallest
    assert (np.abs(found.dequantize() - values) <= bound).all()
    assert np.abs(found.dequantize()).max() == pytest.approx(np.abs(values).max(), rel=1e-6)
    assert np.array_equal(found.dequantize(slice(2, 5)), found.dequantize()[2:5])


@by_dtype
def test_schemes(dtype: Dtype) -> None:
    scheme = QuantScheme(8, True, Granularity.CHANNEL, dtype=dtype)
    assert (scheme.label, scheme.is_float8, scheme.is_codebook) == (f"{dtype} channel", True, False)
    assert scheme.stored_bytes(N, K) == N * K + 4 * N
    for wrong, message in (
        ({"bits": 4}, f"dtype: {dtype} has 8 bits, not 4"),
        ({"symmetric": False}, f"dtype: {dtype} has no zero points"),
        ({"granularity": Granularity.GROUP, "group_size": 32}, "set group_size: channel or tensor"),
        ({"double_quant": True}, "double_quant: 8-bit floats keep float scales"),
    ):
        given = {"bits": 8, "symmetric": True, "granularity": Granularity.CHANNEL, "dtype": dtype} | wrong
        with pytest.raises(SchemeError, match=message):
            QuantScheme(**given)


def test_what_is_no_such_tensor() -> None:
    scheme = QuantScheme(8, True, Granularity.CHANNEL, dtype="e4m3")
    codes, scale = np.zeros((N, K), np.uint8), np.ones((N, 1), np.float32)
    with pytest.raises(SchemeError, match="make an AffineTensor"):
        Float8Tensor(QuantScheme(8, True, Granularity.CHANNEL), codes, scale)
    with pytest.raises(SchemeError, match="make a Float8Tensor"):
        AffineTensor(scheme, codes, scale, None)
    with pytest.raises(SchemeError, match=r"scale: float32\(1, 1\); must be float32\(7, 1\)"):
        Float8Tensor(scheme, codes, scale[:1])
    with pytest.raises(SchemeError, match="must be uint8"):
        Float8Tensor(scheme, codes.astype(np.int8), scale)  # type: ignore[arg-type]
    values = weight(N, K)
    values[1, 1] = np.inf
    with pytest.raises(SchemeError, match="NaN or infinity"):
        algorithm.round_to_nearest(values, None, scheme)
