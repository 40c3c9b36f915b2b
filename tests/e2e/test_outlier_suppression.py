"""compile() with channels shifted and scaled before they are rounded: what it saves, where it goes, and what goes on after a stop."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from qcompiler.api import CompiledModel, Options, compile
from qcompiler.errors import RecipeError
from tests.small_models import Array, make_model, relative_error, run, save_model, weight
from tests.stopped_compile import assert_goes_on_with_the_same_bytes, decoder_and_data

K, N = 48, 32
MODEL = (
    "g (float[M,48] x) => (float[M,32] y) { n = LayerNormalization(x, g, b) p = MatMul(n, w) q = Add(p, c) "
    "r = MatMul(n, v) s = Add(q, r) y = Relu(s) }"
)


def _model() -> onnx.ModelProto:
    """A norm whose bias moves each channel far to one side."""
    middle = np.random.default_rng(2).uniform(-60, 60, K).astype(np.float32)
    parts = {"g": np.ones(K, np.float32), "b": middle, "c": weight(N)}
    return make_model(MODEL, parts | {"w": weight(K, N), "v": weight(K, N, seed=1)})


def _x(seed: int) -> Array:
    return np.random.default_rng(seed).standard_normal((64, K)).astype(np.float32)


def _error(folder: Path, algorithm: str, level: str) -> tuple[float, CompiledModel]:
    folder.mkdir()
    path = save_model(_model(), folder)
    made = compile(
        path,
        "w8a8-smoothquant",
        settings=[f"algorithm={algorithm}", f"level={level}", "head=float"],
        calibration=[{"x": _x(0)}],
        output=folder / "out",
        options=Options(verify_each=True),
    )
    wanted = run(path, {"x": _x(0)})["y"]  # inside the ranges that static scales have
    return relative_error(wanted, run(made.path, {"x": _x(0)})["y"]), made


@pytest.mark.parametrize("level", ["o1", "o2", "o3"])
def test_channels_to_one_side_cost_little(level: str, tmp_path: Path) -> None:
    plain, _ = _error(tmp_path / "plain", "rtn", level)
    algorithm = "[{name: outlier-suppression, shift: true}, rtn]"
    shifted, made = _error(tmp_path / "shifted", algorithm, level)
    assert shifted < 0.2 * plain  # steps of a range of some 6 in place of one of 120
    notes = [note for layer in made.report.layers for note in layer.notes]
    assert sum("shift taken by a norm" in note for note in notes) == 2


def test_it_is_for_rounded_activations(tmp_path: Path) -> None:
    path = save_model(_model(), tmp_path)
    with pytest.raises(RecipeError, match="outlier-suppression makes activations easier to round"):
        compile(path, "w4a16-rtn", settings=["algorithm=[outlier-suppression, rtn]"], output=tmp_path / "out")


@pytest.mark.parametrize("quantizer", ["rtn", "gptq"])
@pytest.mark.parametrize("at", [1, 3])
def test_a_stopped_compile_goes_on_with_the_same_bytes(
    at: int, quantizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, data = decoder_and_data(tmp_path)
    settings = (f"algorithm=[outlier-suppression, {quantizer}]", "level=o2")

    def compile_to(name: str, options: Options) -> CompiledModel:
        return compile(
            path,
            "w8a8-smoothquant",
            settings=settings,
            calibration=data,
            output=tmp_path / name,
            options=options,
        )

    assert_goes_on_with_the_same_bytes(compile_to, at, monkeypatch)
