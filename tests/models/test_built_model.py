"""What a model's command line leaves and prints."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from models.built_model import BuiltModel, ModelFiles, print_built
from qcompiler.errors import ResourceError

# What python -m does first, without the packages of this environment.
OUTSIDE = "import sys; sys.path.insert(0, sys.argv[1]); sys.argv[0] = '-m'; import models"


@pytest.fixture
def files(tmp_path: Path) -> ModelFiles:
    for name in (
        "cache/model.onnx",
        "cache/model.onnx.data",
        "cache/tokenizer.json",
        "calibration.txt",
        "evaluation.txt",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    model = BuiltModel(tmp_path / "cache/model.onnx", tmp_path / "cache/tokenizer.json")
    return ModelFiles(model, tmp_path / "calibration.txt", tmp_path / "evaluation.txt")


def test_a_copy_has_short_names(files: ModelFiles, tmp_path: Path) -> None:
    copied = files.copy_to(tmp_path / "new" / "here")
    assert sorted(path.name for path in (tmp_path / "new/here").iterdir()) == [
        "model.onnx", "model.onnx.data", "other.txt", "text.txt", "tokenizer.json",
    ]  # fmt: skip
    assert copied.calibration.read_text() == "calibration.txt"
    assert copied.evaluation.name == "other.txt" and copied.model.path.is_file()


def test_a_copy_replaces_nothing(files: ModelFiles, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/tokenizer.json").write_text("mine")
    with pytest.raises(ResourceError, match=r"tokenizer.json: exists; give --copy-to another folder"):
        files.copy_to(tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["tokenizer.json"]


def test_the_last_line_is_the_command_that_compiles_it(
    files: ModelFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    print_built(files, {"perplexity": 3.0}, tmp_path / "a folder")
    lines = dict(line.split("\t") for line in capsys.readouterr().out.splitlines())
    assert list(lines) == ["model", "tokenizer", "calibration", "evaluation", "perplexity", "compile"]
    folder = str(tmp_path / "a folder")
    assert shlex.split(lines["compile"]) == [
        "qcompile", f"{folder}/model.onnx", "--recipe", "w4a16-awq", "--calib", f"{folder}/text.txt", "-o", f"{folder}/out",
    ]  # fmt: skip


def test_outside_the_environment_a_model_says_so_in_a_line() -> None:
    command = [sys.executable, "-I", "-S", "-c", OUTSIDE, str(Path(__file__).parents[2])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "source .venv/bin/activate" in done.stderr
    assert len(done.stderr.splitlines()) == 1
