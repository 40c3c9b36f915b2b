"""Finished measurements in a JSON file, so that a run that was stopped goes on where it was."""

import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

OUT = Path("out") / "benchmarks"
"""Where figures, kept logits and compiled models go; not in git."""


class Results:
    """Rows by key; each is written when it is put, with the machine that made it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.rows: dict[str, dict[str, Any]] = {}
        if path.exists():
            self.rows = json.loads(path.read_text("utf-8"))["rows"]

    def __contains__(self, key: str) -> bool:
        return key in self.rows

    def put(self, key: str, row: dict[str, Any]) -> None:
        """Add or replace a row and write the file, whole or not at all."""
        self.rows[key] = row | {"machine": machine()}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        beside = self._path.with_name(self._path.name + ".part")
        beside.write_text(json.dumps({"rows": self.rows}, indent=1, sort_keys=True) + "\n", "utf-8")
        beside.replace(self._path)


def machine() -> dict[str, Any]:
    """The processor, its cores and the versions that figures depend on."""
    names = ("qcompiler", "onnxruntime", "numpy", "torch", "onnx", "onnx-ir")
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "versions": {name: found for name in names if (found := _version(name)) is not None},
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def markdown(heads: list[str], rows: list[list[str]]) -> str:
    """A table; columns after the first are aligned right."""
    lines = ["| " + " | ".join(heads) + " |", "|" + "|".join([" --- "] + [" ---: "] * (len(heads) - 1)) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])
