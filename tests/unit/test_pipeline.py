"""The order of passes: what is named beforehand is what runs."""

from pathlib import Path

import onnx_ir as ir
import pytest

from qcompiler.errors import InputError
from qcompiler.graph.weight_store import WeightStore
from qcompiler.pipeline import Materials, pass_names, plan_weights, preparing_passes, quantizing_passes
from qcompiler.recipe import Recipe
from qcompiler.recipe.plan import Plan
from qcompiler.targets import find_target
from tests.small_models import make_model


def test_names_are_those_of_the_passes(tmp_path: Path) -> None:
    recipe, target = Recipe.load("w4a16-rtn"), find_target("ort")
    with WeightStore(tmp_path) as store:
        materials = Materials(Plan([], []), store, None, lambda what, done, total: None)
        passes = [*preparing_passes(recipe), *quantizing_passes(materials, recipe, target)]
    assert pass_names(recipe, target) == [entry.name for entry in passes]
    assert all(entry.reason for entry in passes)


def test_the_page_of_passes_names_every_file() -> None:
    """In its table, or as a part of one that stands there."""
    root = Path(__file__).resolve().parents[2]
    page = (root / "docs" / "passes.md").read_text(encoding="utf-8")
    files = {file.stem for file in (root / "passes").glob("*.py")} - {"__init__"}
    assert sorted(name for name in files if f"`{name}`" not in page) == []


def test_a_model_without_a_float_weight_is_quantized_already() -> None:
    model = make_model(
        "g (float[M,64] x) => (float[M,64] y) { h, s, z = DynamicQuantizeLinear(x)"
        " i = MatMulInteger(h, h) y = Cast<to=1>(i) }"
    )
    with pytest.raises(InputError, match="nothing to quantize: .*already quantized; give the float model"):
        plan_weights(ir.from_proto(model), Recipe.load("w4a16-rtn"))
