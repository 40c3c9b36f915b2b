"""What a compile was asked for, found and loaded; what it plans to do, and how much memory that takes."""

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from qcompiler.calibration.data import check_exists, open_calibration, tokenizer_beside
from qcompiler.calibration.feeds import REQUIRED
from qcompiler.calibration.range_source import ranges_of
from qcompiler.calibration.saved_ranges import SavedRanges
from qcompiler.errors import ResourceError
from qcompiler.graph import model_file
from qcompiler.pass_manager import check_stop
from qcompiler.pipeline import check_passes, pass_names, plan_weights
from qcompiler.recipe import Recipe
from qcompiler.recipe.plan import Plan
from qcompiler.recipe.setting import Setting
from qcompiler.report.memory_forecast import enough_memory, forecast_peak_bytes
from qcompiler.report.sizes import format_memory
from qcompiler.targets import Target

Feeds = Iterable[Mapping[str, npt.NDArray[Any]]]
Calibration = str | os.PathLike[str] | Feeds | None


@dataclass(frozen=True)
class Job:
    """What was asked for, found and loaded; nothing is written yet.

    Attributes:
        calibration: what there is to run the model on.
        data: the file or folder of calibration data, if it is one.
        saved: ranges of activations from a file; with ``ranges_alone`` that was given in place of data.
        sources: every file that is read, and the folder of dumps: none may lie where the output is to be.
    """

    source: Path
    model: ir.Model
    recipe: Recipe
    target: Target
    tokenizer: Path | None
    calibration: Calibration
    data: Path | None
    saved: SavedRanges | None
    ranges_alone: bool
    place: Path
    sources: list[Path]

    @property
    def has_data(self) -> bool:
        """Whether the user gave data."""
        return is_data(self.calibration)

    def plan(self, allow_quantized: bool) -> Plan:
        """What becomes of each product of the prepared model, and where its ranges come from."""
        planned = plan_weights(self.model, self.recipe, allow_quantized)
        if self.saved is not None:
            correct = self.recipe.calibration.correct_biases == "measured" and self.has_data
            planned.take_ranges(self.saved.path, correct, self.ranges_alone)
        planned.check(self.target.supports)
        planned.note(self.target.remark)
        check_passes(self.model, self.recipe, self.target, allow_quantized)
        return planned

    def forecast(self, planned: Plan) -> Callable[[int], int]:
        """The peak in bytes, by the limit that is aimed at; data of the user's are looked through once."""
        settings = self.recipe.calibration
        first = None
        if planned.needs_data and self.data is not None:
            feeds = 0
            for feed in open_calibration(self.data, self.tokenizer, settings.samples, settings.length):
                first = feed if first is None else first
                feeds += 1
            settings = replace(settings, samples=feeds)
        return lambda limit: forecast_peak_bytes(self.model, planned, settings, first, limit)

    def checked_plan(self, allow_quantized: bool, memory_limit: int) -> Plan:
        """As ``plan``.

        Raises:
            ResourceError: the forecast is above the limit.
        """
        planned = self.plan(allow_quantized)
        check_memory(self.forecast(planned), memory_limit, planned)
        return planned


def look_up(
    model: str | os.PathLike[str],
    recipe: str | os.PathLike[str] | Recipe,
    settings: Iterable[str | Setting],
    goal: Target,
    output: str | os.PathLike[str] | None,
    calibration: Calibration,
    tokenizer: str | os.PathLike[str] | None,
    stop_after: str | None = None,
    dump_ir: Path | None = None,
) -> Job:
    """Finds and loads what ``compile`` was given.

    Raises:
        QCompilerError: it is not there, does not read, or does not go together.
    """
    source = model_file.model_path(model)
    resolved = (recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)).with_settings(settings)
    check_stop(stop_after, pass_names(resolved, goal))
    if stop_after is None:
        goal.require()
    saved, calibration, ranges_alone = ranges_of(
        calibration, resolved.calibration.ranges_from, resolved.name if resolved.has_static_ranges else None
    )
    if calibration is not None and is_data(calibration):
        check_exists(calibration)
    loaded = model_file.load(source)
    coder = Path(tokenizer) if tokenizer is not None else tokenizer_beside(source)
    data = Path(calibration) if isinstance(calibration, (str, os.PathLike)) else None
    data = data if data is not None and data.exists() else None
    # A built-in recipe's name may be a folder's too.
    written = None if isinstance(recipe, Recipe) or not Path(recipe).is_file() else Path(recipe)
    sources = [
        *model_file.files_of(source, loaded).values(),
        *(path for path in (data, coder, written, saved.path if saved else None) if path is not None),
    ]
    if dump_ir is not None:
        sources.append(dump_ir)
    place = Path(output) if output is not None else Path(f"{source.stem}-{resolved.name}")
    return Job(source, loaded, resolved, goal, coder, calibration, data, saved, ranges_alone, place, sources)


def is_data(calibration: Calibration) -> bool:
    """Whether there is data, rather than nothing or the demand for some."""
    return calibration is not None and not (isinstance(calibration, str) and calibration == REQUIRED)


def check_memory(forecast: Callable[[int], int], limit: int, planned: Plan) -> None:
    """Refuses what would take more memory.

    Args:
        forecast: the peak in bytes, by the limit that is aimed at.
        limit: bytes.
    Raises:
        ResourceError: with how much would do.
    """
    peak = forecast(limit)
    if peak > limit:
        raise ResourceError(
            f"forecast of peak memory {format_memory(peak)} is above --memory-limit {format_memory(limit)}; "
            f"raise it to {enough_memory(forecast, peak) >> 20}MiB"
            + (", or use w4a16-rtn, which needs no calibration" if planned.needs_data else "")
        )
