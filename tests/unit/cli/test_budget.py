"""``--budget`` and ``--max-kl``: what they are spent on, how they go with settings, and what is refused."""

import json
from pathlib import Path

import pytest

from qcompiler.recipe import Recipe
from tests import command_models as models
from tests.command_line import RTN, Command


@pytest.mark.page
def test_a_budget_goes_with_settings_of_what_it_is_spent_on(run: Command, tmp_path: Path) -> None:
    source = models.decoder(tmp_path)
    outcome = run(
        source,
        *RTN,
        "--set",
        "mixed.bits=[4,8]",
        "--budget",
        "6bpw",
        "--set",
        "calib.length=16",
        "-o",
        "out",
        "--json",
    )
    assert outcome.status == 0
    ahead = run(source, *RTN, "--budget", "6bpw", "--dry-run").out
    assert "gives out the bits" in ahead and "gives out the bits" not in run(source, *RTN, "--dry-run").out
    mixed = json.loads(outcome.out)["mixed"]
    assert mixed["bits"] == [4, 8] and set(mixed["chosen"]) <= {4, 8}
    page = Path("out/report.html").read_text("utf-8")
    assert '<h2 id="budget">' in page and "chosen: " in page
    shown = run(source, *RTN, "--budget", "6bpw", "--set", "calib.length=16", "-o", "out", "--force").out
    assert "predicted kl" in shown and "chosen" in shown


@pytest.mark.parametrize("section", ["mixed={samples: 2}", "mixed.samples=2"])
def test_a_budget_holds_whatever_settings_say_of_the_section(
    run: Command, tmp_path: Path, section: str
) -> None:
    source = models.mlp(tmp_path)
    Path("mine.yaml").write_text("mixed: {samples: 2}")
    for options in (["--recipe", "mine.yaml"], [*RTN, "--set", section]):
        for bound in (["--budget", "4.5bpw"], ["--max-kl", "0.1"]):
            outcome = run(source, *options, *bound, "--dry-run")
            assert outcome.status == 0, outcome.err
        outcome = run(source, *options, "--dry-run")
        assert outcome.status == 2 and "budget: missing; give a budget (--budget 4.5bpw" in outcome.err


def test_max_kl_takes_the_place_of_the_recipes_budget_alone(run: Command, tmp_path: Path) -> None:
    source = models.decoder(tmp_path)
    Path("mine.yaml").write_text("mixed: {budget: 5bpw}\ncalibration: {samples: 1, length: 16}")
    for settings, budget in (([], ""), (["--set", "mixed.budget=6bpw"], "6bpw")):
        outcome = run(source, "--recipe", "mine.yaml", "--max-kl", "1", *settings, "-o", "out", "--force")
        assert outcome.status == 0, outcome.err
        made = Recipe.load("out/recipe.yaml").mixed
        assert made is not None and (made.budget, made.max_kl) == (budget, 1.0)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--budget", "4.5"], "error: --budget 4.5: mixed: budget: 4.5; write 4.5bpw"),
        (["--budget", "5bpw", "--set", "dtype=nf4"], "error: --set dtype=nf4 --budget 5bpw: mixed: chooses"),
        (["--max-kl", "inf"], "error: --max-kl inf: mixed: max_kl: "),
        (["--max-kl", "0"], "Invalid value for '--max-kl': 0.0 is not in the range x>0"),
        (["--max-kl", "-1"], "Invalid value for '--max-kl': -1.0 is not in the range x>0"),
    ],
)
def test_an_error_names_the_option_that_was_typed(
    run: Command, tmp_path: Path, options: list[str], told: str
) -> None:
    outcome = run(models.mlp(tmp_path), *RTN, *options)
    assert outcome.status == 2 and told in outcome.err and "mixed.max_kl=" not in outcome.err
