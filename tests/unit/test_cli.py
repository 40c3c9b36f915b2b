"""The command line: what it makes; every bad input is one line, its status, and nothing half written."""

import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from qcompiler.cli import main
from tests import command_models as models

RTN = ["--recipe", "w4a16-rtn"]
ROOT = Path(__file__).parents[2]


class Outcome:
    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err

    @property
    def error(self) -> str:
        """The one line of an error."""
        lines = self.err.strip().splitlines()
        assert len(lines) == 1 and lines[0].startswith("error: "), self.err
        return lines[0]


Command = Callable[..., Outcome]


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Command]:
    """``run("model.onnx", ...)`` in an empty folder ``here``."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    handler = signal.getsignal(signal.SIGTERM)

    def call(*arguments: str | Path) -> Outcome:
        with pytest.raises(SystemExit) as exit_info:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert isinstance(exit_info.value.code, int)
        return Outcome(exit_info.value.code, captured.out, captured.err)

    yield call
    signal.signal(signal.SIGTERM, handler)


def digests(folder: Path) -> dict[str, str]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def left_behind() -> list[str]:
    return sorted(path.name for path in Path().iterdir())


# What it makes


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
    assert roles == {"table": "head", "fc1": "linear", "fc2": "linear"}
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
    assert run(models.mlp(tmp_path), *RTN, "--memory-limit", "1MiB").error.endswith("raise it")


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
    assert outcome.status == 2 and "none.txt: no such calibration file" in outcome.error
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


# Bad input: one line, status 2, nothing written


def text_file(folder: Path) -> Path:
    path = folder / "bad.onnx"
    path.write_text("this is not a model")
    return path


def truncated(folder: Path) -> Path:
    path = models.mlp(folder)
    path.write_bytes(path.read_bytes()[:20_000])
    return path


def without_data(folder: Path) -> Path:
    path = models.external_mlp(folder)
    (folder / "float.onnx.data").unlink()
    return path


def short_data(folder: Path) -> Path:
    path = models.external_mlp(folder)
    data = folder / "float.onnx.data"
    data.write_bytes(data.read_bytes()[:1000])
    return path


def outside_data(folder: Path) -> Path:
    return models.external_mlp(folder, location="../elsewhere.data")


def nan_weight(folder: Path) -> Path:
    return models.mlp(folder, spoil=float("nan"))


def infinite_weight(folder: Path) -> Path:
    return models.mlp(folder, spoil=float("inf"))


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (text_file, ["bad.onnx"]),
        (truncated, ["float.onnx"]),
        (without_data, ["float.onnx.data"]),
        (short_data, ["float.onnx.data"]),
        (outside_data, ["elsewhere.data"]),
        (nan_weight, ["fc1", "NaN"]),
        (infinite_weight, ["fc1"]),
        (models.nothing_to_quantize, ["nothing to quantize"]),
        (lambda folder: folder, ["a folder without model.onnx"]),
        (lambda folder: folder / "missing.onnx", ["missing.onnx: no such file"]),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_bad_models(run: Command, tmp_path: Path, build: Callable[[Path], Path], words: list[str]) -> None:
    source = build(tmp_path)
    before = digests(tmp_path)
    outcome = run(source, *RTN)
    assert outcome.status == 2
    assert all(word in outcome.error for word in words), outcome.error
    assert left_behind() == [] and outcome.out == ""
    assert digests(tmp_path) == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--recipe", "w4a16-awk"], ["did you mean 'w4a16-awq'"]),
        (["--recipe", "missing.yaml"], ["missing.yaml", "cannot be read"]),
        ([*RTN, "--set", "group_sise=64"], ["group_sise", "did you mean 'group_size'"]),
        ([*RTN, "--set", "group_size=48"], ["group_size"]),
        ([*RTN, "--set", "group_size"], ["expected KEY=VALUE"]),
        ([*RTN, "--target", "orto"], ["did you mean 'ort'"]),
        ([*RTN, "--stop-after", "nothing"], ["no such pass"]),
        ([*RTN, "--memory-limit", "1MiB"], ["--memory-limit"]),
        (["--calib", "required"], ["--calib"]),
        (["--calib", "none.npz"], ["none.npz"]),
        (["--calib", "no_module:feeds"], ["no_module"]),
    ],
)
def test_bad_options(run: Command, tmp_path: Path, options: list[str], words: list[str]) -> None:
    outcome = run(models.mlp(tmp_path), *options)
    assert outcome.status == 2
    assert all(word in outcome.error for word in words), outcome.error
    assert left_behind() == []


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"z": np.zeros((2, 64), np.float32)}, ["'z'"]),
        ({"x": np.zeros((2, 63), np.float32)}, ["x", "64"]),
        ({"x": np.zeros(64, np.float32)}, ["x", "dimensions"]),
        ({"x": np.array([["a"] * 64])}, ["x"]),
        ({"x": np.full((2, 64), np.nan, np.float32)}, ["x", "NaN"]),
        ({}, ["no arrays"]),
    ],
    ids=["name", "size", "rank", "type", "nan", "empty"],
)
def test_bad_calibration(run: Command, tmp_path: Path, arrays: dict[str, Any], words: list[str]) -> None:
    outcome = run(models.mlp(tmp_path), "--calib", models.feeds_file(tmp_path, **arrays))
    assert outcome.status == 2
    assert all(word in outcome.error for word in words), outcome.error
    assert left_behind() == []


def test_text_without_tokenizer(run: Command, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("words " * 50)
    outcome = run(models.decoder(tmp_path), "--calib", text)
    assert outcome.status == 2 and "--tokenizer" in outcome.error


def test_output_that_exists(run: Command, tmp_path: Path) -> None:
    Path("out").mkdir()
    Path("out/mine").write_text("keep")
    outcome = run(models.mlp(tmp_path), *RTN, "-o", "out")
    assert outcome.status == 2 and "--force" in outcome.error
    assert left_behind() == ["out"] and Path("out/mine").read_text() == "keep"


def test_output_that_cannot_be_written(run: Command, tmp_path: Path) -> None:
    Path("file").touch()
    for place in ("file", "file/out", "/proc/out"):
        outcome = run(models.mlp(tmp_path), *RTN, "-o", place, "--force")
        assert outcome.status == 2 and Path(place).name in outcome.error, place
    assert left_behind() == ["file"]


def test_output_that_holds_the_input(run: Command, tmp_path: Path) -> None:
    folder = Path("models")
    folder.mkdir()
    source = models.mlp(folder)
    before = digests(folder)
    outcome = run(source, *RTN, "-o", folder, "--force")
    assert outcome.status == 2 and "which would be lost" in outcome.error
    assert digests(folder) == before


def test_a_disk_without_room(run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qcompiler.graph.disk.shutil.disk_usage", lambda place: os_usage(0))
    outcome = run(models.mlp(tmp_path), *RTN)
    assert outcome.status == 2 and "free space" in outcome.error
    assert "--resume goes on from there" in outcome.error  # the weights were finished
    assert left_behind() == ["float-w4a16-rtn.work"]


def os_usage(free: int) -> Any:
    import shutil

    return shutil._ntuple_diskusage(1 << 40, 1 << 40, free)  # type: ignore[attr-defined]


# Other processes: killed, interrupted, full disk, closed pipe


def process(folder: Path, *arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    command = [sys.executable, "-c", models.QCOMPILE, *map(str, arguments)]
    return subprocess.run(
        command, cwd=folder / "here", env=environment, capture_output=True, text=True, timeout=120, **options
    )


def feeds_module(folder: Path, last: str) -> str:
    """A module whose feeds end in a statement: what happens in the middle of a run."""
    (folder / "sabotage.py").write_text(
        "import os, signal, numpy\n"
        "def feeds():\n"
        "    yield {'x': numpy.ones((4, 64), numpy.float32)}\n"
        f"    {last}\n"
    )
    return "sabotage:feeds"


@pytest.mark.slow
def test_killed_and_run_again(run: Command, tmp_path: Path) -> None:
    source = models.mlp(tmp_path)
    data = feeds_module(tmp_path, "os.kill(os.getpid(), signal.SIGKILL)")
    killed = process(tmp_path, source, "-o", "out", "--calib", data)
    assert killed.returncode == -signal.SIGKILL
    assert left_behind() == ["out.work"]
    assert run(source, *RTN, "-o", "out").status == 0
    assert left_behind() == ["out"]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_interrupted(run: Command, tmp_path: Path, name: str, status: int) -> None:
    data = feeds_module(tmp_path, f"os.kill(os.getpid(), signal.{name}); import time; time.sleep(60)")
    stopped = process(tmp_path, models.mlp(tmp_path), "-o", "out", "--calib", data)
    assert stopped.returncode == status, stopped.stderr
    assert "Traceback" not in stopped.stderr and left_behind() == []


@pytest.mark.slow
def test_a_full_disk(run: Command, tmp_path: Path) -> None:
    """The system refuses to let any file grow past 4 kB, as a full disk does."""
    source = models.mlp(tmp_path)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    full = process(tmp_path, source, *RTN, "-o", "out", preexec_fn=limit)
    assert full.returncode == 2, full.stderr
    assert full.stderr.startswith("error: ") and full.stderr.count("\n") == 1
    assert left_behind() == []


@pytest.mark.slow
def test_a_closed_pipe_is_quiet(run: Command, tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-c", models.QCOMPILE, "recipes", "w4a16-awq"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(write)
    assert done.returncode == 141 and done.stderr == ""


def test_a_defect_is_one_line_and_status_1(
    run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object, **options: object) -> None:
        raise ZeroDivisionError("of ours")

    monkeypatch.setattr("qcompiler.api.dry_run", broken)
    source = models.mlp(tmp_path)
    outcome = run(source, "--dry-run")
    assert outcome.status == 1 and "ZeroDivisionError: of ours" in outcome.error
    shown = run(source, "--dry-run", "--traceback")
    assert "Traceback" in shown.err and "in broken" in shown.err


# The other verbs


def test_help_of_every_verb_has_an_example(run: Command) -> None:
    listed = run("--help").out
    for verb in ("compile", "inspect", "eval", "recipes", "targets", "doctor"):
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
    assert [entry["name"] for entry in json.loads(run("targets", "--json").out)] == ["ort"]
    found = {entry["what"]: entry for entry in json.loads(run("doctor", "--json").out)}
    assert found["CPUExecutionProvider"]["present"] and "cores" in found["cpu"]["found"]
    assert run("recipes", "w4a16-rtm").status == 2


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
    assert "<svg" in Path("out/pareto.svg").read_text("utf-8")
    shown = run(source, *RTN, "--budget", "6bpw", "--set", "calib.length=16", "-o", "out", "--force").out
    assert "predicted kl" in shown and "chosen" in shown
    assert run(source, *RTN, "--max-kl", "0", "-o", "out2").status == 2
