"""Models that come with quantized products: refused, or kept as they are where the user allows it."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from qcompiler.api import Options, dry_run
from qcompiler.errors import InputError
from tests.compiled_models import Compile, count_of
from tests.small_models import Array, make_model, relative_error, run, save_model, weight

ALLOWED = Options(allow_quantized=True)
# Steps of 1/255 of a tensor's range: 1 % of a normal tensor's spread each, for four roundings more.
ROUNDED = 0.05
BODY = (
    "g (float[B,3,8,8] x) => (float[B,10] y) { [first] c = Conv<pads=[1,1,1,1]>(x, k, b) r = Relu(c)"
    " [second] d = Conv<pads=[1,1,1,1]>(r, k2, b2) s = Relu(d) f = Flatten(s) [last] y = MatMul(f, w) }"
)


def _model() -> onnx.ModelProto:
    constants = {"k": weight(8, 3, 3, 3, scale=0.3), "b": weight(8, seed=1), "b2": weight(8, seed=4), "k2": weight(8, 8, 3, 3, seed=2, scale=0.2),
                 "w": weight(512, 10, seed=3)}  # fmt: skip
    return make_model(BODY, constants)


def _images(count: int, seed: int) -> Array:
    return np.random.default_rng(seed).standard_normal((count, 3, 8, 8)).astype(np.float32)


class _Images(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self) -> None:
        self._feeds = iter([{"x": _images(8, seed)} for seed in range(3)])

    def get_next(self) -> dict[str, Array] | None:
        return next(self._feeds, None)


def _by_ort(folder: Path, form: QuantFormat, nodes: list[str] | None = None) -> Path:
    made = folder / "quantized.onnx"
    quantize_static(
        save_model(_model(), folder), made, _Images(), quant_format=form, per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, nodes_to_quantize=nodes,
    )  # fmt: skip
    return made


def _trained() -> onnx.ModelProto:
    """As frameworks export training with quantization: float kernels that are rounded in every run."""
    pair = "{0}q = QuantizeLinear({1}, {0}s, {0}z) {0}r = DequantizeLinear({0}q, {0}s, {0}z)"
    body = " ".join(
        [pair.format("x", "x"), "kq = QuantizeLinear<axis=0>(k, ks, kz) kr = DequantizeLinear<axis=0>(kq, ks, kz)",
         "[first] c = Conv(xr, kr) t = Relu(c)", pair.format("t", "t"), "f = Flatten(tr) [last] y = MatMul(f, w)"]
    )  # fmt: skip
    kernel = weight(8, 3, 3, 3, scale=0.3)
    constants = {
        "k": kernel, "ks": (np.abs(kernel).max((1, 2, 3)) / 127).astype(np.float32), "kz": np.zeros(8, np.int8),
        "xs": np.array(0.03, np.float32), "xz": np.array(128, np.uint8), "ts": np.array(0.02, np.float32),
        "tz": np.array(0, np.uint8), "w": weight(288, 10, seed=3),
    }  # fmt: skip
    return make_model(f"g (float[B,3,8,8] x) => (float[B,10] y) {{ {body} }}", constants)


@pytest.mark.parametrize("form", [QuantFormat.QDQ, QuantFormat.QOperator])
def test_a_quantized_model_is_refused(form: QuantFormat, quantize: Compile, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"already quantized; .*--allow-quantized") as caught:
        quantize(_by_ort(tmp_path, form), "w8a8-static", calibration=[{"x": _images(8, 0)}])
    assert caught.value.exit_status == 2


def test_a_model_quantized_in_part_is_refused_and_a_product_named(quantize: Compile, tmp_path: Path) -> None:
    model = _by_ort(tmp_path, QuantFormat.QDQ, ["first"])
    with pytest.raises(InputError, match=r"^1 of its products \(first is one\) are already quantized"):
        quantize(model, "w8a8-static", calibration=[{"x": _images(8, 0)}])
    with pytest.raises(InputError, match="--allow-quantized"):
        dry_run(model, "w8a8-static")
    assert len(dry_run(model, "w8a8-static", options=ALLOWED).plan.quantized) == 2


@pytest.mark.parametrize("form", [QuantFormat.QDQ, QuantFormat.QOperator])
def test_all_of_it_is_passed_through(form: QuantFormat, quantize: Compile, tmp_path: Path) -> None:
    model, x = _by_ort(tmp_path, form), _images(16, 9)
    compiled = quantize(model, "w8a8-static", options=ALLOWED)
    assert not compiled.report.layers
    if form is QuantFormat.QDQ:
        assert compiled.report.running["QLinearConv"] == 2
    # The same codes: what differs is how ONNX Runtime fuses them, a step at most.
    assert relative_error(run(model, {"x": x})["y"], run(compiled.path, {"x": x})["y"]) < 0.01


def test_the_rest_is_quantized(quantize: Compile, tmp_path: Path) -> None:
    model, x = _by_ort(tmp_path, QuantFormat.QDQ, ["first"]), _images(16, 9)
    data = [{"x": _images(8, 0)}]
    compiled = quantize(model, "w8a8-static", calibration=data, options=ALLOWED)
    assert {layer.name for layer in compiled.report.layers} == {"k2", "w"}
    assert compiled.report.running == {"QLinearConv": 2, "MatMulIntegerToFloat": 1}
    assert relative_error(run(_model(), {"x": x})["y"], run(compiled.path, {"x": x})["y"]) < ROUNDED


def test_weights_of_four_bits_stay_beside_new_ones(quantize: Compile) -> None:
    half = quantize(_model(), "w4a16-rtn")
    assert count_of(half, "MatMulNBits") == 1
    compiled = quantize(half.path, "w8a8-static", calibration=[{"x": _images(8, 0)}], options=ALLOWED)
    assert count_of(compiled, "MatMulNBits") == 1 and compiled.report.running["QLinearConv"] == 2


@pytest.mark.parametrize("recipe", ["w8a8-static", "w8a16-rtn"])
def test_trained_with_quantization(recipe: str, quantize: Compile) -> None:
    model, x = _trained(), _images(16, 9)
    compiled = quantize(model, recipe, calibration=[{"x": _images(8, 0)}], options=ALLOWED)
    assert compiled.report.running["QLinearConv"] == 1
    assert [layer.name for layer in compiled.report.layers] == ["w"]
    assert relative_error(run(model, {"x": x})["y"], run(compiled.path, {"x": x})["y"]) < ROUNDED


def test_what_stays_float_all_the_same_is_said(quantize: Compile) -> None:
    model = _trained()
    first = next(
        node for node in model.graph.node if node.op_type == "QuantizeLinear" and node.input[0] == "t"
    )
    later = next(node for node in model.graph.node if node.op_type == "Flatten")
    later.input[0] = "t"  # nothing rounds what the convolution makes
    model.graph.node.remove(first)
    model.graph.node.remove(next(node for node in model.graph.node if node.input[0] == "tq"))
    compiled = quantize(model, "w8a16-rtn", options=ALLOWED)
    assert any(
        "1 product that came quantized multiply floats (first)" in line for line in compiled.report.warnings
    )
