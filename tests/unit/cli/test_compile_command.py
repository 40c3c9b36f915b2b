"""What the command line makes of a model, and what it says."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests import command_models as models
from tests.command_line import RTN, Command, digests, left_behind


def test_compiles_by_default_and_leaves_the_input_alone(run: Command, tmp_path: Path) -> None:
    source = models.external_mlp(tmp_path)
    before = digests(tmp_path)
    outcome = run(source, *RTN)
    assert outcome.status == 0, outcome.err
    out = Path("float-w4a16-rtn")
    assert left_behind() == [out.name]
    assert {"model.onnx", "model.onnx.data", "recipe.yaml", "report.json", "manifest.json"} <= {
        path.name for path in out.iterdir()
    }
    assert {path: digest for path, digest in digests(tmp_path).items() if path in before} == before
    assert "2 MatMulNBits" in outcome.out and "times smaller" in outcome.out and "fc1" in outcome.out


def test_json_is_one_document_and_quiet(run: Command, tmp_path: Path) -> None:
    outcome = run(models.mlp(tmp_path), *RTN, "-o", "out", "--json")
    report = json.loads(outcome.out)
    assert report["output"] == "out/model.onnx" and outcome.err == ""
    assert [layer["name"] for layer in report["layers"]] == ["fc1", "fc2"]
    assert report["running"] == {"MatMulNBits": 2}


@pytest.mark.parametrize("build", [models.mlp, models.decoder, models.old_gemm])
def test_every_kind_of_model(run: Command, tmp_path: Path, build: Callable[[Path], Path]) -> None:
    outcome = run("compile", build(tmp_path), *RTN, "-o", "out", "--json", "--verify-each")
    assert outcome.status == 0, outcome.err
    assert sum(json.loads(outcome.out)["running"].values()) >= 1


def test_the_same_command_gives_the_same_bytes(run: Command, tmp_path: Path) -> None:
    source = models.mlp(tmp_path)
    for out in ("one", "two"):
        assert run(source, *RTN, "-o", out).status == 0
    for name in ("model.onnx", "model.onnx.data", "recipe.yaml", "manifest.json"):
        assert Path("one", name).read_bytes() == Path("two", name).read_bytes(), name


def test_calibrated_on_given_feeds(run: Command, tmp_path: Path) -> None:
    data = models.feeds_file(tmp_path, x=np.random.default_rng(0).standard_normal((32, 64), np.float32))
    outcome = run(models.mlp(tmp_path), "--calib", data, "-o", "out", "--json")
    assert outcome.status == 0, outcome.err
    assert json.loads(outcome.out)["calibration"]["samples"] == 1


def test_dry_run_writes_nothing(run: Command, tmp_path: Path) -> None:
    source = models.decoder(tmp_path)
    outcome = run(source, *RTN, "--dry-run")
    assert outcome.status == 0 and left_behind() == []
    assert "int4 g32 sym" in outcome.out and "peak memory" in outcome.out
    plan = json.loads(run(source, *RTN, "--dry-run", "--json").out)
    roles = {node["name"]: node["role"] for node in plan["nodes"]}
    assert roles == {"table": "embedding/head", "fc1": "linear", "fc2": "linear"}
    assert plan["forecast"]["planned_bytes"] < plan["forecast"]["model_bytes"]


def test_dry_run_says_what_would_stop_a_compile(run: Command, tmp_path: Path) -> None:
    source = models.mlp(tmp_path)
    Path("out").mkdir()
    Path("out/mine").write_text("keep")
    arguments = [source, *RTN, "-o", "out", "--memory-limit", "1MiB", "--dry-run"]
    refusals = json.loads(run(*arguments, "--json").out)["refusals"]
    assert len(refusals) == 2 and "holds files but no manifest.json" in refusals[0]
    assert "above --memory-limit" in refusals[1] and "use w4a16-rtn" not in refusals[1]
    outcome = run(*arguments)
    assert outcome.status == 0 and outcome.out.count("a compile will be refused: ") == 2
    assert json.loads(run(source, *RTN, "--dry-run", "--json").out)["refusals"] == []


def test_a_memory_limit_names_the_recipe_without_calibration(run: Command, tmp_path: Path) -> None:
    outcome = run(models.mlp(tmp_path), "--memory-limit", "1MiB")
    assert outcome.status == 2 and outcome.error.endswith("or use w4a16-rtn, which needs no calibration")


def test_a_memory_limit_that_is_too_low_is_told_with_one_that_is_enough(run: Command, tmp_path: Path) -> None:
    source = models.mlp(tmp_path)
    for recipe in (RTN, ("--set", "calib.samples=2")):
        error = run(source, *recipe, "--memory-limit", "10MiB").error
        found = re.search(r"peak memory \d+ MiB is above --memory-limit 10 MiB; raise it to (\d+MiB)", error)
        assert found is not None, error
        assert run(source, *recipe, "--memory-limit", found[1], "-o", "out", "--force").status == 0
    assert "--memory-limit 98 KiB; raise" in run(source, *RTN, "--memory-limit", "100KB").error


def test_a_folder_stands_for_the_model_in_it(run: Command, tmp_path: Path) -> None:
    source = models.mlp(tmp_path)
    assert run(source, *RTN, "-o", "out").status == 0
    assert "fc1" in run("inspect", "out").out
    assert run("eval", "out", "--reference", source).status == 0
    source.rename(tmp_path / "model.onnx")
    assert run(tmp_path, *RTN).status == 0 and Path("model-w4a16-rtn/model.onnx").exists()


def test_a_quantized_model_is_not_quantized_again(run: Command, tmp_path: Path) -> None:
    assert run(models.decoder(tmp_path), *RTN, "-o", "out").status == 0
    assert "give the float model it was made from" in run("out", *RTN).error


def test_options_may_come_first(run: Command, tmp_path: Path) -> None:
    assert run(*RTN, "-o", "out", models.mlp(tmp_path)).status == 0
    assert left_behind() == ["out"]


def test_an_output_named_like_a_file(run: Command, tmp_path: Path) -> None:
    outcome = run(models.mlp(tmp_path), *RTN, "-o", "small.onnx")
    assert outcome.status == 2 and "the output is a folder" in outcome.error
    assert left_behind() == []


def test_an_error_is_json_too_where_json_is_wanted(run: Command, tmp_path: Path) -> None:
    outcome = run(tmp_path / "missing.onnx", "--json")
    assert json.loads(outcome.out) == {"error": outcome.error.removeprefix("error: "), "status": 2}
    usage = run("eval", "m.onnx", "--json")
    assert "--reference" in json.loads(usage.out)["error"] and "--reference" in usage.err


def test_data_that_is_not_used_is_told_and_must_exist(run: Command, tmp_path: Path) -> None:
    source = models.mlp(tmp_path)
    outcome = run(source, *RTN, "--calib", "none.txt")
    assert outcome.status == 2 and "none.txt: no such file" in outcome.error
    assert left_behind() == []
    data = models.feeds_file(tmp_path, x=np.ones((2, 64), np.float32))
    warnings = json.loads(run(source, *RTN, "--calib", data, "-o", "out", "--json").out)["warnings"]
    assert warnings == ["calibration data is not used: w4a16-rtn needs none"]
    required = run(source, *RTN, "--calib", "required", "-o", "out2", "--json")
    assert json.loads(required.out)["warnings"] == []


def test_stopping_before_the_plan_needs_none(run: Command, tmp_path: Path) -> None:
    """Nothing to quantize, and a limit that any plan is above."""
    source = models.nothing_to_quantize(tmp_path)
    outcome = run(source, "--memory-limit", "1MiB", "--stop-after", "normalize", "-o", "out")
    assert outcome.status == 0, outcome.err
    assert "0 nodes left alone" in outcome.out


def test_one_node_is_no_plural(run: Command, tmp_path: Path) -> None:
    settings = ["--set", "rules=[{match: fc2, quantize: false}]"]
    outcome = run(models.mlp(tmp_path), *RTN, *settings, "-o", "out")
    assert "1 node left alone" in outcome.out
    assert "1 weight to quantize" in run(models.mlp(tmp_path), *RTN, *settings, "--dry-run").out


def test_a_folder_named_like_the_recipe_may_be_replaced(run: Command, tmp_path: Path) -> None:
    source = models.mlp(tmp_path)
    for force in ([], ["--force"]):
        assert run(source, *RTN, "-o", "w4a16-rtn", *force).status == 0


def test_no_file_that_is_read_is_replaced(run: Command, tmp_path: Path) -> None:
    source = models.mlp(tmp_path)
    assert run(source, *RTN, "-o", "out").status == 0
    data = models.feeds_file(Path("out"), x=np.ones((2, 64), np.float32))
    own = ["--recipe", "out/recipe.yaml"]
    for options in (["--calib", data], own, [*RTN, "--dump-ir", "out/ir"]):
        before = digests(Path("out"))
        outcome = run(source, *options, "-o", "out", "--force")
        assert outcome.status == 2 and "which would be lost" in outcome.error, options
        assert digests(Path("out")) == before


def test_dump_ir_and_stop_after(run: Command, tmp_path: Path) -> None:
    outcome = run(
        models.mlp(tmp_path), *RTN, "-o", "out", "--dump-ir", "ir", "--stop-after", "quantize_weights"
    )
    assert outcome.status == 0, outcome.err
    assert "DequantizeLinear" in {node.op_type for node in onnx.load("out/model.onnx").graph.node}
    assert any(path.name.endswith("quantize_weights") for path in Path("ir").iterdir())


def test_force_replaces(run: Command, tmp_path: Path) -> None:
    source = models.mlp(tmp_path)
    assert run(source, *RTN, "-o", "out").status == 0
    Path("out/stale").touch()
    assert run(source, *RTN, "-o", "out", "--force").status == 0
    assert not Path("out/stale").exists() and left_behind() == ["out"]
