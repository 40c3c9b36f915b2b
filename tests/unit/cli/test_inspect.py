"""``qcompile inspect``: its options."""

import json
from pathlib import Path

import pytest

from tests import command_models as models
from tests.command_line import Command


def test_filter_session_and_overlay(run: Command, tmp_path: Path) -> None:
    source = models.mlp(tmp_path)
    shown = run(
        "inspect", source, "--session", "--filter", "fc1", "--node-data", "times.json", "--value", "time"
    )
    assert shown.status == 0 and "shown are 1 of 2 products" in shown.out
    assert "runs as" in shown.out and "runs on CPUExecutionProvider" in shown.out
    assert "wrote times.json" in shown.err
    assert len(json.loads(Path("times.json").read_text())["results"]) == 2
    found = json.loads(run("inspect", source, "--filter", "fc1", "--json").out)
    assert [product["name"] for product in found["products"]] == ["fc1"] and found["products"][0][
        "block"
    ] == ""


@pytest.mark.parametrize(
    "options",
    [
        ["--filter", "("],
        ["--provider", "CPUExecutionProvider"],
        ["--data", "x.npz"],
        ["--value", "size"],
        ["--value", "sqnr"],
    ],
)
def test_bad_usage(run: Command, tmp_path: Path, options: list[str]) -> None:
    assert run("inspect", models.mlp(tmp_path), *options).status == 2


def test_times_of_a_model_that_was_not_run(run: Command, tmp_path: Path) -> None:
    outcome = run("inspect", models.mlp(tmp_path), "--node-data", "t.json", "--value", "time")
    assert outcome.status == 2 and "add --session" in outcome.error and not Path("t.json").exists()
