"""A place to compile in with a quantizer that stops the compile, or fails, at a given weight."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qcompiler.api import Options, compile
from qcompiler.errors import QCompilerError
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
        """The bytes of every file but the reports."""
        given = {"recipe": self.recipe, "calibration": self.data, "output": self.out, "seed": 0, **changed}
        seed = given.pop("seed")
        self.told.clear()
        done = compile(self.model, **given, options=Options(resume=resume, seed=seed), tell=self.told.append)
        return {path.name: path.read_bytes() for path in done.folder.iterdir() if path.stem != "report"}

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


def interrupted(
    place: Place, at: int, *more: str, sabotage: str = SABOTAGE
) -> subprocess.CompletedProcess[str]:
    (place.folder / "sabotage.py").write_text(sabotage)
    environment = {**os.environ, "PYTHONPATH": str(place.folder), "SABOTAGE_AT": str(at)}
    command = [sys.executable, "-c", models.QCOMPILE, *place.arguments(), *more]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
