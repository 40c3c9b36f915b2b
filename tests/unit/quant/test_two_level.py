"""Two-level numbers and what codes with them mean."""

import numpy as np
import pytest

from qcompiler.errors import SchemeError
from qcompiler.quant.scheme import Granularity, QuantScheme
from qcompiler.quant.two_level import Levels, TwoLevelTensor, to_levels

Q4_K = QuantScheme(4, False, Granularity.GROUP, 32, two_level=True)
Q3_K = QuantScheme(3, True, Granularity.GROUP, 16, two_level=True)
Q2_K = QuantScheme(2, False, Granularity.GROUP, 16, two_level=True)


@pytest.mark.parametrize(
    ("scheme", "bits"), [(Q4_K, 4.5), (Q3_K, 4.4375), (Q2_K, 2.625)], ids=["Q4_K", "Q3_K", "Q2_K"]
)
def test_stored_bits(scheme: QuantScheme, bits: float) -> None:
    """Those of llama.cpp, but for three-bit codes, which are stored in four: 3.4375 + 1."""
    assert scheme.bits_per_weight(256, 1024) == bits


@pytest.mark.parametrize("scheme", [Q4_K, Q3_K, Q2_K], ids=lambda scheme: scheme.label)
def test_levels_are_within_half_a_step(scheme: QuantScheme) -> None:
    values = np.random.default_rng(0).uniform(-1 if scheme.symmetric else 0, 1, (7, 9)).astype(np.float32)
    levels = to_levels(values, scheme, signed=scheme.symmetric)
    each = np.repeat(levels.step, scheme.super_groups)[: values.size].reshape(values.shape)
    # half a step, and float16's rounding of the step (2^-11) for each of at most 63 steps
    assert (np.abs(levels.values(scheme) - values) <= each * (0.5 + 63 * 2.0**-11)).all()
    assert levels.codes.max() < 1 << scheme.level_bits


def test_a_block_of_zeros_stays_zero() -> None:
    levels = to_levels(np.zeros((2, 8), np.float32), Q4_K, signed=False)
    assert not levels.values(Q4_K).any()


@pytest.mark.parametrize("scheme", [Q4_K, Q3_K, Q2_K], ids=lambda scheme: scheme.label)
def test_what_codes_mean(scheme: QuantScheme) -> None:
    rng = np.random.default_rng(1)
    n, k = 3, 2 * (scheme.group_size or 0) + 5
    shape = scheme.scale_shape(n, k)
    bias = 1 << (scheme.level_bits - 1) if scheme.symmetric else 0
    supers = scheme.supers(n, k)
    scales, minima = (
        Levels(
            rng.integers(0, 1 << scheme.level_bits, shape, dtype=np.uint8),
            np.full(supers, 2.0**-8, np.float32),
            b,
        )
        for b in (bias, 0)
    )
    codes = rng.integers(0, scheme.max_code + 1, (n, k), dtype=np.uint8)
    tensor = TwoLevelTensor(scheme, codes, scales, None if scheme.symmetric else minima)
    each = np.repeat((scales.codes.astype(int) - bias) / 256, scheme.group_size, axis=1)[:, :k]
    expected = (codes.astype(int) - scheme.midpoint) * each
    if not scheme.symmetric:
        expected = codes * each - np.repeat(minima.codes / 256, scheme.group_size, axis=1)[:, :k]
    np.testing.assert_array_equal(tensor.dequantize(), expected)  # multiples of 1/256 below 2^24: exact
    np.testing.assert_array_equal(tensor.dequantize(slice(1, 2)), expected[1:2])


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"bits": 8}, "not stored with"),
        ({"zero_point": "float", "symmetric": False}, "minima take the place of zero points"),
        ({"granularity": Granularity.CHANNEL, "group_size": None}, "minima take the place"),
    ],
)
def test_schemes_that_are_refused(given: dict[str, object], told: str) -> None:
    fields: dict[str, object] = {
        "bits": 4,
        "symmetric": True,
        "granularity": Granularity.GROUP,
        "group_size": 32,
    }
    with pytest.raises(SchemeError, match=told):
        QuantScheme(**{**fields, **given}, two_level=True)  # type: ignore[arg-type]


def test_what_is_too_large_for_the_scales_type_becomes_its_largest_number() -> None:
    scheme = QuantScheme(4, False, Granularity.GROUP, 32, "float16", two_level=True)
    codes, supers = np.full((1, 32), 63, np.uint8), np.full(1, 2.0**15, np.float32)
    tensor = TwoLevelTensor(
        scheme, codes % 16, Levels(codes[:, :1] * 0 + 1, supers, 0), Levels(codes[:, :1], supers, 0)
    )
    assert tensor.offset is not None and tensor.offset.tolist() == [[-65504.0]]
    assert np.isfinite(tensor.dequantize()).all()
