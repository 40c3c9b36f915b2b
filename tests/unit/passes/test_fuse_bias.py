"""FuseBias: a bias goes into MatMulNBits, and only a bias."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from qcompiler.passes.fuse_bias import FuseBias
from tests.small_models import Array, apply_pass, assert_equal_outputs, make_model, op_types, run, weight

PRODUCT = "{name} = com.microsoft.MatMulNBits<K=32, N=16, bits=8, block_size=32, accuracy_level=0>({x}, b, s)"
# The kernel adds the bias to its float32 sum: another order of roundings.
ROUNDING = 1e-6


def _model(
    tail: str, outputs: str = "float[M,16] y", inputs: str = "float[M,32] x", **weights: Array
) -> onnx.ModelProto:
    codes = np.random.default_rng(0).integers(0, 256, (16, 1, 32)).astype(np.uint8)
    constants = {"b": codes, "s": np.full((16, 1), 0.01, np.float32), "c": weight(16, seed=1), **weights}
    text = PRODUCT.format(name="h", x="x")
    return make_model(
        f"g ({inputs}) => ({outputs}) {{ {text} {tail} }}", constants, domains={"com.microsoft": 1}
    )


def _x() -> Array:
    return np.random.default_rng(1).standard_normal((3, 32)).astype(np.float32)


@pytest.mark.parametrize("tail", ["y = Add(h, c)", "y = Add(c, h)", "a = Add(h, c) y = Relu(a)"])
def test_a_bias_is_taken_in(tail: str) -> None:
    model = _model(tail)
    after, modified = apply_pass(FuseBias(), model)
    assert modified
    assert "Add" not in op_types(after)
    assert after.graph[0].inputs[5] is after.graph.initializers["c"]
    assert_equal_outputs(run(model, {"x": _x()}), run(after, {"x": _x()}), ROUNDING)
    assert not apply_pass(FuseBias(), after)[1]


def test_a_second_addend_stays() -> None:
    model = _model("a = Add(h, c) y = Add(a, d)", d=weight(16, seed=2))
    after, _ = apply_pass(FuseBias(), model)
    assert op_types(after) == ["MatMulNBits", "Add"]
    assert_equal_outputs(run(model, {"x": _x()}), run(after, {"x": _x()}), ROUNDING)


@pytest.mark.parametrize(("tail", "outputs", "inputs"), [
    ("y = Add(h, c) z = Neg(h)", "float[M,16] y, float[M,16] z", "float[M,32] x"),  # another reader
    ("y = Add(h, c)", "float[M,16] y, float[M,16] h", "float[M,32] x"),  # the product is an output
    ("y = Add(h, r)", "float[M,16] y", "float[M,32] x, float[M,16] r"),  # a residual
    ("r = Relu(h) y = Add(r, c)", "float[M,16] y", "float[M,32] x"),  # something in between
    ("y = Add(h, e)", "float[M,16] y", "float[M,32] x"),  # one number for all
    ("y = Add(h, h)", "float[M,16] y", "float[M,32] x"),
    ("y = Mul(h, c)", "float[M,16] y", "float[M,32] x"),
])  # fmt: skip
def test_near_misses(tail: str, outputs: str, inputs: str) -> None:
    model = _model(tail, outputs, inputs, e=np.ones(1, np.float32))
    before = op_types(model)
    after, modified = apply_pass(FuseBias(), model)
    assert not modified
    assert op_types(after) == before


def test_in_a_body_with_the_product_outside_it_stays() -> None:
    model = _model(
        "y = If(k) <then_branch = t () => (float[M,16] z) { z = Add(h, c) }, else_branch = e () => (float[M,16] q) { q = Neg(c2) }>",
        inputs="float[M,32] x, bool k", c2=weight(1, 16),
    )  # fmt: skip
    assert not apply_pass(FuseBias(), model)[1]


def test_the_names_of_outputs_stay() -> None:
    after, _ = apply_pass(FuseBias(), _model("y = Add(h, c)"))
    assert [value.name for value in after.graph.outputs] == ["y"]
    inner, _ = apply_pass(FuseBias(), _model("a = Add(h, c) y = Relu(a)"))
    assert inner.graph[0].outputs[0].name == "a"
    assert isinstance(inner, ir.Model)
