"""--resume: whatever ends a compile, going on gives the bytes of an unbroken run."""

import importlib.util
import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from qcompiler import api
from qcompiler.cli import main
from qcompiler.errors import ResumeError
from qcompiler.graph import checkpoints, disk
from tests.resumed_compile import FINISHED, RECIPE, SABOTAGE, WEIGHTS, Place, interrupted


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


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="Fisher scores need torch")
def test_bits_given_out_by_fisher_scores_are_the_same_again(place: Place) -> None:
    place.recipe.write_text(RECIPE + "mixed: {bits: [4, 8], budget: 7bpw, sensitivity: fisher}\n")
    unbroken = place.compile(output=place.folder / "unbroken")
    place.fail(9)
    assert place.compile(resume=True) == unbroken
    assert 0 < place.resumed() < WEIGHTS
    mixed = json.loads((place.out / "report.json").read_text())["mixed"]
    assert mixed["sensitivity"] == "fisher" and set(mixed["chosen"]) == {4, 8}
