"""calib.correct_biases: analytical, from a recipe to integer kernels: with data or with saved ranges alone."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from qcompiler.errors import RecipeError
from tests.compiled_models import Compile
from tests.small_models import Array, make_model, relative_error, run, weight

BODY = (
    "c = Conv<pads=[1,1,1,1]>(x, k1) n = BatchNormalization(c, g, b, m, v) r = Relu(n) d = Conv(r, k2) p = GlobalAveragePool(d) "
    "f = Flatten(p) t = Gemm(f, w, b2) y = Relu(t)"
)
PLAIN = ["algorithm=rtn", "head.algorithm=rtn", "group_size=tensor", "head.group_size=tensor"]


def _images(count: int, seed: int) -> Array:
    return np.random.default_rng(seed).standard_normal((count, 3, 8, 8)).astype(np.float32)


def _model() -> onnx.ModelProto:
    parts = {
        "k1": weight(8, 3, 3, 3, scale=0.2), "g": np.ones(8, np.float32), "b": np.ones(8, np.float32), "m": np.zeros(8, np.float32),
        "v": np.ones(8, np.float32), "k2": weight(16, 8, 1, 1, seed=2), "w": weight(16, 10, seed=3), "b2": weight(10, seed=4),
    }  # fmt: skip
    return make_model(f"g (float[B,3,8,8] x) => (float[B,10] y) {{ {BODY} }}", parts)


def test_it_runs_in_integers_with_data_and_without(quantize: Compile) -> None:
    model, x = _model(), _images(64, 1)
    how = [*PLAIN, "calib.correct_biases=analytical"]
    made = quantize(model, "w8a8-static", calibration=[{"x": _images(16, 0)}], settings=how)
    assert made.report.running["QLinearConv"] == 2
    (entry,) = [entry for entry in made.report.passes if entry.name == "correct_biases_analytically"]
    assert entry.modified and [line.partition(":")[0] for line in entry.reasons] == ["c", "t"]
    # 8 bits for a whole weight and a tensor, in three layers
    assert relative_error(run(model, {"x": x})["y"], run(made.path, {"x": x})["y"]) < 0.05
    again = quantize(model, "w8a8-static", calibration=Path(made.folder) / "calibration.json", settings=how)
    assert not any("biases are not corrected" in line for line in again.report.warnings)
    np.testing.assert_array_equal(run(made.path, {"x": x})["y"], run(again.path, {"x": x})["y"])


@pytest.mark.parametrize("value", ["true", "off", "analytic"])
def test_other_words_are_refused(value: str, quantize: Compile) -> None:
    with pytest.raises(RecipeError, match="correct_biases: .*(measured, analytical, none|did you mean)"):
        quantize(_model(), "w8a8-static", calibration="required", settings=[f"calib.correct_biases={value}"])
