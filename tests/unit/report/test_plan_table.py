"""The plan of a compile on the terminal and as JSON."""

from pathlib import Path
from typing import Any

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
    assert "embedding/head" in text  # as inspect has it
    assert "warning: table: embedding and head are one stored weight" in text
    assert plan_json(made, model, 0, [])["warnings"] == made.warnings and len(made.warnings) == 2


def _shown(model: Path, settings: list[str]) -> tuple[str, dict[str, Any]]:
    """The dry run of w4a16-rtn on a model: as text, and what it forecasts of bits to be given out."""
    recipe = Recipe.load("w4a16-rtn").with_settings(settings)
    made = make_plan(take_census(model_file.load(model)), recipe)
    console = Console(width=240)
    with console.capture() as capture:
        console.print(plan_table(made, model, 0, []))
    plain = plan_json(made, model, 0, [])
    return capture.get(), {**plain["forecast"], "warnings": plain["warnings"]}


def test_a_budget_is_shown_with_what_is_possible(tmp_path: Path) -> None:
    model = models.decoder(tmp_path)
    # Of 96 x 64 and twice 64 x 128 numbers in groups of 32: b bits, and a float32 scale for each group.
    weights = 96 * 64 + 2 * 64 * 128
    least, most = weights * (2 + 1) // 8, weights * (8 + 1) // 8
    rest = model.stat().st_size - 4 * weights
    text, ahead = _shown(model, ["mixed.budget=4.5bpw"])
    assert (
        "gives out the bits (2, 4, 8) by what the model does on data, for a budget of 4.5bpw; the rows"
        in text
    )
    assert "possible are 3.00 to 9.00 bits a weight" in text
    assert (ahead["budget"]["least"], ahead["budget"]["most"]) == (least, most)
    assert ahead["planned_bytes"] == rest + weights * 4.5 // 8 and ahead["bits_per_weight"] == 4.5
    assert ahead["warnings"] == []
    text, ahead = _shown(model, ["mixed.max_kl=0.1", "rules=[{match: fc1, bits: 8}]"])
    assert "for a predicted KL of at most 0.1; shown are the recipe's" in text
    # What a rule decides takes no part.
    assert ahead["budget"]["least"] == least + 64 * 128 * 6 // 8 and ahead["budget"]["most"] == most
    assert _shown(model, ["mixed=none"])[1]["budget"] is None


@pytest.mark.parametrize(
    ("budget", "told"),
    [
        ("1bpw", "a budget of 1bpw cannot be met; the least there is takes 3.00bpw"),
        ("2kb", "a budget of 2kb cannot be met; the least there is takes "),
    ],
)
def test_a_budget_that_cannot_be_met_is_told_beforehand(tmp_path: Path, budget: str, told: str) -> None:
    text, ahead = _shown(models.decoder(tmp_path), [f"mixed.budget={budget}"])
    assert f"warning: mixed: {told}" in text
    assert any(told in line for line in ahead["warnings"])


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ("name: own", "needed, by table (mse)"),  # all defaults: the head is tied, and stored by mse
        ("{name: own, head: float}", "not needed"),
        ("algorithm: [awq, rtn]", "needed, by table (mse), 2 weights (awq)"),
        ("{algorithm: rtn, head: float, mixed: {budget: 4bpw}}", "needed, by mixed"),
        (
            "{bits: 8, group_size: channel, algorithm: rtn, head: float, activations: static}",
            "needed, by 2 weights (static ranges)",
        ),
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
