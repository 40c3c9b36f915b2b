"""Bad input: one line, status 2, nothing half written."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import command_models as models
from tests.command_line import RTN, Command, digests, left_behind


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
        ([*RTN, "--no-function-body"], ["target ort", "--no-function-body", "--target qcompiler"]),
        ([*RTN, "--no-function-body", "--dry-run"], ["target ort", "--no-function-body"]),
        ([*RTN, "--mapped-weights"], ["target ort", "--mapped-weights", "--target qcompiler"]),
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
