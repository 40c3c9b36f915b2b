"""``qcompile trace`` on the terminal and as JSON."""

import json
import math
from pathlib import Path

from tests import command_models as models
from tests.command_line import RTN, Command
from tests.small_models import weight


def test_trace(run: Command, tmp_path: Path) -> None:
    path, data = models.mlp(tmp_path), models.feeds_file(tmp_path, x=weight(16, 64, seed=3, scale=1.0))
    run(path, *RTN, "-o", "out")
    outcome = run("trace", "out", "--data", data, "--reference", path)
    assert outcome.status == 0 and "fc1" in outcome.out and "dB" in outcome.out
    found = json.loads(run("trace", "out", "--data", data, "--layers", "fc2", "--json").out)
    assert [value["layers"] for value in found["values"]] == [["fc2"]]


def test_errors(run: Command, tmp_path: Path) -> None:
    path = models.mlp(tmp_path)
    assert "not a regular expression" in run("trace", path, "--layers", "(").err
    assert "no layer whose name holds" in run("trace", path, "--layers", "nothing").error


def test_a_layer_without_numbers(run: Command, tmp_path: Path) -> None:
    found = run("trace", models.mlp(tmp_path, spoil=math.inf))
    (line,) = [line for line in found.out.splitlines() if line.startswith("fc2")]
    assert "no numbers" in line
