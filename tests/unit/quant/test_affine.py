import itertools
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qcompiler.errors import SchemeError
from qcompiler.quant.affine import (
    dequantize_codes,
    is_midpoint,
    offsets,
    quantize_codes,
    range_to_scale,
    store_scale,
    to_groups,
    unsigned_zero_point,
)
from qcompiler.quant.scheme import Granularity, QuantScheme, ScaleDtype

SCHEMES = [
    QuantScheme(bits, symmetric, granularity, 16 if granularity is Granularity.GROUP else None)
    for bits, symmetric, granularity in itertools.product(
        (1, 2, 3, 4, 8), (True, False), (Granularity.GROUP, Granularity.CHANNEL)
    )
    if bits > 1 or not symmetric
]
WEIGHTS = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 4), st.integers(1, 50)),
    elements=st.floats(-(2.0**60), 2.0**60, width=32),
)


def _round_trip(weight: Any, scheme: QuantScheme) -> tuple[Any, Any, Any]:
    groups = to_groups(weight, scheme)
    scale, zero_point = range_to_scale(groups.min(-1), groups.max(-1), scheme)
    codes = quantize_codes(weight, scale, zero_point, scheme)
    return dequantize_codes(codes, scale, zero_point, scheme), codes, scale


def _each(scale: npt.NDArray[Any], scheme: QuantScheme, k: int) -> npt.NDArray[Any]:
    return np.repeat(scale, scheme.group_width(k), axis=1)[:, :k]


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.label)
@given(weight=WEIGHTS)
@settings(max_examples=40, deadline=None)
def test_a_weight_is_off_by_half_a_step_at_most(scheme: QuantScheme, weight: npt.NDArray[np.float32]) -> None:
    back, codes, scale = _round_trip(weight, scheme)
    step = _each(scale, scheme, weight.shape[1])
    # The end opposite to a symmetric extreme may lie one step past the last code. Float32 itself adds a few epsilons.
    clipped = weight / step > scheme.midpoint - 1 if scheme.signed_scales else np.zeros(weight.shape, bool)
    limit = np.abs(step) * np.where(clipped, 1.0, 0.5) + 4 * np.finfo(np.float32).eps * np.abs(weight)
    assert codes.dtype == np.uint8 and int(codes.max()) <= scheme.max_code
    assert np.all(np.abs(back - weight) <= limit)


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.label)
def test_zero_stays_zero(scheme: QuantScheme) -> None:
    rng = np.random.default_rng(0)
    weight = (rng.normal(size=(4, 40)) + 3).astype(np.float32)  # ranges that do not hold 0 by themselves
    weight[:, ::3] = 0
    weight[2] = 0
    back, _, scale = _round_trip(weight, scheme)
    assert np.all(back[weight == 0] == 0)
    assert np.all(np.abs(scale[2]) <= 2.0**-24)


def test_known_codes() -> None:
    weight = np.array([[-1.0, -0.5, 0.0, 0.5]], np.float32)
    asymmetric = QuantScheme(2, False, Granularity.CHANNEL)
    scale, zero_point = range_to_scale(weight.min(-1)[:, None], weight.max(-1)[:, None], asymmetric)
    assert scale.tolist() == [[0.5]] and zero_point is not None and zero_point.tolist() == [[2.0]]
    assert quantize_codes(weight, scale, zero_point, asymmetric).tolist() == [[0, 1, 2, 3]]
    symmetric = QuantScheme(4, True, Granularity.CHANNEL)
    scale, none = range_to_scale(weight.min(-1)[:, None], weight.max(-1)[:, None], symmetric)
    assert scale.tolist() == [[0.125]] and none is None
    assert quantize_codes(weight, scale, None, symmetric).tolist() == [[0, 4, 8, 12]]


@pytest.mark.parametrize("extreme", [-1.0, 1.0])
def test_a_symmetric_extreme_is_the_lowest_code_whatever_its_sign(extreme: float) -> None:
    weight = np.array([[extreme, -extreme * 15 / 16, extreme / 2, 0.0]], np.float32)
    scheme = QuantScheme(4, True, Granularity.GROUP, 4)
    back, codes, scale = _round_trip(weight, scheme)
    assert scale.tolist() == [[-extreme / 8]] and codes.tolist() == [[0, 15, 4, 8]]
    assert back.tolist() == [[extreme, -extreme * 7 / 8, extreme / 2, 0.0]]


@pytest.mark.parametrize("granularity", [Granularity.CHANNEL, Granularity.TENSOR])
def test_eight_bits_without_groups_keep_positive_scales_and_clip_nothing(granularity: Granularity) -> None:
    weight = np.array([[1.0, -0.25, 0.5, 0.0]], np.float32)
    back, codes, scale = _round_trip(weight, QuantScheme(8, True, granularity))
    assert scale.tolist() == [[np.float32(1) / np.float32(127)]] and codes.tolist() == [[255, 96, 192, 128]]
    assert back[0, 0] == pytest.approx(1, rel=2 * float(np.finfo(np.float32).eps))


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.label)
def test_torch_and_numpy_choose_the_same_codes(scheme: QuantScheme) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    weight = np.random.default_rng(1).normal(size=(8, 72)).astype(np.float32)
    groups = to_groups(torch.from_numpy(weight), scheme)
    scale, zero_point = range_to_scale(groups.amin(-1), groups.amax(-1), scheme)
    codes = quantize_codes(torch.from_numpy(weight), scale, zero_point, scheme)
    back, expected, expected_scale = _round_trip(weight, scheme)
    assert np.array_equal(scale.numpy(), expected_scale)
    assert np.array_equal(codes.numpy(), expected)
    assert np.array_equal(dequantize_codes(codes, scale, zero_point, scheme).numpy(), back)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_weights(dtype: str) -> None:
    kind = np.float16 if dtype == "float16" else ml_dtypes.bfloat16
    weight = np.random.default_rng(2).normal(size=(3, 48)).astype(kind)
    scheme = QuantScheme(8, False, Granularity.GROUP, 16)
    back, codes, _ = _round_trip(weight, scheme)
    expected, expected_codes, _ = _round_trip(weight.astype(np.float32), scheme)
    assert np.array_equal(codes, expected_codes) and np.array_equal(back, expected)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite_is_refused(bad: float) -> None:
    weight = np.zeros((2, 32), np.float32)
    weight[1, 3] = bad
    with pytest.raises(SchemeError, match="NaN or infinity"):
        _round_trip(weight, SCHEMES[0])


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@given(scale=hnp.arrays(np.float32, 5, elements=st.floats(0, 2.0**127, width=32, allow_subnormal=True)))
@settings(max_examples=100, deadline=None)
def test_stored_scales_are_finite_exact_and_never_zero(
    dtype: ScaleDtype, scale: npt.NDArray[np.float32]
) -> None:
    held = store_scale(scale, dtype)
    negative = scale > 0
    assert np.array_equal(store_scale(-scale, dtype), np.where(negative, -held, held))
    kind = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}[dtype]
    assert held.dtype == np.float32
    assert np.array_equal(held.astype(kind).astype(np.float32), held)
    assert np.all(held > 0) and np.all(np.isfinite(held)) and np.all(np.isfinite(1 / held))
    assert np.all(held[scale == 0] <= 2.0**-24)  # float16's smallest
    assert np.array_equal(store_scale(held, dtype), held)


def test_float16_scales_at_the_ends_of_their_range() -> None:
    scale = np.array([1e6, 65519.0, 1e-9, 2.0**-24, 1.2 * 2.0**-24, 3e-5], np.float32)
    held = store_scale(scale, "float16")
    assert held[:2].tolist() == [65504.0, 65504.0]
    assert held[2:5].tolist() == [2.0**-24, 2.0**-24, 2.0**-23]
    assert scale[5] <= held[5] <= scale[5] + 2.0**-24


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_codes_are_chosen_for_the_scale_that_is_stored(dtype: ScaleDtype) -> None:
    weight = np.random.default_rng(3).normal(size=(16, 64)).astype(np.float32)
    scheme = QuantScheme(8, False, Granularity.GROUP, 64, dtype)
    back, _, scale = _round_trip(weight, scheme)
    # Half of the last place of bfloat16 is 2^-8, over 255 steps one step at the ends; float16's is 2^-11.
    slack = 255 * (2.0**-8 if dtype == "bfloat16" else 2.0**-11)
    assert np.all(np.abs(back - weight) <= scale * (0.5 + slack) * (1 + 1e-5))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@given(
    mean=st.floats(0.0625, 16, width=32),
    negative=st.booleans(),
    log_spread=st.floats(-9, 1),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_float_zero_points_hold_a_group_far_from_zero(
    bits: int, dtype: ScaleDtype, mean: float, negative: bool, log_spread: float, seed: int
) -> None:
    spread = mean * 10**log_spread
    noise = np.random.default_rng(seed).uniform(-spread, spread, (3, 64))
    weight = ((-mean if negative else mean) + noise).astype(np.float32)
    scheme = QuantScheme(bits, False, Granularity.GROUP, 32, dtype, zero_point="float")
    back, _, scale = _round_trip(weight, scheme)
    groups = to_groups(weight, scheme)
    last_place = {"float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}[dtype]
    far = np.abs(weight).max() * last_place
    # Not wider than the range asks for, or than what the type holds of numbers of that size (a zero point up to 2 / last_place).
    widest = (groups.max(-1) - groups.min(-1)) / scheme.max_code
    assert np.all(scale <= (widest + far) * (1 + last_place))
    # Half a step of the code; as much and a half again of a zero point and a scale that are held; the offset's own rounding.
    limit = _each(scale, scheme, 64) * (2 + scheme.max_code * last_place) + 2 * far
    assert np.all(np.abs(back - weight) <= limit)


def test_an_offset_too_large_for_its_type_becomes_its_largest_number() -> None:
    scheme = QuantScheme(4, False, Granularity.GROUP, 32, "float16", zero_point="float")
    found = offsets(np.array([[60.0, 60.0]], np.float32), np.array([[6e4, -6e4]], np.float32), scheme)
    assert found.tolist() == [[-65504.0, 65504.0]]


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_signed_zero_points_as_unsigned_ones(bits: int) -> None:
    middle = 1 << (bits - 1)
    signed = np.arange(-middle, middle, dtype=np.int8)
    np.testing.assert_array_equal(unsigned_zero_point(signed, bits, True), np.arange(2 * middle))
    unsigned = np.arange(2 * middle, dtype=np.uint8)
    np.testing.assert_array_equal(unsigned_zero_point(unsigned, bits, False), unsigned)
    assert is_midpoint(np.zeros(3, np.int8), bits, True)
    assert is_midpoint(np.full(3, middle, np.uint8), bits, False)
    assert not is_midpoint(signed, bits, True)
    assert not is_midpoint(np.zeros(3, np.uint8), bits, False)
