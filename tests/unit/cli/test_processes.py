"""Commands as processes of their own: killed, interrupted, full disk, closed pipe."""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import command_models as models
from tests.command_line import RTN, Command, left_behind


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
