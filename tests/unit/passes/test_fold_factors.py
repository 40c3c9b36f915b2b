"""FoldFactors: the same function with fewer nodes, and what stays."""

import numpy as np
import pytest

from qcompiler.passes.fold_factors import FoldFactors
from tests.small_models import Array, apply_pass, assert_equal_outputs, make_model, op_types, run, weight

# float32 sums of 27 products, whose factors meet in another order.
ROUNDING = 1e-5
SIGNATURE = "g (float[B,3,6,6] x) => (float[B,5,H,W] y)"


def _constants() -> dict[str, Array]:
    return {
        "k": weight(5, 3, 3, 3, scale=0.3), "b": weight(5, seed=1), "m": np.array([1, -0.5, 2, 3, -4], np.float32).reshape(5, 1, 1), "a": weight(1, 5, 1, 1, seed=3),
        "two": np.array([2.5], np.float32), "six": np.array(6, np.float32), "zero": np.array(0, np.float32),
    }  # fmt: skip


def _x() -> Array:
    return np.random.default_rng(1).standard_normal((2, 3, 6, 6)).astype(np.float32)


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("c = Conv(x, k) n = Mul(m, c) y = Add(n, a)", ["Conv"]),
        ("c = Conv(x, k, b) n = Div(c, two) d = Sub(n, m) y = Mul(d, six)", ["Conv"]),
        ("n = Div(x, six) d = Mul(two, n) y = Conv(d, k, b)", ["Mul", "Conv"]),
        ("n = Div(x, six) d = Mul(two, n) e = Add(d, six) y = Conv(e, k)", ["Mul", "Conv"]),
        (
            "n = Div(x, six) d = Mul(two, n) e = Sub(d, six) y = Conv<pads=[1, 1, 1, 1]>(e, k)",
            ["Mul", "Add", "Conv"],
        ),
        ("n = Add(x, six) y = Conv(n, k, b)", ["Conv"]),
        ("n = Sub(x, six) d = Div(n, two) y = Conv(d, k)", ["Mul", "Conv"]),
    ],
    ids=[
        "behind",
        "behind, four kinds",
        "before",
        "before, a term",
        "before, padded",
        "a term alone",
        "a term, then a factor",
    ],
)
def test_factors_and_terms_go_into_the_convolution(body: str, left: list[str]) -> None:
    model = make_model(f"{SIGNATURE} {{ {body} }}", _constants())
    after, modified = apply_pass(FoldFactors(), model)
    assert modified and op_types(after) == left
    # terms of 6 times sums of 27 weights of 0.3: values of 20
    assert_equal_outputs(run(model, {"x": _x()}, optimize=False), run(after, {"x": _x()}), 20 * ROUNDING)
    assert not apply_pass(FoldFactors(), after)[1]


READ = "n (Mul): not folded into c before it: other nodes read the convolution too"
FIXED = "the kernel or bias is computed, or others read it too"


@pytest.mark.parametrize(
    ("body", "reasons"),
    [
        ("c = Conv(x, k) n = Mul(c, two) y = Add(n, c)", [READ]),
        (
            "c = Conv(x, k) y = Mul(c, row4)",
            ["y (Mul): not folded into c before it: its constant is neither one number nor one for each channel, of float32"],
        ),
        (
            "c = Conv(x, k) y = Div(two, c)",
            ["y (Div): not folded into c before it: the convolution is what divides or is subtracted"],
        ),
        ("c = Conv(x, k) y = Div(c, zero)", ["y (Div): not folded into c before it: it divides by 0"]),
        (
            "n = Add(x, six) y = Conv<pads=[1, 1, 1, 1]>(n, k)",
            ["n (Add): not folded into y behind: zeros are padded around the input behind the term"],
        ),
        (
            "t = Add(x, six) n = Mul(t, two) y = Conv<pads=[1, 1, 1, 1]>(n, k)",
            ["n (Mul), t (Add): not folded into y behind: zeros are padded around the input behind the term"],
        ),
        (
            "t = Mul(x, huge) n = Mul(t, huge) y = Conv(n, k)",
            ["n (Mul), t (Mul): not folded into y behind: together they are no number that float32 holds"],
        ),
        ("n = Mul(x, six) y = Conv(n, k)", []),
        (
            "c = Conv(x, k) d = Conv(x, k) n = Mul(c, two) y = Add(n, d)",
            [f"n (Mul): not folded into c before it: {FIXED}"],
        ),
        ("c = Conv(x, k) n = Relu(c) y = Mul(n, two)", []),
    ],
    ids=["another reader", "one for each column", "by the result", "by zero", "padded", "padded, both", "too large", "one factor before",
         "a shared kernel", "no neighbour"],
)  # fmt: skip
def test_others_stay_and_say_why(body: str, reasons: list[str]) -> None:
    more = {"row4": weight(4, seed=4), "huge": np.array([1e30], np.float32)}
    model = make_model(f"{SIGNATURE} {{ {body} }}", {**_constants(), **more})
    done = FoldFactors()
    assert not apply_pass(done, model)[1]
    assert done.reasons == reasons


def test_a_bias_that_the_caller_may_give_stays() -> None:
    signature = "g (float[B,3,6,6] x, float[5] b) => (float[B,5,H,W] y)"
    model = make_model(f"{signature} {{ c = Conv(x, k, b) y = Mul(c, two) }}", _constants())
    assert not apply_pass(FoldFactors(), model)[1]


@pytest.mark.parametrize("body", ["n = Add(x, a)", "m = Mul(x, a) d = Div(m, a) n = Mul(d, a)"])
def test_a_constant_that_adds_an_axis_stays(body: str) -> None:
    signature = "g (float[3,6,6] x) => (float[1,5,H,W] y)"
    constants = {"k": weight(5, 3, 3, 3), "a": np.full((1, 1, 1, 1), 2, np.float32)}
    model = make_model(f"{signature} {{ {body} y = Conv(n, k) }}", constants)
    after, _ = apply_pass(FoldFactors(), model)
    assert_equal_outputs(run(model, {"x": _x()[0]}, optimize=False), run(after, {"x": _x()[0]}), ROUNDING)


def test_factors_that_together_are_no_float32_stay() -> None:
    constants = {**_constants(), "small": np.array(1e-30, np.float32)}
    model = make_model(
        f"{SIGNATURE} {{ n = Mul(x, small) d = Mul(n, small) y = Conv<pads=[1,1,1,1]>(d, k) }}", constants
    )
    assert not apply_pass(FoldFactors(), model)[1]
