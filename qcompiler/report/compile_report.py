"""report.json: what a compile did to each weight, what it left alone, and what it took."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from qcompiler.calibration.feeds import CalibrationFeeds
from qcompiler.graph.model_file import files_of
from qcompiler.pass_manager import PassRecord
from qcompiler.passes.assign_bits import MixedResult
from qcompiler.passes.layer_result import LayerResult
from qcompiler.passes.rotate import RotationResult
from qcompiler.recipe import Recipe
from qcompiler.recipe.plan import Plan, SkippedProduct
from qcompiler.report.fallback import Fallback
from qcompiler.report.json_text import to_json
from qcompiler.report.typed_values import typed

_OPTIONAL = ("mixed", "rotation", "fallback")


@dataclass(frozen=True)
class CompileReport:
    """Everything there is to say about one compile.

    Attributes:
        layers: one for each quantized weight.
        skipped: one for each product left alone, with its reason.
        passes: name, whether it modified the model, seconds, and why it left things alone.
        running: how many nodes of each quantized operator ONNX Runtime really runs.
        calibration: where the data came from, how many samples, and the file that ranges came from; empty without any.
        warnings: what a user should know.
        float_bytes, bytes: of the model with its data, before and after.
        seconds, peak_anonymous_bytes: of the whole compile, or of the run that finished it.
        resumed: weights that an earlier run had finished.
        mixed: how bits were given out; None where the recipe fixes them.
        rotation: what was rotated; None where the recipe asks for none.
        fallback: which layers went back to float for ``--max-drop``; None without it.
    """

    model: str
    recipe: str
    target: str
    layers: list[LayerResult]
    skipped: list[SkippedProduct]
    passes: list[PassRecord]
    running: dict[str, int]
    calibration: dict[str, Any]
    float_bytes: int
    bytes: int
    seconds: float
    peak_anonymous_bytes: int
    warnings: list[str] = field(default_factory=list)
    mixed: MixedResult | None = None
    resumed: int = 0
    rotation: RotationResult | None = None
    fallback: Fallback | None = None

    @classmethod
    def of(
        cls,
        source: Path,
        saved: Path,
        recipe: Recipe,
        target: str,
        plan: Plan,
        results: Sequence[LayerResult],
        records: Sequence[PassRecord],
        running: dict[str, int],
        data: CalibrationFeeds | None,
        warnings: Sequence[str],
        seconds: float,
        peak_anonymous_bytes: int,
        mixed: MixedResult | None = None,
        resumed: int = 0,
        rotation: RotationResult | None = None,
        ranges: Path | None = None,
    ) -> "CompileReport":
        """Of a compile of ``source`` to ``saved``, with ``ranges`` of a file; ``warnings`` come before those of plan and data."""
        return cls(
            model=source.name,
            recipe=recipe.name,
            target=target,
            layers=list(results),
            skipped=list(plan.skipped),
            passes=list(records),
            running=running,
            calibration={
                **({} if data is None else data.description),
                **({} if ranges is None else {"ranges": str(ranges)}),
            },
            float_bytes=_size(source),
            bytes=_size(saved),
            seconds=seconds,
            peak_anonymous_bytes=peak_anonymous_bytes,
            mixed=mixed,
            resumed=resumed,
            rotation=rotation,
            warnings=[*warnings, *plan.warnings, *([] if data is None else data.warnings)],
        )

    @classmethod
    def read(cls, path: Path) -> "CompileReport | None":
        """Of a report.json, where null is infinity; None where there is none, or where it is not one of this version."""
        try:
            content: Any = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        if not isinstance(content, dict):
            return None
        absent = {name: None for name in _OPTIONAL if content.get(name) == {}}
        try:
            found: CompileReport = typed(cls, {**content, **absent})
        except ValueError:
            return None  # of another version
        return found

    def plain(self) -> dict[str, Any]:
        """As in report.json: dictionaries, lists and numbers; what there is none of is an empty dictionary."""
        content = asdict(self)
        return content | {name: {} for name in _OPTIONAL if content[name] is None}

    def write(self, path: Path) -> None:
        """As JSON; an infinite figure (the SQNR of equal weights) becomes null."""
        path.write_text(to_json(self.plain()) + "\n", encoding="utf-8")


def _size(path: Path) -> int:
    """Bytes of a model with its data files."""
    return sum(file.stat().st_size for file in files_of(path).values())
