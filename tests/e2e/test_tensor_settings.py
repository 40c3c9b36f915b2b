"""Types of activations, and what a recipe says of single tensors: what is written, and what ONNX Runtime makes of it."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from qcompiler.api import CompiledModel
from qcompiler.errors import RecipeError
from tests.compiled_models import ROUNDING, Compile, count_of
from tests.small_models import Array, make_model, relative_error, run, weight

BODY = (
    "c = Conv<pads=[1,1,1,1]>(x, k1, b1) r = Relu(c) d = Conv<pads=[1,1,1,1]>(r, k2) s = Add(d, r) "
    "p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(s) f = Flatten(p) y = MatMul(f, w)"
)
# Of 8 bits: 1/255 of a range a layer, weights among it; 16 bits of activations leave the weights' error.
STATIC = 0.05


def _model() -> onnx.ModelProto:
    constants = {
        "k1": weight(8, 3, 3, 3, scale=0.3), "b1": weight(8, seed=1), "k2": weight(8, 8, 3, 3, seed=2, scale=0.1),
        "w": weight(128, 10, seed=5),
    }  # fmt: skip
    return make_model(f"g (float[B,3,8,8] x) => (float[B,10] y) {{ {BODY} }}", constants)


def _images(count: int = 8, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal((count, 3, 8, 8)).astype(np.float32)


def _compiled(quantize: Compile, *settings: str) -> CompiledModel:
    return quantize(_model(), "w8a8-static", calibration=[{"x": _images()}], settings=list(settings))


def _zero_points(compiled: CompiledModel) -> dict[str, Array]:
    tensors = onnx.load(compiled.path).graph.initializer
    return {
        t.name.removesuffix(".zero_point"): onnx.numpy_helper.to_array(t)
        for t in tensors
        if t.name.endswith(".zero_point")
    }


def _notes(compiled: CompiledModel) -> list[str]:
    return [note for layer in compiled.report.layers for note in layer.notes]


@pytest.mark.parametrize("kind", ["uint8", "int8", "uint16", "int16"])
def test_every_type_of_activations(quantize: Compile, kind: str) -> None:
    compiled, x = _compiled(quantize, f"activation_type={kind}"), _images(16, 9)
    assert {point.dtype for point in _zero_points(compiled).values()} == {np.dtype(kind)}
    if kind.startswith("int"):
        assert not any(_zero_points(compiled).values())
    assert relative_error(run(_model(), {"x": x})["y"], run(compiled.path, {"x": x})["y"]) < STATIC


def test_sixteen_bits_stay_qdq_and_the_report_says_that_floats_are_computed(quantize: Compile) -> None:
    compiled = _compiled(quantize, "activation_type=uint16")
    assert compiled.report.running == {} and count_of(compiled, "MatMul") == 1
    assert [note for note in _notes(compiled) if "kernels do not take uint16" in note] == [
        "ONNX Runtime's CPU computes it in float: its kernels do not take uint16"
    ] * 3


def test_symmetric_codes_leave_a_relu_where_it_is(quantize: Compile) -> None:
    compiled = _compiled(quantize, "activation_type=int8")
    assert compiled.report.running == {"MatMulIntegerToFloat": 1} and count_of(compiled, "Relu") == 1
    assert any("Relu stays behind it" in note for note in _notes(compiled))
    (said,) = [line for line in compiled.report.warnings if "signed activations" in line]
    assert said.startswith("1 of 2 products") and said.endswith("where no bias follows: d")


def test_signed_codes_with_zero_points_run_as_unsigned_ones(quantize: Compile) -> None:
    body = "c = Conv(x, k1, b1) r = Relu(c) d = Conv(r, k2) f = Flatten(d) y = MatMul(f, w)"
    constants = {
        "k1": weight(8, 3, 3, 3),
        "b1": weight(8, seed=1),
        "k2": weight(8, 8, 3, 3),
        "w": weight(128, 10),
    }
    model, x = make_model(f"g (float[B,3,8,8] x) => (float[B,10] y) {{ {body} }}", constants), _images(16, 9)
    data = {"calibration": [{"x": _images()}]}
    settings = ["activation_type=int8", "activation_symmetric=false"]
    signed, unsigned = (
        quantize(model, "w8a8-static", settings=settings, **data),
        quantize(model, "w8a8-static", **data),
    )
    assert signed.report.running == {"QLinearConv": 2, "MatMulIntegerToFloat": 1}
    assert count_of(signed, "Relu") == 0
    # The same codes but for 128, so what is left is the order of float32 sums.
    assert relative_error(run(unsigned.path, {"x": x})["y"], run(signed.path, {"x": x})["y"]) < ROUNDING


def test_a_tensor_gets_what_the_recipe_says(quantize: Compile) -> None:
    compiled = _compiled(
        quantize, "tensors={x: {range: [-1, 1.55]}, s: {type: uint16}, r: {scale: 0.5, zero_point: 0}}"
    )
    tensors = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(compiled.path).graph.initializer}
    assert tensors["x.scale"] == np.float32(0.01) and tensors["x.zero_point"] == 100
    assert tensors["r.scale"] == 0.5 and tensors["s.zero_point"].dtype == np.uint16


def test_what_is_moved_takes_the_scale_that_is_given(quantize: Compile) -> None:
    compiled = _compiled(quantize, "tensors={s: {scale: 0.25, zero_point: 100}}")
    tensors = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(compiled.path).graph.initializer}
    for name in ("s", "p", "f"):
        assert tensors[f"{name}.scale"] == 0.25 and tensors[f"{name}.zero_point"] == 100


def test_a_tensor_that_stays_float(quantize: Compile) -> None:
    compiled, x = _compiled(quantize, "tensors={r: {quantize: false}}"), _images(16, 9)
    assert "r" not in _zero_points(compiled) and compiled.report.running == {"MatMulIntegerToFloat": 1}
    notes = _notes(compiled)
    assert "activations stay float: the recipe leaves r float" in notes
    assert "ONNX Runtime's CPU computes it in float: the recipe leaves its output float" in notes
    assert relative_error(run(_model(), {"x": x})["y"], run(compiled.path, {"x": x})["y"]) < STATIC


def test_overrides_of_onnx_runtime_are_read(quantize: Compile, tmp_path: Path) -> None:
    path = tmp_path / "overrides.json"
    path.write_text(
        json.dumps({"r": [{"quant_type": "QUInt8", "rmin": 0.0, "rmax": 2.55}], "y": [{"symmetric": True}]})
    )
    compiled = _compiled(quantize, f"tensors={path}")
    tensors = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(compiled.path).graph.initializer}
    assert tensors["r.scale"] == np.float32(0.01)
    assert (
        "tensors: y: nothing rounds it, so that what is said of it has no effect" in compiled.report.warnings
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rr", "tensors: rr: the model has no such tensor; did you mean 'r'"),
        ("relu*", r"tensors: relu\*: matches no tensor of the model"),
        ("k1", "tensors: k1: is a constant; how weights are stored is said by rules"),
    ],
)
def test_a_tensor_that_is_not_there_is_an_error(quantize: Compile, name: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        _compiled(quantize, f"tensors={{'{name}': {{type: int8}}}}")


def test_a_given_range_stands_in_for_data_that_never_come_there(quantize: Compile) -> None:
    body = "t = Slice(x, zero, n) f = Reshape(t, shape) y = MatMul(f, w)"
    constants = {
        "zero": np.zeros(1, np.int64), "n": np.zeros(1, np.int64), "shape": np.array([-1, 192], np.int64), "w": weight(192, 10),
    }  # fmt: skip
    model = make_model(f"g (float[B,3,8,8] x) => (float[M,10] y) {{ {body} }}", constants)
    quantize(model, "w8a8-static", calibration=[{"x": _images()}], settings=["tensors={f: {range: [-3, 3]}}"])
