"""--resume refuses what is of another compile, or damaged, in one line."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from qcompiler.errors import ResumeError
from qcompiler.graph import checkpoints
from qcompiler.report import manifest
from tests.resumed_compile import Place


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
        if manifest.installed_version(name) is not None
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
