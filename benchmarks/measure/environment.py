"""Virtual environments of their own for peers whose requirements are not ours."""

import subprocess
import venv
from collections.abc import Sequence
from pathlib import Path

from benchmarks.measure.results import OUT

NNCF = ("nncf==3.4.0", "onnx==1.21.0", "onnxruntime==1.25.1")


def environment(name: str, requirements: Sequence[str]) -> Path:
    """The Python of a virtual environment that holds the requirements, made where there is none."""
    folder = OUT / "environments" / name
    python = folder / "bin" / "python"
    if not (folder / "finished").exists():
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *requirements], check=True)
        (folder / "finished").touch()
    return python
