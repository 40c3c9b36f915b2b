"""calibration.json: written by a compile with static ranges, and used by others in place of data."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from qcompiler.api import CompiledModel, dry_run
from qcompiler.errors import CalibrationError
from tests.compiled_models import Compile
from tests.small_models import Array, make_model, relative_error, run, save_model, weight

# Steps of 1/255 of a tensor's range: 1 % of a normal tensor's spread each, for two layers.
STATIC = 0.04

BODY = "c = Conv<pads=[1,1,1,1]>(x, k1, b1) r = Relu(c) f = Flatten(r) y = MatMul(f, w)"


def _model(seed: int = 0) -> onnx.ModelProto:
    constants = {
        "k1": weight(4, 3, 3, 3, seed=seed, scale=0.3),
        "b1": weight(4, seed=1),
        "w": weight(64, 10, seed=2),
    }
    return make_model(f"g (float[B,3,4,4] x) => (float[B,10] y) {{ {BODY} }}", constants)


def _images(seed: int = 0) -> list[dict[str, Array]]:
    return [{"x": np.random.default_rng(seed).standard_normal((8, 3, 4, 4)).astype(np.float32)}]


def _file(compiled: CompiledModel) -> Path:
    return compiled.folder / "calibration.json"


ROUNDED = ["algorithm=rtn", "head.algorithm=rtn"]
"""What needs no data for the weights."""
PLAIN = [*ROUNDED, "calib.correct_biases=none"]


def test_ranges_of_a_file_make_the_same_model_without_data(quantize: Compile) -> None:
    first = quantize(_model(), "w8a8-static", calibration=_images(), settings=PLAIN)
    again = quantize(_model(), "w8a8-static", calibration=str(_file(first)), settings=PLAIN)
    assert first.path.read_bytes() == again.path.read_bytes()
    assert _file(first).read_bytes() == _file(again).read_bytes()
    assert json.loads(_file(first).read_text())["data"] == "1 feed of feeds from Python"
    assert again.report.calibration == {"ranges": str(_file(first))} and again.report.warnings == []
    manifest = json.loads((again.folder / "manifest.json").read_text())
    assert len(manifest["ranges"]) == 64 and manifest["calibration"] is None


def test_edited_ranges_are_used(quantize: Compile, tmp_path: Path) -> None:
    first = quantize(_model(), "w8a8-static", calibration=_images(), settings=PLAIN)
    body = json.loads(_file(first).read_text())
    body["ranges"]["x"] |= {"lowest": 0.0, "highest": 51.0}
    edited = tmp_path / "edited.json"
    edited.write_text(json.dumps(body))
    compiled = quantize(_model(), "w8a8-static", calibration=edited, settings=PLAIN)
    scale = next(t for t in onnx.load(compiled.path).graph.initializer if t.name == "x.scale")
    assert onnx.numpy_helper.to_array(scale) == np.float32(51 / 255)


def test_biases_need_data_beside_the_ranges(quantize: Compile) -> None:
    first = quantize(_model(), "w8a8-static", calibration=_images(), settings=ROUNDED)
    alone = quantize(_model(), "w8a8-static", calibration=str(_file(first)), settings=ROUNDED)
    assert any("biases are not corrected" in line for line in alone.report.warnings)
    settings = [*ROUNDED, f"calib.ranges_from={_file(first)}"]
    both = quantize(_model(), "w8a8-static", calibration=_images(), settings=settings)
    assert first.path.read_bytes() == both.path.read_bytes() and not both.report.warnings[1:]
    invented = quantize(_model(), "w8a8-static", settings=settings)
    assert invented.path.read_bytes() == alone.path.read_bytes()


def test_weights_that_are_rounded_by_statistics_go_without(quantize: Compile, tmp_path: Path) -> None:
    first = quantize(_model(), "w8a8-static", calibration=_images())
    again = quantize(_model(), "w8a8-static", calibration=str(_file(first)))
    (told,) = [line for line in again.report.warnings if "has ranges and no data" in line]
    assert "scales of 2 weights (gptq) come from the weights alone" in told
    assert again.report.running == first.report.running == {"QLinearConv": 1, "MatMulIntegerToFloat": 1}
    assert all(any("no data" in note for note in layer.notes) for layer in again.report.layers)
    x = _images(9)[0]
    assert relative_error(run(_model(), x)["y"], run(again.path, x)["y"]) < STATIC
    planned = dry_run(save_model(_model(), tmp_path), "w8a8-static", calibration=str(_file(first))).plan
    assert any("has ranges and no data" in line for line in planned.warnings) and not planned.needs_data


def test_a_weight_that_needs_data_is_named(quantize: Compile, tmp_path: Path) -> None:
    settings = ["algorithm=rtn", "head.algorithm=[awq,rtn]"]
    first = quantize(_model(), "w8a8-static", calibration=_images(), settings=settings)
    model = save_model(_model(), tmp_path)
    with pytest.raises(
        CalibrationError,
        match=r"no data, and w \(awq\) needs some; give --calib DATA --set calib.ranges_from=",
    ):
        quantize(model, "w8a8-static", calibration=str(_file(first)), settings=settings)
    with pytest.raises(CalibrationError, match=r"w \(awq\) needs some"):
        dry_run(model, "w8a8-static", calibration=str(_file(first)), settings=settings)
    quantize(
        model, "w8a8-static", calibration=_images(), settings=[*settings, f"calib.ranges_from={_file(first)}"]
    )


def test_ranges_of_another_model_are_refused(quantize: Compile) -> None:
    first = quantize(_model(), "w8a8-static", calibration=_images())
    with pytest.raises(CalibrationError, match=r"calibration.json: has the ranges of another model"):
        quantize(_model(seed=7), "w8a8-static", calibration=str(_file(first)))


def test_a_tensor_of_which_the_file_says_nothing_is_named(quantize: Compile) -> None:
    rule = [*ROUNDED, "rules=[{match: {op: Conv}, quantize: false}]"]
    first = quantize(_model(), "w8a8-static", calibration=_images(), settings=rule)
    with pytest.raises(CalibrationError, match="says nothing of r, x"):
        quantize(_model(), "w8a8-static", calibration=str(_file(first)), settings=ROUNDED)


def test_a_recipe_without_static_ranges_takes_none(quantize: Compile) -> None:
    first = quantize(_model(), "w8a8-static", calibration=_images())
    assert not _file(quantize(_model(), "w8a16-rtn")).exists()
    with pytest.raises(CalibrationError, match="the recipe does not ask for; give data"):
        quantize(_model(), "w4a16-awq", calibration=str(_file(first)))
