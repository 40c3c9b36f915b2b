"""The plan of a compile on the terminal and as JSON."""

from pathlib import Path

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
