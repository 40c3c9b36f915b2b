"""The plan of a compile on the terminal and as JSON."""

from pathlib import Path

import pytest
from rich.console import Console

from qcompiler.graph import model_file
from qcompiler.graph.census import take_census
from qcompiler.recipe import Recipe
from qcompiler.recipe.plan import make_plan
from qcompiler.report.plan_table import plan_json, plan_table
from tests import command_models as models


def test_warnings_of_the_plan_are_shown(tmp_path: Path) -> None:
    model = models.decoder(tmp_path)
    recipe = Recipe.load("w4a16-rtn").with_settings(["embedding.bits=4", "rules=[{match: zz, bits: 8}]"])
    made = make_plan(take_census(model_file.load(model)), recipe)
    console = Console(width=200)
    with console.capture() as capture:
        console.print(plan_table(made, model, 0, []))
    text = capture.get()
    assert "warning: rule 1 (name=zz): matched no weight" in text
    assert "warning: table: embedding and head are one stored weight" in text
    assert plan_json(made, model, 0, [])["warnings"] == made.warnings and len(made.warnings) == 2


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ("name: own", "needed, by table (mse)"),  # all defaults: the head is tied, and stored by mse
        ("{name: own, head: float}", "not needed"),
        ("algorithm: [awq, rtn]", "needed, by table (mse), 2 weights (awq)"),
        ("{algorithm: rtn, head: float, mixed: {budget: 4bpw}}", "needed, by mixed"),
    ],
)
def test_who_needs_data_is_named(tmp_path: Path, recipe: str, said: str) -> None:
    model = models.decoder(tmp_path)
    made = make_plan(take_census(model_file.load(model)), Recipe.from_text(recipe, "test", "test"))
    console = Console(width=200)
    with console.capture() as capture:
        console.print(plan_table(made, model, 0, []))
    (line,) = [line for line in capture.get().splitlines() if "calibration data" in line]
    assert line.rstrip().endswith(f"calibration data {said}")
