"""Products in the bodies of If and Loop, whose activations are rounded to 8 bits in there."""

import numpy as np
import onnx
import pytest

from tests.compiled_models import Compile
from tests.small_models import Array, make_model, relative_error, run, weight

# Steps of 1/127 of each row, or 1/255 of a tensor: 1 % of its spread, for two layers.
ROUNDED = 0.04
IF = (
    "g (float[M,64] x, bool up) => (float[M,64] y) { h = MatMul(x, v) y = If(up)"
    " <then_branch = a () => (float[M,64] p) { [taken] p = MatMul(h, w) },"
    " else_branch = b () => (float[M,64] n) { [other] q = MatMul(h, u) n = Neg(q) }> }"
)
LOOP = (
    "g (float[M,64] x, int64 count, bool go) => (float[M,64] y) { y = Loop(count, go, x)"
    " <body = b (int64 i, bool c, float[M,64] s) => (bool c2, float[M,64] t) { c2 = Identity(c) [step] d = MatMul(s, w) t = Tanh(d) }> }"
)


def _weights(*names: str) -> dict[str, Array]:
    return {name: weight(64, 64, seed=index) for index, name in enumerate(names)}


def _x() -> Array:
    return np.random.default_rng(7).standard_normal((5, 64)).astype(np.float32)


def _branches() -> onnx.ModelProto:
    return make_model(IF, _weights("v", "w", "u"))


@pytest.mark.parametrize("target", ["ort", "qcompiler"])
@pytest.mark.parametrize("how", ["token", "tensor"])
@pytest.mark.parametrize("up", [True, False])
def test_both_branches(how: str, target: str, up: bool, quantize: Compile) -> None:
    model = _branches()
    compiled = quantize(model, "w8a8-dynamic", target=target, settings=[f"activations={how}"])
    assert sum(compiled.report.running.values()) == 3
    assert not any("stay float" in note for layer in compiled.report.layers for note in layer.notes)
    feed = {"x": _x(), "up": np.array(up)}
    assert relative_error(run(model, feed)["y"], run(compiled.path, feed)["y"]) < ROUNDED


@pytest.mark.parametrize(
    "how, operator", [("token", "MatMulIntegerToFloat"), ("tensor", "DynamicQuantizeMatMul")]
)
def test_a_loop(how: str, operator: str, quantize: Compile) -> None:
    model = make_model(LOOP, _weights("w"))
    compiled = quantize(model, "w8a8-dynamic", settings=[f"activations={how}"])
    assert compiled.report.running == {operator: 1}
    feed = {"x": _x(), "count": np.array(3), "go": np.array(True)}
    assert relative_error(run(model, feed)["y"], run(compiled.path, feed)["y"]) < ROUNDED
