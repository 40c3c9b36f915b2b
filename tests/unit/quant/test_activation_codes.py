"""What codes of activations mean, for each type."""

from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompiler.quant.activation_codes import ActivationCodes, ActivationType, bits_of, is_signed
from qcompiler.quant.ranges import Range

KINDS = get_args(ActivationType)
ENDS = st.floats(-1e6, 1e6)


@given(kind=st.sampled_from(KINDS), symmetric=st.booleans(), ends=st.tuples(ENDS, ENDS))
def test_a_range_is_covered(kind: ActivationType, symmetric: bool, ends: tuple[float, float]) -> None:
    found = Range(min(ends), max(ends))
    codes = ActivationCodes.covering(found, kind, symmetric)
    # The zero point is rounded to a code, so each end may be off by half a step, and the scale by a rounding of float32.
    slack = 0.5 * float(codes.scale) + 1e-6 * max(map(abs, ends))
    assert codes.covered.lowest <= min(found.lowest, 0) + slack
    assert codes.covered.highest >= max(found.highest, 0) - slack


@pytest.mark.parametrize("kind", KINDS)
def test_types_are_numpys(kind: ActivationType) -> None:
    limits = np.iinfo(kind)
    codes = ActivationCodes.covering(Range(-1, 1), kind, symmetric=True)
    assert (bits_of(kind), is_signed(kind)) == (limits.bits, limits.min < 0)
    assert codes.limits == (limits.min, limits.max)
    assert codes.zero_point == (0 if is_signed(kind) else limits.max // 2 + 1)
    assert codes.numpy_zero_point.dtype == kind and codes.numpy_zero_point.shape == ()


@pytest.mark.parametrize(
    ("scale", "zero_point", "message"),
    [
        (0.0, 0, "no positive number"),
        (np.inf, 0, "no positive number"),
        (1.0, 256, r"256 is no code of uint8 \(0 to 255\)"),
    ],
)
def test_what_no_codes_mean_is_refused(scale: float, zero_point: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ActivationCodes("uint8", np.float32(scale), zero_point)
