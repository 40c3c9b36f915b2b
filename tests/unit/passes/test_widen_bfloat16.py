"""WidenBfloat16: what runs nowhere on CPU runs in float32, with the interface and the stored weights as they were."""

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from qcompiler.passes.normalize import Normalize
from qcompiler.passes.widen_bfloat16 import WidenBfloat16
from tests.small_models import Array, apply_pass, make_model, relative_error, weight

BF = ml_dtypes.bfloat16
# The output is rounded to 8 bits of mantissa: half a unit is 2^-9; sums in float32 add nothing to that.
ROUNDING = 2**-8


def _x(*shape: int) -> Array:
    return np.random.default_rng(1).standard_normal(shape).astype(BF)


def _run(model: ir.Model, feed: dict[str, Array]) -> Array:
    """The first output as float32; it must be bfloat16."""
    import torch

    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    values = {
        name: ort.OrtValue.ortvalue_from_numpy_with_onnx_type(a.view(np.uint16), onnx.TensorProto.BFLOAT16)
        if a.dtype == BF
        else ort.OrtValue.ortvalue_from_numpy(a)
        for name, a in feed.items()
    }
    output = session.run_with_ort_values(None, values)[0]
    assert output.element_type() == onnx.TensorProto.BFLOAT16
    return torch.from_dlpack(output._ortvalue.to_dlpack()).view(torch.bfloat16).float().numpy()


def _widen(model: onnx.ModelProto) -> ir.Model:
    prepared, _ = apply_pass(Normalize(), model)
    signature = [(v.name, v.dtype) for v in (*prepared.graph.inputs, *prepared.graph.outputs)]
    after, modified = apply_pass(WidenBfloat16(), prepared)
    assert modified
    assert [(v.name, v.dtype) for v in (*after.graph.inputs, *after.graph.outputs)] == signature
    return after


def test_a_product() -> None:
    w, b = weight(16, 8, dtype=BF), weight(8, dtype=BF)
    after = _widen(
        make_model(
            "g (bfloat16[M,16] x) => (bfloat16[M,8] y) { h = MatMul(x, w) y = Add(h, b) }", {"w": w, "b": b}
        )
    )
    assert after.graph.initializers["w"].dtype == ir.DataType.BFLOAT16
    x = _x(3, 16)
    expected = x.astype(np.float32) @ w.astype(np.float32) + b.astype(np.float32)
    assert relative_error(expected, _run(after, {"x": x})) <= ROUNDING


def test_running_it_again_changes_nothing_but_is_safe() -> None:
    model = make_model(
        "g (bfloat16[M,16] x) => (bfloat16[M,8] y) { y = MatMul(x, w) }", {"w": weight(16, 8, dtype=BF)}
    )
    after = _widen(model)
    size = len(after.graph)
    again, modified = apply_pass(WidenBfloat16(), after)
    assert not modified
    assert len(again.graph) == size


def test_casts_constants_and_shapes() -> None:
    model = make_model(
        "g (float[M,16] x) => (bfloat16[M,16] y) { c = Cast<to=16>(x) two = Constant<value=bfloat16 {16384}>() d = Mul(c, two)"
        " s = Shape(d) f = ConstantOfShape<value=bfloat16[1] {16256}>(s) y = Add(d, f) }"
    )
    after = _widen(model)
    x = np.random.default_rng(1).standard_normal((3, 16)).astype(np.float32)
    assert relative_error(x * 2 + 1, _run(after, {"x": x})) <= ROUNDING


@pytest.mark.parametrize("c", [True, False])
def test_inside_a_body(c: bool) -> None:
    w = weight(16, 16, dtype=BF)
    model = make_model(
        """g (bfloat16[M,16] x, bool c) => (bfloat16[M,16] y) { y = If(c) <
        then_branch = t () => (bfloat16[M,16] z) { z = MatMul(x, w) }, else_branch = e () => (bfloat16[M,16] q) { q = Identity(x) }> }""",
        {"w": w},
    )
    x = _x(3, 16)
    expected = x.astype(np.float32) @ w.astype(np.float32) if c else x.astype(np.float32)
    assert relative_error(expected, _run(_widen(model), {"x": x, "c": np.array(c)})) <= ROUNDING


def test_a_loop_that_carries_bfloat16() -> None:
    w = weight(16, 16, dtype=BF)
    model = make_model(
        """g (bfloat16[M,16] x, bool c) => (bfloat16[M,16] y) { n = Constant<value_int=2>() y = Loop(n, c, x) <
        body = b (int64 i, bool k, bfloat16[M,16] s) => (bool k2, bfloat16[M,16] s2) { k2 = Identity(k) s2 = MatMul(s, w) }> }""",
        {"w": w},
    )
    x = _x(3, 16)
    expected = x.astype(np.float32) @ w.astype(np.float32) @ w.astype(np.float32)
    assert relative_error(expected, _run(_widen(model), {"x": x, "c": np.array(True)})) <= ROUNDING


def test_an_input_that_is_an_output() -> None:
    model = make_model(
        "g (bfloat16[M,16] x) => (bfloat16[M,16] y, bfloat16[M,16] z) { y = Relu(x) z = Identity(x) }"
    )
    x = _x(3, 16)
    assert relative_error(np.maximum(x.astype(np.float32), 0), _run(_widen(model), {"x": x})) <= ROUNDING


def test_two_outputs_of_one_value_and_an_inner_reader() -> None:
    model = make_model(
        "g (bfloat16[M,16] x) => (bfloat16[M,16] y, bfloat16[M,16] h) { h = Neg(x) r = Relu(h) y = Add(r, h) }"
    )
    x = _x(3, 16)
    f = x.astype(np.float32)
    assert relative_error(np.maximum(-f, 0) - f, _run(_widen(model), {"x": x})) <= ROUNDING


@pytest.mark.parametrize("kind", ["float", "float16", "int64"])
def test_a_model_without_it_is_left_alone(kind: str) -> None:
    model = make_model(f"g ({kind}[M,16] x) => ({kind}[M,16] y) {{ y = Neg(x) }}")
    assert not apply_pass(WidenBfloat16(), model)[1]
