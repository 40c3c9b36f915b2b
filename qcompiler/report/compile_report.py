"""report.json: what a compile did to each weight, what it left alone, and what it took."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from qcompiler.report.json_text import to_json


@dataclass(frozen=True)
class CompileReport:
    """Everything there is to say about one compile; plain values only.

    Attributes:
        layers: one entry for each quantized weight (`LayerResult`).
        skipped: one entry for each product left alone, with its reason.
        passes: name, whether it modified the model, seconds.
        running: how many nodes of each quantized operator ONNX Runtime really runs.
        calibration: where the data came from, how many samples; empty without any.
        warnings: what a user should know.
        float_bytes, bytes: of the model with its data, before and after.
        seconds, peak_anonymous_bytes: of the whole compile.
    """

    model: str
    recipe: str
    target: str
    layers: list[dict[str, Any]]
    skipped: list[dict[str, Any]]
    passes: list[dict[str, Any]]
    running: dict[str, int]
    calibration: dict[str, Any]
    float_bytes: int
    bytes: int
    seconds: float
    peak_anonymous_bytes: int
    warnings: list[str] = field(default_factory=list)

    def write(self, path: Path) -> None:
        """As JSON; an infinite figure (the SQNR of equal weights) becomes null."""
        path.write_text(to_json(asdict(self)) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> "CompileReport":
        """From JSON that ``write`` wrote."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))
