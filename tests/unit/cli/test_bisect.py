"""``qcompile bisect`` on the terminal and as JSON."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests import command_models as models
from tests.command_line import RTN, Command, left_behind

BAD = "bits: 8\nrules:\n- match: {name: wo1}\n  bits: 2\n  group_size: 64\n"


def test_the_coarse_layer_of_a_bad_recipe(run: Command, tmp_path: Path) -> None:
    path = models.deep_decoder(tmp_path)
    (tmp_path / "bad.yaml").write_text(BAD)
    outcome = run("bisect", path, "--recipe", tmp_path / "bad.yaml", "--windows", "2", "--length", "24")
    assert outcome.status == 0 and left_behind() == []
    for text in ("quantize_weights", "first to part: wo1 (MatMul", "it breaks there", "bound: SQNR of 10 dB"):
        assert text in outcome.out, outcome.out


def test_two_models(run: Command, tmp_path: Path) -> None:
    path = models.mlp(tmp_path)
    run(path, *RTN, "-o", "out")
    outcome = run("bisect", path, "out")
    assert outcome.status == 0 and "no layer parts" in outcome.out
    found = json.loads(run("bisect", path, "out", "--min-sqnr", "90", "--json").out)
    assert found["first"]["layer"]["layers"] == ["fc1"] and found["layers"] == 2


@pytest.mark.parametrize(
    "more",
    [
        [],
        ["out", "--recipe", "w4a16-rtn"],
        ["out", "--min-sqnr", "1", "--max-error", "1"],
        ["out", "--max-kl", "1"],
    ],
)
def test_bad_usage(run: Command, tmp_path: Path, more: list[str]) -> None:
    assert run("bisect", models.mlp(tmp_path), *more).status == 2


def test_a_model_and_a_recipe_exclude_each_other(run: Command, tmp_path: Path) -> None:
    assert "exclude each other" in run("bisect", models.mlp(tmp_path), "out", *RTN).err


def test_a_compile_that_fails_leaves_nothing_to_resume(run: Command, tmp_path: Path) -> None:
    path = models.mlp(tmp_path)
    model = onnx.load(path)
    second = next(
        tensor for tensor in model.graph.initializer if tensor.name == "fc2"
    )  # fc1 is finished then
    second.CopyFrom(onnx.numpy_helper.from_array(np.full((128, 64), np.nan, np.float32), "fc2"))
    onnx.save(model, path)
    error = run("bisect", path, *RTN).error
    assert "fc2: the weight holds NaN" in error and "--resume" not in error
