"""A session at the command line on the embedded model, as the README shows it.

python -m benchmarks.session            runs the commands, prints the transcript, keeps it for fill_tables
"""

import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.measure.results import OUT
from models import tiny_lm
from models.built_model import ModelFiles

TEXT = OUT / "session.md"
COMMANDS: tuple[tuple[str, int, int], ...] = (  # and how many lines of its start and end are shown
    ("qcompile model.onnx --recipe w4a16-awq --dry-run", 4, 5),
    ("qcompile model.onnx --recipe w4a16-awq --calib text.txt -o out", 50, 0),
    ("qcompile inspect out/model.onnx --filter 'layers.0.*proj'", 4, 0),
    (
        "qcompile eval out/model.onnx --reference model.onnx --text other.txt",
        50,
        0,
    ),
)


def transcript() -> str:
    """Markdown of what was typed and what came."""
    lines = ["```console"]
    with tempfile.TemporaryDirectory() as folder:
        _fill(Path(folder))
        for command, first, last in COMMANDS:
            shown = _run(command, Path(folder)).splitlines()
            if len(shown) > first + last:
                shown = [*shown[:first], "...", *shown[len(shown) - last :]]
            lines += [f"$ {command}", *(line.rstrip() for line in shown), ""]
    return "\n".join([*lines[:-1], "```"])


def _fill(folder: Path) -> None:
    files = ModelFiles(tiny_lm.build(), tiny_lm.calibration_data(), tiny_lm.evaluation_data())
    files.copy_to(folder)


def _run(command: str, folder: Path) -> str:
    words = [sys.executable, "-m", "qcompiler.cli", *shlex.split(command)[1:]]
    environment = os.environ | {"PYTHONPATH": str(Path.cwd())}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{command}: status {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def main() -> None:
    """Command line."""
    text = transcript()
    TEXT.parent.mkdir(parents=True, exist_ok=True)
    TEXT.write_text(text + "\n", "utf-8")
    print(text)


if __name__ == "__main__":
    main()
