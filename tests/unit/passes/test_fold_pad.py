"""FoldPad: the same function without the Pad, and Pads that stay."""

import numpy as np
import pytest

from qcompiler.passes.fold_pad import FoldPad
from tests.small_models import apply_pass, assert_equal_outputs, make_model, op_types, run, weight

# float32 sums of 27 products, some of them with zeros, perhaps in another order.
ROUNDING = 1e-6
SIGNATURE = "g (float[B,3,6,6] x) => (float[B,5,H,W] y)"
SIZES = np.array([0, 0, 1, 2, 0, 0, 0, 3], np.int64)
CONSTANTS = {
    "k": weight(5, 3, 3, 3, scale=0.3),
    "p": SIZES,
    "zero": np.array(0, np.float32),
    "one": np.array(1, np.float32),
}
X = np.random.default_rng(1).standard_normal((2, 3, 6, 6)).astype(np.float32)


@pytest.mark.parametrize("pad", ["Pad(x, p)", "Pad(x, p, zero)", 'Pad<mode="constant">(x, p, zero)'])
@pytest.mark.parametrize("own", ["", "<pads=[1,0,2,1]>", '<auto_pad="VALID">'])
def test_the_pad_goes_into_the_convolution(pad: str, own: str) -> None:
    model = make_model(f"{SIGNATURE} {{ q = {pad} y = Conv{own}(q, k) }}", CONSTANTS)
    after, modified = apply_pass(FoldPad(), model)
    assert modified and op_types(after) == ["Conv"]
    assert_equal_outputs(run(model, {"x": X}), run(after, {"x": X}), ROUNDING)
    assert not FoldPad()(after).modified


@pytest.mark.parametrize(
    "body",
    [
        "q = Pad(x, p, one) y = Conv(q, k)",
        'q = Pad<mode="reflect">(x, p) y = Conv(q, k)',
        'q = Pad(x, p) y = Conv<auto_pad="SAME_UPPER">(q, k)',
        "q = Pad(x, p) r = Relu(q) y = Conv(r, k)",
        "q = Pad(x, p) r = MaxPool<kernel_shape=[1,1]>(q) s = Conv(q, k) t = Conv(r, k) y = Add(s, t)",
        "q = Pad(x, all) y = Conv(q, k)",
        "q = Pad(x, cut) y = Conv(q, k)",
        "q = Pad(x, two, zero, axes) y = Conv(q, k)",
    ],
)
def test_what_a_convolution_does_not_do_stays(body: str) -> None:
    more = {
        "all": np.array([1, 0, 1, 2, 0, 0, 0, 3], np.int64), "cut": np.array([0, 0, -1, 2, 0, 0, 0, 3], np.int64),
        "two": np.array([1, 1], np.int64), "axes": np.array([2], np.int64),
    }  # fmt: skip
    _, modified = apply_pass(FoldPad(), make_model(f"{SIGNATURE} {{ {body} }}", CONSTANTS | more))
    assert not modified


def test_a_pad_that_is_an_output_stays() -> None:
    model = make_model(
        "g (float[B,3,6,6] x) => (float[B,5,H,W] y, float[B,3,7,11] q) { q = Pad(x, p) y = Conv(q, k) }",
        CONSTANTS,
    )
    assert not apply_pass(FoldPad(), model)[1]
