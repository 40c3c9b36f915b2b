"""Activations of 8 bits from the command's recipe to what runs, on both targets."""

import numpy as np
import pytest

from qcompiler import create_session
from tests.compiled_models import Compile, count_of, normal
from tests.small_models import make_model, relative_error, run, weight

# 8 bits on both sides: steps of max / 127 of a row, 0.4 % of a normal row's spread, for each of two layers.
EIGHT_BY_EIGHT = 0.03

MODEL = "g (float[B,M,64] x) => (float[B,M,32] y) { n = Mul(x, gain) h = MatMul(n, w1) b = Add(h, c) r = Relu(b) o = MatMul(r, w2) y = Relu(o) }"


def _model(loud: float = 1.0) -> object:
    gain = np.ones(64, np.float32)
    gain[[3, 20]] = loud
    constants = {"gain": gain, "w1": weight(64, 96), "c": weight(96, seed=2), "w2": weight(96, 32, seed=1)}
    return make_model(MODEL, constants)


@pytest.mark.parametrize("target", ["ort", "qcompiler"])
@pytest.mark.parametrize(
    ("settings", "op"),
    [
        (["activations=token"], {"ort": "MatMulIntegerToFloat", "qcompiler": "DynamicQuantMatMul"}),
        (["activations=tensor"], {"ort": "DynamicQuantizeMatMul", "qcompiler": "DynamicQuantizeMatMul"}),
        (
            ["activations=token", "bits=4", "group_size=32"],
            {"ort": "MatMulNBits", "qcompiler": "MatMulNBitsRelu"},
        ),
        (
            ["activations=token", "bits=4", "group_size=channel"],
            {"ort": "MatMulNBits", "qcompiler": "DynamicQuantMatMul"},
        ),
    ],
)
def test_products_run_in_integers(
    quantize: Compile, target: str, settings: list[str], op: dict[str, str]
) -> None:
    model, x = _model(), normal(2, 5, 64)
    compiled = quantize(model, "w8a8-dynamic", settings=settings, target=target)
    assert count_of(compiled, op[target]) == 2
    (expected,) = run(model, {"x": x}).values()  # type: ignore[arg-type]
    (found,) = create_session(str(compiled.path)).run(None, {"x": x})
    assert relative_error(expected, found) < (0.25 if "bits=4" in settings else EIGHT_BY_EIGHT)


def test_smoothing_tames_loud_channels(quantize: Compile) -> None:
    model, x = _model(loud=50.0), normal(2, 40, 64)
    (expected,) = run(model, {"x": x}).values()  # type: ignore[arg-type]

    def error(recipe: str) -> float:
        compiled = quantize(model, recipe, calibration=[{"x": normal(4, 40, 64)}])
        return relative_error(expected, run(compiled.path, {"x": x})["y"])

    assert error("w8a8-smoothquant") < 0.5 * error("w8a8-dynamic")


def test_levels_are_names_of_how_activations_are_rounded(quantize: Compile) -> None:
    compiled = quantize(
        _model(), "w8a8-smoothquant", settings=["level=o2"], calibration=[{"x": normal(4, 40, 64)}]
    )
    assert "activations: tensor" in (compiled.folder / "recipe.yaml").read_text(encoding="utf-8")
    assert count_of(compiled, "DynamicQuantizeMatMul") == 2
