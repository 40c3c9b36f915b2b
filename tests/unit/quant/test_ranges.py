"""Range: scales and zero points of 8 and 16 bits."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompiler.quant.ranges import Range, code_limits

FORMS = [
    (bits, signed, symmetric) for bits in (8, 16) for signed in (False, True) for symmetric in (False, True)
]
ENDS = st.floats(-(2.0**100), 2.0**100, width=32)


@pytest.mark.parametrize(
    ("form", "scale", "zero_point"),
    [
        ((8, False, False), 4 / 255, 64),
        ((8, True, False), 4 / 255, -64),
        ((8, False, True), 3 / 127, 128),
        ((8, True, True), 3 / 127, 0),
        ((16, False, False), 4 / 65535, 16384),
        ((16, True, False), 4 / 65535, -16384),
        ((16, False, True), 3 / 32767, 32768),
        ((16, True, True), 3 / 32767, 0),
    ],
)
def test_minus_1_to_3(form: tuple[int, bool, bool], scale: float, zero_point: int) -> None:
    assert Range(-1.0, 3.0).scale_and_zero_point(*form) == (np.float32(scale), zero_point)


@pytest.mark.parametrize("form", FORMS)
@given(a=ENDS, b=ENDS)
def test_every_number_of_the_range_and_zero_has_a_code(
    form: tuple[int, bool, bool], a: float, b: float
) -> None:
    lowest, highest = min(a, b), max(a, b)
    bits, signed, _ = form
    scale, zero_point = Range(lowest, highest).scale_and_zero_point(*form)
    first, last = code_limits(bits, signed)
    assert first <= zero_point <= last and scale > 0
    for end in (lowest, highest):
        # half a step for the code, half for the zero point, and the scale's own rounding over all codes
        bound = float(scale) * (1 + 2.0**bits * np.finfo(np.float32).eps)
        code = np.clip(np.rint(end / float(scale)) + zero_point, first, last)
        assert abs((code - zero_point) * float(scale) - end) <= bound


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("end", [0.0, 1e-44])
def test_nothing_but_zero_has_scale_one(form: tuple[int, bool, bool], end: float) -> None:
    bits, signed, symmetric = form
    middle = 2 ** (bits - 1) if symmetric and not signed else 0
    assert Range(0.0, end).scale_and_zero_point(*form) == (1, middle)


def test_a_range_beside_zero_is_widened_to_it() -> None:
    assert Range(2.0, 4.0).scale_and_zero_point(8, False, False) == (np.float32(4 / 255), 0)
    assert Range(-4.0, -2.0).scale_and_zero_point(8, False, False) == (np.float32(4 / 255), 255)


def test_the_whole_of_float32_has_a_scale() -> None:
    largest = float(np.finfo(np.float32).max)
    for form in FORMS:
        scale, _ = Range(-largest, largest).scale_and_zero_point(*form)
        assert np.isfinite(scale)


def test_joined_holds_both() -> None:
    assert Range(-1.0, 1.0).joined(Range(0.5, 3.0)) == Range(-1.0, 3.0)


@pytest.mark.parametrize("ends", [(0.0, float("inf")), (float("nan"), 1.0), (-float("inf"), 0.0)])
def test_ends_that_are_not_finite_are_refused(ends: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="not finite"):
        Range(*ends)


def test_ends_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(ValueError, match="ends below its beginning"):
        Range(1.0, 0.0)


def test_other_widths_are_refused() -> None:
    with pytest.raises(ValueError, match="8 or 16 bits, not 4"):
        Range(0.0, 1.0).scale_and_zero_point(4, False, False)


def test_a_scale_past_float32_is_refused() -> None:
    with pytest.raises(ValueError, match="float32 does not hold"):
        Range(0.0, 1e300).scale_and_zero_point(8, False, False)
