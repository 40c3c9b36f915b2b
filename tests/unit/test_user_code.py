"""What a user names as package.module:attribute."""

import sys
from pathlib import Path

import pytest

from qcompiler.errors import CalibrationError
from qcompiler.user_code import import_reference


def test_a_module_in_the_current_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "only_here_module.py").write_text("class Own:\n    value = 3\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    before = list(sys.path)
    assert import_reference("only_here_module:Own.value", CalibrationError) == 3
    assert sys.path == before
    monkeypatch.delitem(sys.modules, "only_here_module")


def test_a_file_there_hides_no_installed_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "colorsys.py").write_text("raise ValueError\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    assert callable(import_reference("colorsys:rgb_to_hsv", CalibrationError))


def test_a_missing_module_says_where_it_was_looked_for() -> None:
    with pytest.raises(CalibrationError, match="no module no_such_module; is it .* in the current folder"):
        import_reference("no_such_module:f", CalibrationError)
