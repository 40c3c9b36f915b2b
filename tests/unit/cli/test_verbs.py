"""The other verbs, help and bad usage."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests import command_models as models
from tests.command_line import Command, digests

ROOT = Path(__file__).parents[3]


def test_help_of_every_verb_has_an_example(run: Command) -> None:
    listed = run("--help").out
    for verb in (
        "compile",
        "inspect",
        "diff",
        "bisect",
        "trace",
        "eval",
        "bench",
        "recipes",
        "targets",
        "doctor",
    ):
        assert verb in listed
        assert "Example: qcompile" in run(verb, "--help").out


@pytest.mark.slow
def test_help_is_quick() -> None:
    code = (
        "import sys; from qcompiler import cli; cli.cli.main(['--help'], standalone_mode=False); "
        "print(sorted({'torch', 'onnx', 'onnxruntime', 'numpy', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip().endswith("[]")


def test_a_misspelt_verb(run: Command) -> None:
    outcome = run("inspct", "model.onnx")
    assert outcome.status == 2 and "did you mean 'inspect'" in outcome.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--no-such"],
        ["compile"],
        ["m.onnx", "--memory-limit", "4"],
        ["eval", "m.onnx"],
        ["m.onnx", "--seed", "-1"],
    ],
)
def test_bad_usage(run: Command, arguments: list[str]) -> None:
    assert run(*arguments).status == 2


def test_recipes_targets_doctor(run: Command) -> None:
    names = [entry["name"] for entry in json.loads(run("recipes", "--json").out)]
    assert "w4a16-awq" in names
    Path("mine.yaml").write_text(run("recipes", "w4a16-rtn").out)
    assert json.loads(run("recipes", "mine.yaml", "--json").out)["bits"] == 4
    assert [entry["name"] for entry in json.loads(run("targets", "--json").out)] == ["ort", "qcompiler"]
    found = {entry["what"]: entry for entry in json.loads(run("doctor", "--json").out)}
    assert found["CPUExecutionProvider"]["present"] and "cores" in found["cpu"]["found"]
    assert run("recipes", "w4a16-rtm").status == 2


@pytest.mark.parametrize(
    "words",
    [["bench", "--plot"], ["inspect", "--node-data"], ["report", "--force", "-o"]],
    ids=lambda w: w[0],
)
def test_no_verb_writes_over_its_model(run: Command, tmp_path: Path, words: list[str]) -> None:
    path = models.external_mlp(tmp_path)
    before = digests(tmp_path)
    (tmp_path / "link").symlink_to(path.with_name("float.onnx.data"))
    for place in (path, tmp_path / "link"):
        assert "which would be lost" in run(words[0], path, *words[1:], place).error
    assert {name: digest for name, digest in digests(tmp_path).items() if name in before} == before
