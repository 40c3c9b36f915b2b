"""HQQ: no group worse than rounded to nearest by its own two measures, and what each part of it does."""

import itertools
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
import torch

from qcompiler.algorithms import hqq, mse, rtn
from qcompiler.errors import SchemeError
from qcompiler.quant.affine_tensor import AffineTensor
from qcompiler.quant.scheme import Granularity, QuantScheme

INT4 = QuantScheme(4, False, Granularity.GROUP, 32)
SCHEMES = [
    *(
        QuantScheme(bits, symmetric, Granularity.GROUP, 32)
        for bits, symmetric in itertools.product((1, 2, 3, 4, 8), (False, True))
        if bits > 1 or not symmetric
    ),
    QuantScheme(4, False, Granularity.GROUP, 16, "float16"),
    QuantScheme(4, False, Granularity.GROUP, 256),
    QuantScheme(4, True, Granularity.CHANNEL),
    QuantScheme(3, False, Granularity.CHANNEL),
]
by_scheme = pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.label)


def _weight(n: int = 24, k: int = 320) -> npt.NDArray[np.float32]:
    return np.random.default_rng(0).standard_t(4, (n, k)).astype(np.float32)


def _losses(tensor: AffineTensor, weight: npt.NDArray[Any], p: float) -> npt.NDArray[np.float64]:
    """sum |w - Q(w)|^p of each group, [N, G]."""
    scheme, (n, k) = tensor.scheme, tensor.shape
    padded = np.zeros((n, scheme.groups(k) * scheme.group_width(k)))
    padded[:, :k] = np.abs(tensor.dequantize() - weight.astype(np.float32)) ** p
    sums: npt.NDArray[np.float64] = padded.reshape(n, scheme.groups(k), -1).sum(-1)
    return sums


@by_scheme
@pytest.mark.parametrize("p", [0.5, 0.7, 1.0, 2.0])
def test_no_group_is_worse_than_rounded_to_nearest(scheme: QuantScheme, p: float) -> None:
    weight = _weight()
    fitted = hqq.quantize(weight, None, scheme, hqq.HqqOptions(p=p))
    plain = rtn.quantize(weight, None, scheme)
    for norm in (p, 2.0):
        # float32 sums of up to 320 terms, and of |x|^p where x is a difference of float32 numbers
        assert (_losses(fitted, weight, norm) <= 1.001 * _losses(plain, weight, norm)).all()
    assert _losses(fitted, weight, p).sum() < 0.99 * _losses(plain, weight, p).sum()


@pytest.mark.parametrize("p", [1.0, 2.0])
@pytest.mark.parametrize("group_size", [64, 48])  # 48: the last group of 320 is filled up
@pytest.mark.parametrize("centre", [0.0, 1e5])
def test_no_group_with_a_float_zero_point_is_worse_either(centre: float, group_size: int, p: float) -> None:
    """Judged by what is stored: far from 0 (for their spread) float16 offsets are rounded by more than the codes are."""
    scheme = QuantScheme(4, False, Granularity.GROUP, group_size, "float16", zero_point="float")
    weight = ((centre + _weight()) * np.float32(1e-5)).astype(np.float32)
    fitted = hqq.quantize(weight, None, scheme, hqq.HqqOptions(p=p))
    plain = rtn.quantize(weight, None, scheme)
    # A weight near 1 is held to 6e-8 in float32, and its errors are about 1e-5.
    for norm in (p, 2.0):
        assert (_losses(fitted, weight, norm) <= 1.01 * _losses(plain, weight, norm)).all()


@by_scheme
def test_more_rounds_never_hurt(scheme: QuantScheme) -> None:
    weight = _weight()
    rounds = [hqq.quantize(weight, None, scheme, hqq.HqqOptions(iterations=n)) for n in (0, 1, 2, 4, 8)]
    norms = [_losses(tensor, weight, 1.0) for tensor in rounds]
    assert all((after <= 1.0001 * before).all() for before, after in itertools.pairwise(norms))
    assert norms[-1].sum() < norms[0].sum()


def test_the_scale_pays_where_the_zero_point_alone_does_not() -> None:
    """A whole zero point is seldom moved by the mean of the errors: what the paper fits gains nothing here."""
    weight = _weight()
    once = {"steps": 1, "shrink": 1.0}
    plain = _losses(rtn.quantize(weight, None, INT4), weight, 1.0).sum()
    alone = hqq.quantize(weight, None, INT4, hqq.HqqOptions(**once, fit_scale=False))
    both = hqq.quantize(weight, None, INT4, hqq.HqqOptions(**once))
    assert 0.99 * plain < _losses(alone, weight, 1.0).sum() <= plain
    assert _losses(both, weight, 1.0).sum() < 0.98 * plain


def test_without_the_scale_a_symmetric_scheme_has_nothing_to_fit() -> None:
    scheme = QuantScheme(4, True, Granularity.GROUP, 32)
    options = hqq.HqqOptions(steps=1, fit_scale=False)
    none = hqq.HqqOptions(steps=1, fit_scale=False, iterations=0)
    np.testing.assert_array_equal(
        hqq.quantize(_weight(), None, scheme, options).scale,
        hqq.quantize(_weight(), None, scheme, none).scale,
    )


@by_scheme
def test_torch_gives_the_same_as_numpy(scheme: QuantScheme) -> None:
    weight, options = _weight(), hqq.HqqOptions()
    present = mse.channel_importance(None, weight.shape[1], scheme, "cpu")
    s, z = hqq.fit_rows(weight, np.asarray(present), scheme, options)
    ts, tz = hqq.fit_rows(torch.from_numpy(weight), torch.as_tensor(present), scheme, options)
    # Sums in another order may end a group a round earlier.
    same = np.isclose(s, ts.numpy(), rtol=1e-4)
    assert same.mean() > 0.9  # seen: 0.94 with one bit, of which a weight is off by much, else above 0.95
    if z is not None:
        assert (z == tz.numpy()).mean() > 0.95


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_weights_are_their_float32_values(kind: Any) -> None:
    half = _weight(6, 80).astype(kind)  # groups of 32, 32 and 16
    one, other = hqq.quantize(half, None, INT4), hqq.quantize(half.astype(np.float32), None, INT4)
    np.testing.assert_array_equal(one.codes, other.codes)
    np.testing.assert_array_equal(one.scale, other.scale)


def test_weights_on_a_grid_are_stored_exactly() -> None:
    rng = np.random.default_rng(1)
    codes = rng.integers(0, 16, (8, 64))
    codes[:, ::32], codes[:, 1::32] = 0, 15
    weight = ((codes - 6) * 0.25).astype(np.float32)
    np.testing.assert_array_equal(hqq.quantize(weight, None, INT4).dequantize(), weight)


def test_what_fills_up_a_short_group_has_no_say() -> None:
    weight = _weight(6, 48)
    short = hqq.quantize(weight, None, INT4)
    alone = hqq.quantize(weight[:, 32:], None, QuantScheme(4, False, Granularity.GROUP, 16))
    np.testing.assert_allclose(short.scale[:, 1:], alone.scale, rtol=1e-5)  # float32 sums of 32 and of 16
    np.testing.assert_array_equal(short.zero_point[:, 1:], alone.zero_point)  # type: ignore[index]


def test_one_scale_for_a_tensor_is_searched_by_mse() -> None:
    scheme = QuantScheme(4, False, Granularity.TENSOR)
    np.testing.assert_array_equal(
        hqq.quantize(_weight(), None, scheme).codes, mse.quantize(_weight(), None, scheme).codes
    )


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"p": 0.0}, "p: 0.0 is no norm"),
        ({"p": 2.5}, "p: 2.5 is no norm"),
        ({"p": float("nan")}, "p: nan is no norm"),
        ({"beta": 0.0}, "beta: 0.0 must be positive"),
        ({"beta": float("nan")}, "beta: nan must be positive"),
        ({"kappa": 0.9}, "kappa: 0.9 is below 1"),
        ({"iterations": -1}, "iterations: -1 is below 0"),
        ({"steps": 0}, "steps: 0 is below 1"),
        ({"shrink": 0.0}, "shrink: 0.0 is no share"),
    ],
)
def test_options_have_bounds(options: dict[str, Any], told: str) -> None:
    with pytest.raises(SchemeError, match=told):
        hqq.HqqOptions(**options)
