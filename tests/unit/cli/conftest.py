"""The command line in this process, in an empty folder."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from qcompiler.cli import main
from tests.command_line import Command, Outcome


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
