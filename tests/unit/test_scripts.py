"""The scripts: asked for help, each that takes arguments says what it does and runs nothing."""

import subprocess
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.mark.parametrize("flag", ["--help", "-h"])
@pytest.mark.parametrize(("name", "words"), [("test", "--slow"), ("bench", "--list")])
def test_help(name: str, words: str, flag: str) -> None:
    done = subprocess.run([SCRIPTS / name, flag], capture_output=True, text=True, timeout=20)
    assert done.returncode == 0 and done.stderr == ""
    assert words in done.stdout and f"scripts/{name}" in done.stdout and "pytest -" not in done.stdout
