"""compile() to 8-bit floats: the numbers, the file, what stock ONNX Runtime makes of it, what is said, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from qcompiler.api import CompiledModel, Options, compile, dry_run
from qcompiler.errors import CalibrationError, InputError, RecipeError
from qcompiler.quant.float8 import LARGEST, TYPES
from qcompiler.quant.scheme import Dtype
from qcompiler.report.inspect_model import inspect
from tests.small_models import Array, make_model, op_types, relative_error, run, save_model, weight
from tests.stopped_compile import assert_goes_on_with_the_same_bytes, decoder_and_data

K, N = 64, 48
TWO = "g ({t}[B,M,64] x) => ({t}[B,M,48] y) {{ p_ = MatMul(x, w) p = Relu(p_) q = MatMul(x, v) a = Add(q, b) s = Mul(p, a) y = Relu(s) }}"
# Products sum in another order; ONNX Runtime rounds x / scale, we x * (1 / scale).
SAME = 1e-5


def _model(kind: str = "float") -> onnx.ModelProto:
    dtype = np.float32 if kind == "float" else np.float16
    parts = {
        "w": weight(K, N, dtype=dtype),
        "v": weight(K, N, seed=1, dtype=dtype),
        "b": weight(N, dtype=dtype),
    }
    return make_model(TWO.format(t=kind), parts)


def _x(seed: int = 0, dtype: Any = np.float32) -> Array:
    return np.random.default_rng(seed).standard_normal((2, 5, K)).astype(dtype)


def _compile(
    folder: Path, *settings: str, kind: str = "float", data: Any = None, **given: Any
) -> CompiledModel:
    folder.mkdir(exist_ok=True)
    path = save_model(_model(kind), folder)
    dtype = np.float32 if kind == "float" else np.float16
    feeds = [{"x": _x(dtype=dtype)}] if data is None else data
    return compile(
        path, "fp8", settings=settings, calibration=feeds, output=folder / "out", options=Options(verify_each=True), **given
    )  # fmt: skip


def _held(values: Array, largest: Any, dtype: Dtype) -> Array:
    scale = (np.float32(1) * largest / np.float32(LARGEST[dtype])).astype(np.float32)
    shares = np.clip(values / scale, -LARGEST[dtype], LARGEST[dtype])
    return np.asarray(shares.astype(TYPES[dtype]).astype(np.float32) * scale)


@pytest.mark.parametrize("activations", ["static", "none"])
@pytest.mark.parametrize("dtype", ["e4m3", "e5m2"])
def test_the_numbers_are_those_of_the_format(dtype: Dtype, activations: str, tmp_path: Path) -> None:
    made = _compile(tmp_path, f"dtype={dtype}", f"activations={activations}")
    x, largest = _x(3), np.abs(_x()).max()
    rounded = _held(x, largest, dtype) if activations == "static" else x
    w, v = (_held(m, np.abs(m).max(axis=0), dtype) for m in (weight(K, N), weight(K, N, seed=1)))
    exact = np.maximum(np.maximum(rounded @ w, 0) * (rounded @ v + weight(N)), 0)
    assert relative_error(exact, run(made.path, {"x": x})["y"]) <= SAME


@pytest.mark.parametrize("target", ["ort", "qcompiler"])
def test_the_file_holds_8_bit_floats_and_loads_anywhere(target: str, tmp_path: Path) -> None:
    made = _compile(tmp_path, target=target)
    model = ir.load(made.path)
    kinds = {value.dtype for value in model.graph.initializers.values() if value.const_value.size == K * N}
    assert kinds == {ir.DataType.FLOAT8E4M3FN}
    ops = op_types(model)
    assert (ops.count("QuantizeLinear"), ops.count("DequantizeLinear"), ops.count("MatMul")) == (1, 3, 2)
    assert made.report.running == {"DequantizeLinear": 2}
    levels = onnxruntime.GraphOptimizationLevel
    for level in (
        levels.ORT_DISABLE_ALL,
        levels.ORT_ENABLE_BASIC,
        levels.ORT_ENABLE_EXTENDED,
        levels.ORT_ENABLE_ALL,
    ):
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = level
        session = onnxruntime.InferenceSession(made.path, options, providers=["CPUExecutionProvider"])
        assert np.isfinite(session.run(None, {"x": _x(1)})[0]).all()


def test_before_lowering_it_is_plain_qdq(tmp_path: Path) -> None:
    path = save_model(_model(), tmp_path)
    options = Options(stop_after="insert_qdq")
    made = compile(path, "fp8", calibration=[{"x": _x()}], output=tmp_path / "middle", options=options)
    assert "Reshape" not in op_types(ir.load(made.path))


def test_report_and_inspect_name_the_type(tmp_path: Path) -> None:
    made = _compile(tmp_path)
    assert [layer.scheme for layer in made.report.layers] == ["e4m3 channel"] * 2
    found = inspect(made.path).products
    assert [(product.dtype, product.label) for product in found] == [("float8e4m3fn", "e4m3 channel")] * 2
    with pytest.raises(InputError, match="already quantized"):
        compile(made.path, "w4a16-rtn", output=tmp_path / "again")


def test_float16_and_one_scale_for_a_weight(tmp_path: Path) -> None:
    made = _compile(tmp_path, "group_size=tensor", kind="float16")
    x = _x(2, np.float16)
    found = run(made.path, {"x": x})["y"]
    w, v = weight(K, N, dtype=np.float16), weight(K, N, seed=1, dtype=np.float16)
    x32, b = x.astype(np.float32), weight(N, dtype=np.float16).astype(np.float32)
    exact = np.maximum(np.maximum(x32 @ w.astype(np.float32), 0) * (x32 @ v.astype(np.float32) + b), 0)
    # 3 bits of mantissa: a relative error of up to 1/16, uniform, of each factor, averaged over 64 terms and doubled by Mul.
    assert found.dtype == np.float16 and relative_error(exact, found) <= 0.1


def test_a_scale_that_the_recipe_says_is_the_scale(tmp_path: Path) -> None:
    made = _compile(tmp_path, "tensors={x: {scale: 0.0123, zero_point: 0}}")
    scale = next(value for name, value in ir.load(made.path).graph.initializers.items() if name == "x.scale")
    assert scale.const_value.numpy() == np.float32(0.0123)
    x = _x(3)
    w, v = (_held(m, np.abs(m).max(axis=0), "e4m3") for m in (weight(K, N), weight(K, N, seed=1)))
    rounded = _held(x, np.float32(0.0123 * LARGEST["e4m3"]), "e4m3")
    exact = np.maximum(np.maximum(rounded @ w, 0) * (rounded @ v + weight(N)), 0)
    assert relative_error(exact, run(made.path, {"x": x})["y"]) <= SAME


def test_a_zero_point_is_refused_before_any_data_is_read(tmp_path: Path) -> None:
    path = save_model(_model(), tmp_path)
    with pytest.raises(
        RecipeError, match=r"tensors: x: x becomes e4m3, which has no zero point; give zero_point: 0"
    ):
        dry_run(path, "fp8", settings=["tensors={x: {scale: 0.01, zero_point: 3}}"])


def test_what_the_recipe_says_of_tensors_without_effect_is_said(tmp_path: Path) -> None:
    made = _compile(tmp_path, "tensors={x: {type: uint16, range: [-2, 2]}, p: {symmetric: true}}")
    assert "tensors: x: x becomes e4m3, so that its type has no effect" in made.report.warnings
    assert any(line.startswith("tensors: p: nothing rounds it") for line in made.report.warnings)


def test_what_calibration_did_not_see_saturates(tmp_path: Path) -> None:
    made = _compile(tmp_path)
    x = _x(1)
    x[0, 0, 0] = 1e6
    assert np.isfinite(run(made.path, {"x": x})["y"]).all()


def test_convolutions_stay_float_and_say_so(tmp_path: Path) -> None:
    text = "g (float[B,3,8,8] x) => (float[B,10] y) { c = Conv(x, k) f = Flatten(c) h = MatMul(f, w) y = Relu(h) }"
    path = save_model(make_model(text, {"k": weight(8, 3, 3, 3), "w": weight(288, 10)}), tmp_path)
    x = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)
    made = compile(path, "fp8", calibration=[{"x": x}], output=tmp_path / "out")
    assert [product.dtype for product in inspect(made.path).products] == ["float32", "float8e4m3fn"]
    assert any(
        "a convolution: its integer kernels take integers" in left.reason for left in made.report.skipped
    )


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            "activations=token",
            "activations: token rounds to integers, and dtype is e4m3; set activations: static",
        ),
        ("activations=tensor", "activations: tensor rounds to integers"),
        ("algorithm=gptq", "algorithm: gptq finds integers, not floats of 8 bits; use rtn"),
        ("group_size=32", "set group_size: channel or tensor"),
        ("bits=4", "dtype: e4m3 has 8 bits, not 4"),
        ("dtype=e4m4", "dtype: 'e4m4' is unknown; did you mean 'e4m3'"),
    ],
)
def test_what_cannot_be_stored_is_refused(setting: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=message):
        _compile(tmp_path, setting)


def test_nan_in_calibration_is_refused(tmp_path: Path) -> None:
    x = _x()
    x[0, 0, 0] = np.nan
    with pytest.raises(CalibrationError, match="NaN"):
        _compile(tmp_path, data=[{"x": x}])


@pytest.mark.parametrize("at", [1, 3])
def test_a_stopped_compile_goes_on_with_the_same_bytes(
    at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, data = decoder_and_data(tmp_path)

    def compile_to(name: str, options: Options) -> CompiledModel:
        return compile(path, "fp8", calibration=data, output=tmp_path / name, options=options)

    assert_goes_on_with_the_same_bytes(compile_to, at, monkeypatch)


def test_what_the_recipe_says_of_a_tensor_holds(tmp_path: Path) -> None:
    left = _compile(tmp_path, "tensors={x: {quantize: false}}")
    assert "QuantizeLinear" not in op_types(ir.load(left.path))
    assert any("the recipe leaves x float" in note for layer in left.report.layers for note in layer.notes)
    narrow = _compile(tmp_path / "narrow", "tensors={x: {range: [-1.0, 0.5]}}")
    model = ir.load(narrow.path)
    (rounding,) = [node for node in model.graph if node.op_type == "QuantizeLinear"]
    assert rounding.inputs[1].const_value.numpy() == np.float32(1) / np.float32(LARGEST["e4m3"])
