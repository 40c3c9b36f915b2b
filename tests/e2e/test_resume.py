"""--resume: whatever ends a compile, going on gives the bytes of an unbroken run, or one line says why it cannot."""

import importlib.util
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from qcompiler import api
from qcompiler.api import Options, compile
from qcompiler.cli import main
from qcompiler.errors import QCompilerError, ResumeError
from qcompiler.graph import checkpoints, disk
from qcompiler.report import manifest
from tests import command_models as models

WEIGHTS = 14  # of deep_decoder: an embedding, three layers of four, a head
FINISHED = [0, 1, 3, 7, 11, 14]  # weights after so many checkpoints: the embedding, then segments
RECIPE = """
bits: 4
group_size: 32
symmetric: false
algorithm: [{name: awq, steps: 2, iterations: 5}, "sabotage:quantize"]
calibration: {samples: 3, length: 24}
"""
# A quantizer that counts: the weight AT ends the process, or fails.
SABOTAGE = """
import os, signal
from qcompiler.algorithms import gptq, Algorithm, Need

AT, KILL, done = int(os.environ.get("SABOTAGE_AT", "-1")), True, 0

def run(weight, statistics, scheme, options):
    global done
    done += 1
    if done == AT + 1 and KILL:
        os.kill(os.getpid(), signal.SIGKILL)
    if done == AT + 1:
        raise ValueError("sabotage")
    return gptq.quantize(weight, statistics, scheme, options)

quantize = Algorithm("sabotage", "quantizer", frozenset({Need.HESSIAN}), gptq.GptqOptions, run, spreads=True)
"""


class Place:
    """A folder with a model, a recipe, data and the module ``sabotage``, and compiles there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = models.deep_decoder(folder)
        self.recipe = folder / "recipe.yaml"
        self.recipe.write_text(RECIPE)
        self.data = self.write_data(folder / "data", 0)
        self.out, self.work = folder / "out", folder / "out.work"
        self.told: list[str] = []

    def write_data(self, folder: Path, seed: int) -> Path:
        folder.mkdir()
        random = np.random.default_rng(seed)
        for index in range(3):
            np.savez(folder / f"{index}.npz", input_ids=random.integers(0, 96, (1, 24)))
        return folder

    def arguments(self) -> list[str]:
        return [str(self.model), "--recipe", str(self.recipe), "--calib", str(self.data), "-o", str(self.out)]

    def compile(self, resume: bool = False, **changed: Any) -> dict[str, bytes]:
        """The bytes of every file but the report."""
        given = {"recipe": self.recipe, "calibration": self.data, "output": self.out, "seed": 0, **changed}
        seed = given.pop("seed")
        self.told.clear()
        done = compile(self.model, **given, options=Options(resume=resume, seed=seed), tell=self.told.append)
        return {path.name: path.read_bytes() for path in done.folder.iterdir() if path.name != "report.json"}

    def resumed(self) -> int:
        found: int = json.loads((self.out / "report.json").read_text())["resumed"]
        return found

    def fail(self, at: int) -> QCompilerError:
        """A compile whose quantizer fails at the weight ``at``."""
        sabotage = sys.modules["sabotage"]
        sabotage.AT, sabotage.KILL, sabotage.done = at, False, 0  # type: ignore[attr-defined]
        with pytest.raises(QCompilerError, match="sabotage") as failed:
            self.compile()
        sabotage.AT = -1  # type: ignore[attr-defined]
        return failed.value

    def checkpoints(self) -> list[Path]:
        return sorted(self.work.glob("checkpoint-*.json"))


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Where ``unbroken`` and ``failed`` are made once."""
    folder = tmp_path_factory.mktemp("first")
    (folder / "sabotage.py").write_text(SABOTAGE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        __import__("sabotage")
        yield Place(folder)
        del sys.modules["sabotage"]


@pytest.fixture(scope="module")
def unbroken(first: Place) -> dict[str, bytes]:
    return first.compile(output=first.folder / "unbroken")


@pytest.fixture(scope="module")
def left(first: Place) -> Path:
    """The work folder of a compile that failed in its second segment."""
    first.fail(at=5)
    return first.work


@pytest.fixture
def place(first: Place, tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture
def failed(place: Place, left: Path) -> Place:
    shutil.copytree(left, place.work)
    return place


def interrupted(
    place: Place, at: int, *more: str, sabotage: str = SABOTAGE
) -> subprocess.CompletedProcess[str]:
    (place.folder / "sabotage.py").write_text(sabotage)
    environment = {**os.environ, "PYTHONPATH": str(place.folder), "SABOTAGE_AT": str(at)}
    command = [sys.executable, "-c", models.QCOMPILE, *place.arguments(), *more]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
@pytest.mark.parametrize(("at", "finished"), [(0, 1), (2, 3), (7, 7), (11, 11)])
def test_killed_and_resumed(place: Place, unbroken: dict[str, bytes], at: int, finished: int) -> None:
    """``finished``: the embedding, and every segment before the weight ``at``."""
    killed = interrupted(place, at)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert place.compile(resume=True) == unbroken
    assert place.resumed() == finished
    assert place.told == [f"{place.work}: going on; {finished} of {WEIGHTS} weights are finished"]
    assert not place.work.exists()


@pytest.mark.slow
def test_killed_again_and_again(place: Place, unbroken: dict[str, bytes]) -> None:
    """What was finished in one run is taken by all that follow."""
    assert interrupted(place, 3).returncode == -signal.SIGKILL
    assert interrupted(place, 5, "--resume").returncode == -signal.SIGKILL
    assert place.compile(resume=True) == unbroken
    assert place.resumed() == 7


def test_a_failure_keeps_what_is_finished_and_says_so(place: Place, unbroken: dict[str, bytes]) -> None:
    error = place.fail(at=5)
    assert error.__notes__ == [f"what is finished is in {place.work}: --resume goes on from there"]
    assert not (place.work / "out").exists()
    assert place.compile(resume=True) == unbroken


def test_border_files_go_when_nothing_reads_them_any_more(place: Place) -> None:
    place.fail(at=9)
    borders = {path.name for path in place.work.glob("borders-*.bin")}
    table = json.loads(place.checkpoints()[-1].read_text())["body"]["content"]["borders"]
    assert borders == set(table["files"])
    assert "gate" in table["values"] and len(table["values"]) == 2  # and the residual stream


def test_a_failure_before_anything_is_finished_leaves_nothing(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise disk.ResourceError("the disk is full")

    monkeypatch.setattr(checkpoints, "write_whole", full)
    with pytest.raises(disk.ResourceError) as failed:
        place.compile()
    assert not hasattr(failed.value, "__notes__") and not place.work.exists()


class _Stop(BaseException):
    """As a signal would raise."""


@pytest.mark.slow
@pytest.mark.parametrize("when", range(1, 13))
def test_stopped_around_any_write_of_a_checkpoint(
    place: Place, unbroken: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, when: int
) -> None:
    """Odd: before the JSON is there, its data is; even: right after."""
    write, count = checkpoints.write_whole, 0

    def stopping(path: Path, content: bytes) -> None:
        nonlocal count
        count += 2
        if count == when + 1:
            raise _Stop
        write(path, content)
        if count == when:
            raise _Stop

    monkeypatch.setattr(checkpoints, "write_whole", stopping)
    with pytest.raises(_Stop):
        place.compile()
    monkeypatch.setattr(checkpoints, "write_whole", write)
    assert place.compile(resume=True) == unbroken
    assert place.resumed() == FINISHED[max(when // 2 - 1, 0)]  # the first write is the fingerprint


def test_a_failure_while_saving_is_resumed_without_any_work(
    place: Place, unbroken: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    save = api.model_file.save

    def full(*arguments: object) -> None:
        raise disk.ResourceError("the disk is full")

    monkeypatch.setattr(api.model_file, "save", full)
    with pytest.raises(disk.ResourceError) as failed:
        place.compile()
    assert "--resume goes on" in failed.value.__notes__[0]
    monkeypatch.setattr(api.model_file, "save", save)
    assert place.compile(resume=True) == unbroken
    assert place.resumed() == WEIGHTS


def test_weights_without_calibration_are_resumed_too(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ["algorithm=mse", "head.algorithm=rtn"]
    whole = place.compile(recipe="w4a16-rtn", calibration=None, output=place.folder / "whole")
    add, count = checkpoints.Checkpoints.add, 0

    def stopping(self: checkpoints.Checkpoints, part: str, content: Any) -> None:
        nonlocal count
        add(self, part, content)
        count += 1
        if count == 6:
            raise _Stop

    monkeypatch.setattr(checkpoints.Checkpoints, "add", stopping)
    with pytest.raises(_Stop):
        place.compile(recipe="w4a16-rtn", calibration=None)
    monkeypatch.setattr(checkpoints.Checkpoints, "add", add)
    with pytest.raises(ResumeError, match="the recipe is another"):
        place.compile(True, recipe="w4a16-rtn", calibration=None, settings=settings)
    assert place.compile(True, recipe="w4a16-rtn", calibration=None) == whole
    assert place.resumed() == 6


# What cannot be gone on from


def _other_model(place: Place) -> dict[str, Any]:
    model = onnx.load(place.model)
    model.doc_string = "another"
    onnx.save(model, place.model)
    return {}


def _other_target(place: Place) -> dict[str, Any]:
    path = place.work / "fingerprint.json"
    body = json.loads(path.read_text())["body"]
    checkpoints._write(path, {**body, "target": "elsewhere"})
    return {}


def _other_version(name: str) -> Callable[[Place], dict[str, Any]]:
    def change(place: Place) -> dict[str, Any]:
        path = place.work / "fingerprint.json"
        body = json.loads(path.read_text())["body"]
        checkpoints._write(path, {**body, "versions": {**body["versions"], name: "0.0.1"}})
        return {}

    return change


OTHERS: dict[str, tuple[Callable[[Place], dict[str, Any]], str]] = {
    "model": (_other_model, "the model is another"),
    "data": (
        lambda place: {"calibration": place.write_data(place.folder / "more", 1)},
        "the calibration data is other data",
    ),
    "recipe": (lambda place: {"settings": ["group_size=16"]}, "the recipe is another"),
    "seed": (lambda place: {"seed": 7}, "seed was 0 and is 7"),
    "target": (_other_target, "target was elsewhere and is ort"),
    **{
        name: (_other_version(name), f"{name} was 0.0.1 and is ")
        for name in ("qcompiler", "onnx", "onnx-ir", "onnxruntime", "numpy", "torch")
        if manifest._version(name) is not None
    },
}


@pytest.mark.parametrize("part", OTHERS)
def test_another_compile_is_refused(failed: Place, part: str) -> None:
    change, reason = OTHERS[part]
    with pytest.raises(ResumeError) as refused:
        failed.compile(resume=True, **change(failed))
    assert f"out.work: cannot go on: {reason}" in str(refused.value)
    assert "leave out --resume" in str(refused.value) and not hasattr(refused.value, "__notes__")
    assert failed.checkpoints()


def _truncate(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


FILES = [
    "weights.bin",
    "checkpoint-000000.json",
    "borders-0.bin",
    "fingerprint.json",
    "checkpoint-000001.json",
]
HARM = {"truncated": _truncate, "flipped": _flip, "gone": Path.unlink}


@pytest.mark.parametrize(
    ("name", "harm"), list(itertools.product(FILES, HARM))[:-1]
)  # the last gone is an earlier end
def test_damage_is_refused(failed: Place, name: str, harm: str) -> None:
    HARM[harm](failed.work / name)
    with pytest.raises(ResumeError, match=r"out\.work.*; leave out --resume to begin anew"):
        failed.compile(resume=True)
    assert not failed.out.exists() and failed.checkpoints()


def test_a_checkpoint_of_another_compile_is_refused(failed: Place) -> None:
    path = failed.checkpoints()[1]
    body = json.loads(path.read_text())["body"]
    checkpoints._write(path, {**body, "fingerprint": "00000000"})
    with pytest.raises(ResumeError, match=r"checkpoint-000001\.json: is of another compile"):
        failed.compile(resume=True)


def test_a_checkpoint_of_another_part_is_refused(failed: Place) -> None:
    path = failed.checkpoints()[1]
    body = json.loads(path.read_text())["body"]
    checkpoints._write(path, {**body, "part": "segment 4"})
    with pytest.raises(ResumeError, match=r"checkpoint-000001\.json: is of segment 4, not of segment 0"):
        failed.compile(resume=True)


# What is said


def test_nothing_to_resume(place: Place, unbroken: dict[str, bytes]) -> None:
    assert place.compile(resume=True) == unbroken
    assert place.told == [f"{place.work}: nothing to resume; starting from the beginning"]
    assert place.resumed() == 0


def test_without_resume_it_begins_anew(failed: Place, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(failed.arguments())
    assert ended.value.code == 0
    assert "--resume could have gone on from there" in capsys.readouterr().err
    assert failed.resumed() == 0


def test_the_command_line_says_where_it_can_go_on(
    place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sabotage = sys.modules["sabotage"]
    monkeypatch.setattr(sabotage, "AT", 5)
    monkeypatch.setattr(sabotage, "KILL", False)
    monkeypatch.setattr(sabotage, "done", 0)
    with pytest.raises(SystemExit) as ended:
        main(place.arguments())
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.startswith("error: ") and said.count("\n") == 1
    assert said.endswith(f"; what is finished is in {place.work}: --resume goes on from there\n")
    with pytest.raises(SystemExit) as ended:
        main([*place.arguments(), "--resume"])
    shown = capsys.readouterr()
    assert ended.value.code == 0 and "going on; 3 of 14 weights are finished" in shown.err
    assert "3 weights were finished before" in " ".join(shown.out.split())


@pytest.mark.slow
@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_interrupted(place: Place, unbroken: dict[str, bytes], name: str, status: int) -> None:
    waits = SABOTAGE.replace("SIGKILL)", f"{name}); import time; time.sleep(60)")
    stopped = interrupted(place, 5, sabotage=waits)
    assert stopped.returncode == status, stopped.stderr
    word = "interrupted" if status == 130 else "terminated"
    note = f"what is finished is in {place.work}: --resume goes on from there"
    assert stopped.stderr.strip() == f"error: {word}; {note}"
    assert place.compile(resume=True) == unbroken


TUNED = """
bits: 4
group_size: 32
symmetric: false
algorithm: [awq, "sabotage:quantize", {name: autoround, steps: 3}]
calibration: {samples: 3, length: 24}
"""


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="autoround needs torch")
@pytest.mark.parametrize("at", [5, 9])
def test_tuned_segments_resume_with_the_float_stream(place: Place, at: int) -> None:
    """``at``: a weight of the second segment, and one of the third; the float borders come from the checkpoint."""
    place.recipe.write_text(TUNED)
    unbroken = place.compile(output=place.folder / "unbroken")
    place.fail(at)
    assert list(place.work.glob("float-borders-*.bin"))
    assert place.compile(resume=True) == unbroken
    assert 0 < place.resumed() < WEIGHTS
