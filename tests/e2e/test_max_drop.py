"""--max-drop: layers that hurt most stay float until the bound holds."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

from qcompiler.api import Options
from qcompiler.errors import CalibrationError, PromiseError, RecipeError
from tests.compiled_models import Compile
from tests.small_models import Array, Feed, make_model, relative_error, run, weight

SPREAD = np.exp(np.linspace(-4, 4, 8)).astype(np.float32)
# One scale for all of a kernel whose channels are so different leaves nothing of the small ones.
COARSE = ["group_size=tensor", "algorithm=rtn", "calib.correct_biases=none", "head=float"]


def _images(seed: int) -> Array:
    return np.random.default_rng(seed).standard_normal((4, 3, 8, 8)).astype(np.float32)


FEEDS: list[Feed] = [{"x": _images(seed)} for seed in range(4)]


def _model() -> onnx.ModelProto:
    """Three convolutions, the second of which one scale is nothing for; no classes."""
    constants = {
        "k1": weight(8, 3, 3, 3, scale=0.3), "k2": weight(8, 8, 1, 1, seed=1) * SPREAD.reshape(-1, 1, 1, 1),
        "k3": weight(4, 8, 3, 3, seed=2), "ones": SPREAD.reshape(1, -1, 1, 1),
    }  # fmt: skip
    body = "a = Conv(x, k1) b = Relu(a) c = Conv(b, k2) d = Div(c, ones) y = Conv(d, k3)"
    return make_model(f"g (float[B,3,8,8] x) => (float[B,4,4,4] y) {{ {body} }}", constants)


def _linears() -> onnx.ModelProto:
    body = "a = MatMul(x, w1) b = Relu(a) c = MatMul(b, w2) d = Relu(c) y = MatMul(d, w3)"
    constants = {"w1": weight(32, 64), "w2": weight(64, 64, seed=1), "w3": weight(64, 10, seed=2)}
    return make_model(f"g (float[B,32] x) => (float[B,10] y) {{ {body} }}", constants)


ROWS: list[Feed] = [
    {"x": np.random.default_rng(seed).standard_normal((16, 32)).astype(np.float32)} for seed in range(4)
]


def test_the_layer_that_hurts_most_goes_back_first(quantize: Compile) -> None:
    model = _model()
    plain = quantize(model, "w8a8-static", calibration=FEEDS, settings=COARSE)
    lost = relative_error(run(model, FEEDS[0])["y"], run(plain.path, FEEDS[0])["y"])
    bound = Options(max_drop=0.9 * lost, force=True)
    compiled = quantize(model, "w8a8-static", calibration=FEEDS, settings=COARSE, options=bound)
    fallback = compiled.report.fallback
    assert len(fallback.layers) == 1 and fallback.measure == "relative error"
    assert fallback.tried[0][1] > bound.max_drop >= fallback.drop
    assert compiled.report.running == {"QLinearConv": 2}
    errors = [relative_error(run(model, feed)["y"], run(compiled.path, feed)["y"]) for feed in FEEDS]
    assert fallback.drop == pytest.approx(np.mean(errors), rel=0.2)  # feeds of like size
    assert "back to float" in compiled.report.skipped[0].reason


def test_the_recipe_that_is_written_gives_the_same_model(quantize: Compile) -> None:
    bound = Options(max_drop=0.015, force=True)
    first = quantize(_model(), "w8a8-static", calibration=FEEDS, settings=COARSE, options=bound)
    recipe, data = first.folder / "recipe.yaml", first.path.read_bytes()
    kept = recipe.rename(first.folder.parent / "again.yaml")
    second = quantize(_model(), str(kept), calibration=FEEDS, options=Options(force=True))
    assert second.path.read_bytes() == data and second.report.fallback is None


@pytest.mark.parametrize(
    "recipe", ["w4a16-rtn", "w4a16-awq", "w4a16-nf4", "w8a8-dynamic", "w8a8-smoothquant", "fp8"]
)
def test_classes_that_may_differ_are_counted(recipe: str, quantize: Compile) -> None:
    model = _linears()
    settings = ["bits=3", "head.bits=4"] if recipe in ("w4a16-rtn", "w4a16-awq") else []
    compiled = quantize(
        model, recipe, calibration=ROWS, settings=settings, options=Options(max_drop=0.06, force=True)
    )
    x = {"x": np.concatenate([feed["x"] for feed in ROWS])}
    differ = (run(model, x)["y"].argmax(-1) != run(compiled.path, x)["y"].argmax(-1)).mean()
    assert compiled.report.fallback.measure == "rows with another first class"
    # Rows are run in other batches, where float sums may come out otherwise: at most one of the 64 is that close.
    assert abs(differ - compiled.report.fallback.drop) <= 1 / 64 and compiled.report.fallback.drop <= 0.06
    assert not any("calibration data is not used" in line for line in compiled.report.warnings)


def test_feeds_that_can_be_read_once(quantize: Compile) -> None:
    def feeds() -> Iterator[Feed]:
        yield from FEEDS

    once = quantize(
        _model(), "w8a8-static", calibration=feeds(), settings=COARSE, options=Options(max_drop=0.015)
    )
    assert len(once.report.fallback.tried) > 1


def test_a_bound_that_cannot_be_held_leaves_nothing(quantize: Compile, tmp_path: Path) -> None:
    with pytest.raises(PromiseError, match="--max-drop 0%: cannot be held"):
        quantize(_model(), "w8a8-static", calibration=FEEDS, settings=COARSE, options=Options(max_drop=0.0))
    assert not [path for path in tmp_path.rglob("*") if "recipe.yaml" in path.name or path.suffix == ".work"]


@pytest.mark.parametrize("calibration", [None, "required"])
def test_no_data_is_an_error(calibration: str | None, quantize: Compile) -> None:
    with pytest.raises(CalibrationError, match="--max-drop: is measured on calibration data"):
        quantize(_linears(), "w4a16-rtn", calibration=calibration, options=Options(max_drop=0.01))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (Options(max_drop=1.0), "give a share"),
        (Options(max_drop=-0.1), "give a share"),
        (Options(max_drop=float("nan")), "give a share"),
        (Options(max_drop=0.1, resume=True), "--resume is for one compile"),
        (Options(max_drop=0.1, stop_after="quantize_weights"), "--stop-after is for one compile"),
        (Options(max_drop=0.1, dump_ir=Path("dumps")), "--dump-ir is for one compile"),
    ],
)
def test_what_goes_with_no_bound(options: Options, said: str, quantize: Compile) -> None:
    with pytest.raises(RecipeError, match=said):
        quantize(_linears(), "w4a16-rtn", calibration=ROWS, options=options)


def test_weights_in_branches_are_ranked_too(quantize: Compile) -> None:
    branches = "then_branch=t () => (float[M,64] a) { a = MatMul(h, w) }, else_branch=e () => (float[M,64] b) { b = MatMul(h, u) }"
    body = f"h = MatMul(x, v) y = If(up) <{branches}>"
    constants = {name: weight(64, 64, seed=seed) for seed, name in enumerate("uvw")}
    model = make_model(f"g (float[M,64] x, bool up) => (float[M,64] y) {{ {body} }}", constants)
    x = np.random.default_rng(1).standard_normal((8, 64)).astype(np.float32)
    feeds = [{"x": x, "up": np.array(True)}]  # u is never run, so nothing is felt of it
    bound = Options(max_drop=0.10)
    plain = quantize(model, "w4a16-rtn", settings=["head=float"])
    compiled = quantize(model, "w4a16-rtn", calibration=feeds, settings=["head=float"], options=bound)
    fallback = compiled.report.fallback
    assert relative_error(run(model, feeds[0])["y"], run(plain.path, feeds[0])["y"]) > bound.max_drop
    assert fallback.layers in (("v",), ("w",)) and fallback.drop <= bound.max_drop
