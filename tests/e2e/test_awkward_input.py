"""Models and data that are not what a recipe is for: one line that says what to do, or a right model with what it lacks said."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from qcompiler.errors import CalibrationError, InputError
from tests.compiled_models import Compile
from tests.small_models import Array, make_model, relative_error, run, weight

BODY = (
    "c = Conv<pads=[1,1,1,1]>(x, k1, b1) r = Relu(c) d = Conv<pads=[1,1,1,1]>(r, k2) s = Relu(d) p = GlobalAveragePool(s) "
    "f = Flatten(p) y = Gemm(f, w, b2)"
)
# 8 bits for weights and tensors, three layers deep.
STATIC = 0.05


def _cnn(dtype: Any = np.float32, opset: int = 21) -> onnx.ModelProto:
    kind = "float" if dtype == np.float32 else "float16"
    parts = {
        "k1": weight(16, 3, 3, 3, scale=0.2), "b1": weight(16, seed=1), "k2": weight(32, 16, 3, 3, seed=2, scale=0.1),
        "w": weight(32, 10, seed=3), "b2": weight(10, seed=4),
    }  # fmt: skip
    typed = {name: part.astype(dtype) for name, part in parts.items()}
    return make_model(f"g ({kind}[B,3,8,8] x) => ({kind}[B,10] y) {{ {BODY} }}", typed, opset=opset)


def _images(count: int = 8, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal((count, 3, 8, 8)).astype(np.float32)


def test_a_model_of_float16_stays_right_and_what_it_lacks_is_said(quantize: Compile) -> None:
    model, x = _cnn(np.float16), _images(16, 9).astype(np.float16)
    made = quantize(model, "w8a8-static", calibration=[{"x": _images()}])
    assert relative_error(run(model, {"x": x})["y"], run(made.path, {"x": x})["y"]) < STATIC
    said = "activations of 3 of 3 products stay FLOAT16 (k1, k2, w): integer kernels take float32; give the model exported in float32"
    assert said in made.report.warnings


def test_an_old_opset_is_raised(quantize: Compile) -> None:
    model, x = _cnn(opset=13), _images(16, 9)
    made = quantize(model, "w8a8-static", calibration=[{"x": _images()}])
    assert made.report.running == {"QLinearConv": 2, "MatMulIntegerToFloat": 1}
    assert relative_error(run(model, {"x": x})["y"], run(made.path, {"x": x})["y"]) < STATIC


@pytest.mark.parametrize("recipe", ["w8a8-static", "w8a8-smoothquant", "w8a8-llmint8", "fp8"])
def test_gemms_with_turned_weights(recipe: str, quantize: Compile) -> None:
    parts = {"w1": weight(64, 32, scale=0.2), "b1": weight(64), "w2": weight(10, 64, seed=2, scale=0.2)}
    body = "h = Gemm<transB=1>(x, w1, b1) r = Relu(h) y = Gemm<transB=1, alpha=0.5>(r, w2)"
    model = make_model(f"g (float[B,32] x) => (float[B,10] y) {{ {body} }}", parts)
    x = np.random.default_rng(1).standard_normal((64, 32)).astype(np.float32)
    made = quantize(model, recipe, calibration=[{"x": x}])
    # e4m3 has 3 bits of mantissa: up to 1/16 of each factor
    assert relative_error(run(model, {"x": x})["y"], run(made.path, {"x": x})["y"]) < (
        0.1 if recipe == "fp8" else STATIC
    )


def test_convolutions_that_share_a_kernel(quantize: Compile) -> None:
    parts = {
        "k0": weight(16, 3, 3, 3, scale=0.2), "k": weight(16, 16, 3, 3, seed=1, scale=0.1), "b1": weight(16, seed=2), "b2": weight(16, seed=3),
    }  # fmt: skip
    body = "i = Conv<pads=[1,1,1,1]>(x, k0) c = Conv<pads=[1,1,1,1]>(i, k, b1) r = Relu(c) d = Conv<pads=[1,1,1,1]>(r, k, b2) y = Relu(d)"
    model, x = make_model(f"g (float[B,3,8,8] x) => (float[B,16,8,8] y) {{ {body} }}", parts), _images(16, 9)
    made = quantize(model, "w8a8-static", calibration=[{"x": _images()}])
    assert made.report.running == {"QLinearConv": 3}
    assert relative_error(run(model, {"x": x})["y"], run(made.path, {"x": x})["y"]) < STATIC


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (
            np.zeros((4, 8, 8, 3), np.float32),
            r"x: dimension 1 must be 3, the data has \[4, 8, 8, 3\]; transpose it",
        ),
        (
            np.zeros((4, 1, 8, 8), np.float32),
            r"x: dimension 1 must be 3, the data has \[4, 1, 8, 8\]; cut or pad it",
        ),
        (
            np.zeros((4, 3, 8), np.float32),
            r"x: the model takes float32 \[B, 3, 8, 8\], the data has 3 dimensions \[4, 3, 8\]; reshape it",
        ),
        (
            np.full((4, 3, 8, 8), np.inf, np.float32),
            "NaN or infinity in the activations; check the calibration data",
        ),
        (np.full((4, 3, 8, 8), np.nan, np.float32), "x holds NaN; .* drop that sample"),
    ],
    ids=["channels last", "one channel", "no batch", "infinity", "NaN"],
)
@pytest.mark.filterwarnings("error")
def test_data_that_do_not_fit(array: Array, words: str, quantize: Compile) -> None:
    with pytest.raises(CalibrationError, match=words):
        quantize(_cnn(), "w8a8-static", calibration=[{"x": array}], settings=["algorithm=rtn"])


@pytest.mark.filterwarnings("error")
def test_infinities_are_refused_where_ranges_come_from_a_file(quantize: Compile) -> None:
    plain = ["algorithm=rtn", "head.algorithm=rtn"]
    made = quantize(_cnn(), "w8a8-static", calibration=[{"x": _images()}], settings=plain)
    data = [{"x": np.full((4, 3, 8, 8), np.inf, np.float32)}]
    ranges = f"calib.ranges_from={made.folder / 'calibration.json'}"
    with pytest.raises(
        CalibrationError, match="c: NaN or infinity in the activations; check the calibration data"
    ):
        quantize(_cnn(), "w8a8-static", calibration=data, settings=[*plain, ranges])


def test_an_npz_without_arrays(quantize: Compile, tmp_path: Path) -> None:
    np.savez(tmp_path / "none.npz")
    with pytest.raises(
        CalibrationError, match=r"holds no arrays; save it with numpy.savez\(path, input_name=array\)"
    ):
        quantize(_cnn(), "w8a8-static", calibration=tmp_path / "none.npz")


def test_a_recipe_that_takes_nothing_of_the_model_says_where_to_look(quantize: Compile) -> None:
    with pytest.raises(
        InputError, match=r"all 3 products are left alone .*; take another recipe \(qcompile recipes\)"
    ):
        quantize(_cnn(), "fp8", calibration=[{"x": _images()}])
