"""A compile that loses no more than is allowed (``--max-drop``): the same compile again and again, with more or fewer layers float."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from qcompiler.calibration.feeds import CalibrationFeeds, Progress
from qcompiler.fewest_floats import as_percent, fewest_floats, with_floats
from qcompiler.passes.measured_outputs import find_ends
from qcompiler.passes.quantize_weights import CalibrationRun
from qcompiler.pipeline import rank_by_loss
from qcompiler.recipe import Recipe
from qcompiler.report.compile_report import CompileReport
from qcompiler.report.drop import DropMeter
from qcompiler.report.fallback import Fallback

Compile = Callable[[Recipe, Path], CompileReport]
"""Compiles with a recipe into a folder that is not there yet."""


@dataclass(frozen=True)
class Bounded:
    """What is to be compiled.

    Attributes:
        source: the float model's file.
        model: the same, prepared.
        recipe: with its settings.
        data: complete feeds, on which the drop is measured.
        max_drop: the share that is allowed.
        border_limit: bytes in memory while layers are ranked.
    """

    source: Path
    model: ir.Model
    recipe: Recipe
    data: CalibrationFeeds
    max_drop: float
    border_limit: int
    allow_quantized: bool


def compile_within(
    job: Bounded,
    compile_to: Compile,
    staged: Path,
    work: Path,
    progress: Progress,
    tell: Callable[[str], None],
) -> CompileReport:
    """Fills ``staged`` with the compile that has the fewest layers float; returns its report, with ``fallback``.

    Raises:
        PromiseError: one quantized layer alone is too much.
        QCompilerError: as the compile, the ranking and the measuring do.
    """
    meter = DropMeter(
        job.source, find_ends(job.model, "--max-drop"), job.data.feeds, work, progress
    )  # fails early
    ranked: list[tuple[str, float]] = []

    def rank() -> int:
        run = CalibrationRun(job.data.feeds, work, job.border_limit)
        ranked.extend(rank_by_loss(job.model, job.recipe, job.allow_quantized, run, progress))
        return len(ranked)

    best: list[Path] = []  # the one that holds the bound with the fewest so far

    def attempt(count: int) -> tuple[CompileReport, float]:
        place = work / f"floats-{count}"
        report = compile_to(with_floats(job.recipe, _names(ranked[:count]), job.max_drop), place)
        drop = meter.drop_of(place / "model.onnx")
        tell(f"--max-drop {as_percent(job.max_drop)}: {count} float: {as_percent(drop)} {meter.measure}")
        if drop <= job.max_drop:
            best.append(place)
        for old in [place] if drop > job.max_drop else best[:-1]:
            shutil.rmtree(old, ignore_errors=True)  # disk: one result at a time
        return report, drop

    report, count, tried = fewest_floats(attempt, rank, job.max_drop)
    for path in sorted(best[-1].iterdir()):
        path.rename(staged / path.name)
    fallback = Fallback(
        job.max_drop,
        meter.measure,
        dict(tried)[count],
        _names(ranked[:count]),
        tuple(loss for _, loss in ranked[:count]),
        tuple(tried),
    )
    return replace(report, fallback=fallback)


def _names(ranked: Sequence[tuple[str, float]]) -> tuple[str, ...]:
    return tuple(name for name, _ in ranked)
