"""compile(): from an exported ONNX file to a folder with the quantized model, in one straight line."""

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from qcompiler.calibration.data import tokenizer_beside
from qcompiler.calibration.feeds import CalibrationFeeds, make_feeds
from qcompiler.errors import ResourceError
from qcompiler.graph import model_file
from qcompiler.graph.weight_store import WeightStore
from qcompiler.output_folder import output_folder, write_json
from qcompiler.pass_manager import Dump, Instrument, Verify, check_model, check_stop, run_passes
from qcompiler.passes.quantize_weights import CalibrationRun
from qcompiler.pipeline import pass_names, plan_weights, preparing_passes, quantizing_passes
from qcompiler.recipe import Recipe
from qcompiler.recipe.plan import Plan
from qcompiler.report.compile_report import CompileReport
from qcompiler.report.manifest import make_manifest
from qcompiler.report.memory import PeakMemory
from qcompiler.targets import find_target

Feeds = Iterable[Mapping[str, npt.NDArray[Any]]]
Progress = Callable[[str, int, int], None]
DEFAULT_MEMORY = 4 << 30


@dataclass(frozen=True)
class Options:
    """How a compile runs, apart from what it makes.

    Attributes:
        memory_limit: bytes of anonymous memory to aim at; a forecast above it is refused.
        dump_ir: folder for the model after each pass.
        verify_each: check the model after each pass.
        stop_after: name of the last pass to run; the model as it then is is written.
    """

    seed: int = 0
    memory_limit: int = DEFAULT_MEMORY
    force: bool = False
    dump_ir: Path | None = None
    verify_each: bool = False
    stop_after: str | None = None


@dataclass(frozen=True)
class CompiledModel:
    """A finished compile."""

    folder: Path
    report: CompileReport

    @property
    def path(self) -> Path:
        """The ONNX file."""
        return self.folder / model_file.MODEL_NAME


def plan(
    model: str | os.PathLike[str],
    recipe: str | os.PathLike[str] | Recipe,
    settings: Iterable[str] = (),
    target: str = "ort",
) -> Plan:
    """What ``compile`` would do to each weight (``--dry-run``); nothing is written.

    Raises:
        QCompilerError: as ``compile``.
    """
    resolved = (recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)).with_settings(settings)
    loaded = model_file.load(model)
    run_passes(loaded, preparing_passes(resolved), [])
    made = plan_weights(loaded, resolved)
    made.check(find_target(target).supports)
    return made


def compile(
    model: str | os.PathLike[str],
    recipe: str | os.PathLike[str] | Recipe = "w4a16-awq",
    *,
    calibration: str | os.PathLike[str] | Feeds | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    output: str | os.PathLike[str] | None = None,
    target: str = "ort",
    settings: Sequence[str] = (),
    options: Options | None = None,
    progress: Progress | None = None,
) -> CompiledModel:
    """Quantize a model.

    Args:
        model: ONNX file, with or without external data; never written to.
        recipe: a built-in name, a YAML file or a Recipe; ``settings`` are its ``--set KEY=VALUE`` lines.
        calibration: text, arrays or an iterable of feeds (see docs/calibration.md); None samples data from the model.
        tokenizer: tokenizer.json, for text; default: the one in the model's folder.
        output: folder; default ``./<stem>-<recipe>``.
        progress: called with (what is at hand, done, of how many).
    Raises:
        QCompilerError: its kind and one-line message say what is wrong; nothing is left half written.
    """
    start = time.perf_counter()
    options = options or Options()
    progress = progress or (lambda what, done, total: None)
    source = Path(model)
    resolved = (recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)).with_settings(settings)
    goal = find_target(target)
    check_stop(options.stop_after, pass_names(resolved, goal))
    place = Path(output) if output is not None else Path(f"{source.stem}-{resolved.name}")
    loaded = model_file.load(source)
    with (
        PeakMemory() as memory,
        output_folder(place, options.force, [source]) as (staged, work),
        WeightStore(work) as store,
    ):
        instruments: list[Instrument] = [Dump(options.dump_ir)] if options.dump_ir is not None else []
        instruments += [Verify(loaded)] if options.verify_each else []
        preparing = preparing_passes(resolved)
        records = run_passes(loaded, preparing, instruments, options.stop_after)
        stopped = options.stop_after in [entry.name for entry in preparing]
        planned = plan_weights(loaded, resolved)
        planned.check(goal.supports)
        _check_memory(planned, options.memory_limit)
        data = (
            _feeds(
                loaded, calibration, tokenizer or tokenizer_beside(source), resolved, options.seed, progress
            )
            if planned.needs_data and not stopped
            else None
        )
        run = None if data is None else CalibrationRun(data.feeds, work, options.memory_limit // 4)
        quantizing = quantizing_passes(planned, resolved, goal, store, run, progress)
        if not stopped:
            records += run_passes(loaded, quantizing.passes, instruments, options.stop_after)
        check_model(loaded, records[-1].name)
        progress("saving", len(planned.quantized), len(planned.quantized))
        saved = model_file.save(loaded, staged)
        running = goal.verify(saved, quantizing.passes) if options.stop_after is None else {}
        (staged / "recipe.yaml").write_text(resolved.to_yaml(), encoding="utf-8")
        write_json(
            staged / "manifest.json", make_manifest(source, saved, resolved, options.seed, goal.name, data)
        )
        report = CompileReport(
            model=source.name, recipe=resolved.name, target=goal.name,
            layers=[asdict(layer) for layer in quantizing.quantize.results],
            skipped=[asdict(skipped) for skipped in planned.skipped],
            passes=[asdict(record) for record in records], running=running,
            calibration={} if data is None else data.description, warnings=[] if data is None else data.warnings,
            float_bytes=_size(source), bytes=_size(saved), seconds=time.perf_counter() - start,
            peak_anonymous_bytes=memory.peak_bytes,
        )  # fmt: skip
        report.write(staged / "report.json")
    return CompiledModel(place, report)


def _feeds(
    loaded: ir.Model,
    calibration: Any,
    tokenizer: str | os.PathLike[str] | None,
    recipe: Recipe,
    seed: int,
    progress: Progress,
) -> CalibrationFeeds:
    return make_feeds(
        loaded, calibration, tokenizer, recipe.calibration.samples, recipe.calibration.length, seed, progress
    )


def _check_memory(planned: Plan, limit: int) -> None:
    forecast = planned.forecast_peak_bytes()
    if forecast > limit:
        raise ResourceError(
            f"forecast of peak memory {forecast / 2**30:.1f} GiB is above --memory-limit {limit / 2**30:.1f} GiB; "
            "raise it, or use w4a16-rtn, which needs no calibration"
        )


def _size(path: Path) -> int:
    """Bytes of a model with its data files."""
    return sum(file.stat().st_size for file in model_file.files_of(path).values())
