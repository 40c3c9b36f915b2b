"""``qcompile diff`` on the terminal and as JSON."""

import json
from pathlib import Path

from tests import command_models as models
from tests.command_line import RTN, Command
from tests.small_models import weight


def test_diff_of_a_compiled_model(run: Command, tmp_path: Path) -> None:
    path, data = models.mlp(tmp_path), models.feeds_file(tmp_path, x=weight(16, 64, seed=3, scale=1.0))
    run(path, *RTN, "-o", "out")
    outcome = run("diff", path, "out", "--data", data)
    assert outcome.status == 0
    for text in ("MatMul -> com.microsoft::MatMulNBits (uint4 g32)", "worst first", "fc1", "times smaller"):
        assert text in outcome.out, outcome.out
    found = json.loads(run("diff", path, "out", "--data", data, "--json").out)
    assert [error["layers"] for error in found["numbers"]["errors"]["values"]] == [["fc1"], ["fc2"]]
    assert found["speed"] is None and not found["equal"]


def test_equal_models_are_said_to_be(run: Command, tmp_path: Path) -> None:
    path = models.mlp(tmp_path)
    outcome = run("diff", path, path)
    assert outcome.status == 0 and "equal: the same nodes and the same weights" in outcome.out


def test_other_inputs(run: Command, tmp_path: Path) -> None:
    outcome = run("diff", models.mlp(tmp_path, name="a.onnx"), models.decoder(tmp_path))
    assert outcome.status == 0 and "numbers not compared" in outcome.out


def test_speed(run: Command, tmp_path: Path) -> None:
    path = models.mlp(tmp_path)
    run(path, *RTN, "-o", "out")
    found = json.loads(run("diff", path, "out", "--speed", "--json").out)
    assert found["speed"]["workloads"][0]["times_as_fast"]["median"] > 0


def test_errors(run: Command, tmp_path: Path) -> None:
    path = models.mlp(tmp_path)
    assert "no such file" in run("diff", path, "nothing.onnx").error
    assert run("diff", path, path, "--text", "a", "--data", "b").status == 2
