"""compile(): from an exported ONNX file to a folder with the quantized model, in one straight line."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from qcompiler.calibration.feeds import CalibrationFeeds, make_feeds
from qcompiler.calibration.range_source import RangeSource
from qcompiler.calibration.saved_ranges import NAME as RANGES
from qcompiler.errors import CalibrationError, RecipeError, ResourceError, ResumeError
from qcompiler.graph import model_file
from qcompiler.graph.checkpoints import Checkpoints, has_checkpoints
from qcompiler.graph.disk import writing
from qcompiler.graph.model_fingerprint import model_fingerprint
from qcompiler.graph.weight_store import WeightStore
from qcompiler.job import Calibration, Job, check_memory, look_up
from qcompiler.output_folder import MANIFEST, check_place, output_folder, work_folder, write_json
from qcompiler.pass_manager import Dump, Instrument, Verify, check_model, run_passes
from qcompiler.pass_results import layer_results, left_plain, mixed_result, rotation_result
from qcompiler.passes.quantize_weights import CalibrationRun
from qcompiler.pipeline import (
    Materials,
    preparing_passes,
    quantizing_passes,
)
from qcompiler.recipe import Recipe
from qcompiler.recipe.plan import Plan
from qcompiler.recipe.setting import Setting
from qcompiler.report.compile_report import CompileReport
from qcompiler.report.compiled_model import CompiledModel
from qcompiler.report.compiled_page import write_compiled_page
from qcompiler.report.manifest import make_fingerprint, make_manifest
from qcompiler.report.memory import PeakMemory
from qcompiler.report.memory_forecast import border_limit
from qcompiler.report.sizes import counted
from qcompiler.runtime import register
from qcompiler.targets import Target, find_target
from qcompiler.targets.running_nodes import running_quantized
from qcompiler.within_drop import Bounded, compile_within

__all__ = ["CompiledModel", "DryRun", "Options", "compile", "dry_run"]

Progress = Callable[[str, int, int], None]
DEFAULT_MEMORY = 4 << 30
INVENTED_RANGES = (
    "ranges of activations come of invented inputs, and real ones outside of them are clipped; "
    "give --calib data like the model's own"
)
UNCORRECTED = (
    "biases are not corrected for what rounding does to them, which needs data beside the ranges; "
    "give --calib DATA and --set calib.ranges_from=FILE, or --set calib.correct_biases=analytical or none"
)


@dataclass(frozen=True)
class Options:
    """How a compile runs, apart from what it makes.

    Attributes:
        memory_limit: bytes of anonymous memory to aim at; a forecast above it is refused.
        dump_ir: folder for the model after each pass.
        verify_each: check the model after each pass.
        stop_after: name of the last pass to run; the model as it then is is written.
        resume: go on from what an earlier run of the same compile had finished.
        allow_quantized: what is quantized already stays as it is; else it is an error.
        max_drop: the share, from 0 to below 1, of the float model's first classes on the calibration data that may differ
            (see ``report/drop``); the layers that hurt most stay float until it holds. None: no bound.
        instruments: watch the passes from outside.
    """

    seed: int = 0
    memory_limit: int = DEFAULT_MEMORY
    force: bool = False
    dump_ir: Path | None = None
    verify_each: bool = False
    stop_after: str | None = None
    resume: bool = False
    allow_quantized: bool = False
    max_drop: float | None = None
    instruments: tuple[Instrument, ...] = ()


@dataclass(frozen=True)
class DryRun:
    """What ``compile`` would do.

    Attributes:
        source: the model file.
        plan: what becomes of each product.
        peak_bytes: forecast of anonymous memory.
        refusals: why a compile would be refused all the same, one line each.
    """

    source: Path
    plan: Plan
    peak_bytes: int
    refusals: list[str]


def dry_run(
    model: str | os.PathLike[str],
    recipe: str | os.PathLike[str] | Recipe = "w4a16-awq",
    *,
    calibration: Calibration = None,
    tokenizer: str | os.PathLike[str] | None = None,
    output: str | os.PathLike[str] | None = None,
    target: str = "ort",
    function_body: bool = True,
    mapped_weights: bool = False,
    settings: Sequence[str | Setting] = (),
    options: Options | None = None,
) -> DryRun:
    """What ``compile`` would do to each weight (``--dry-run``); nothing is written.

    Raises:
        QCompilerError: as ``compile``, but for what ``refusals`` says.
    """
    options = options or Options()
    goal = find_target(target, function_body, mapped_weights)
    job = look_up(
        model, recipe, settings, goal, output, calibration, tokenizer, options.stop_after, options.dump_ir
    )
    run_passes(job.model, preparing_passes(job.recipe), [])
    planned = job.plan(options.allow_quantized)
    forecast = job.forecast(planned)
    peak = forecast(options.memory_limit)
    refusals = []
    try:
        check_place(job.place, options.force, job.sources)
    except ResourceError as refusal:
        refusals.append(str(refusal))
    try:
        check_memory(forecast, options.memory_limit, planned)
    except ResourceError as refusal:
        refusals.append(str(refusal))
    return DryRun(job.source, planned, peak, refusals)


def compile(
    model: str | os.PathLike[str],
    recipe: str | os.PathLike[str] | Recipe = "w4a16-awq",
    *,
    calibration: Calibration = None,
    tokenizer: str | os.PathLike[str] | None = None,
    output: str | os.PathLike[str] | None = None,
    target: str = "ort",
    function_body: bool = True,
    mapped_weights: bool = False,
    settings: Sequence[str | Setting] = (),
    options: Options | None = None,
    progress: Progress | None = None,
    tell: Callable[[str], None] | None = None,
) -> CompiledModel:
    """Quantize a model.

    Args:
        model: ONNX file, with or without external data, or a folder with a model.onnx; never written to.
        recipe: a built-in name, a YAML file or a Recipe; ``settings`` are its ``--set KEY=VALUE`` lines.
        calibration: text, arrays or an iterable of feeds (see docs/calibration.md); None samples data from the model.
        tokenizer: tokenizer.json, for text; default: the one in the model's folder.
        output: folder; default ``./<stem>-<recipe>``.
        target: where it is to run; ``function_body=False`` (``--no-function-body``) leaves out what runs in place of our
            operators where our library is not registered, and ``mapped_weights=True`` (``--mapped-weights``) does so and
            writes weights in the order of our kernels, which use them where the file is mapped.
        progress: called with (what is at hand, done, of how many).
        tell: called with a line on what becomes of an unfinished compile to the same place.
    Raises:
        QCompilerError: its kind and one-line message say what is wrong; nothing is left half written, and where
            a note of the error says so, what is finished is kept for ``resume``.
    """
    start = time.perf_counter()
    options = options or Options()
    progress = progress or (lambda what, done, total: None)
    tell = tell or (lambda line: None)
    goal = find_target(target, function_body, mapped_weights)
    job = look_up(
        model, recipe, settings, goal, output, calibration, tokenizer, options.stop_after, options.dump_ir
    )
    if options.max_drop is not None:
        return _compile_within(
            job, options.max_drop, calibration, function_body, mapped_weights, options, progress, tell
        )
    loaded, resolved = job.model, job.recipe
    unfinished = has_checkpoints(work_folder(job.place))
    with (
        PeakMemory() as memory,
        output_folder(job.place, options.force, job.sources, options.resume) as (staged, work),
        _resumable(work),
        WeightStore(work, fresh=not has_checkpoints(work)) as store,
    ):
        if unfinished and not options.resume:
            tell(f"{work}: of an unfinished compile, replaced; --resume could have gone on from there")
        if options.resume and not unfinished:
            tell(f"{work}: nothing to resume; starting from the beginning")
        instruments = _instruments(loaded, options)
        preparing = preparing_passes(resolved)
        records = run_passes(loaded, preparing, instruments, options.stop_after)
        stopped = options.stop_after in [entry.name for entry in preparing]
        prepared = model_fingerprint(loaded) if resolved.has_static_ranges and not stopped else ""
        if job.saved is not None and not stopped:
            job.saved.require_model(prepared)
        planned = Plan([], []) if stopped else job.checked_plan(options.allow_quantized, options.memory_limit)
        data = None
        if planned.needs_data:
            samples, length = resolved.calibration.samples, resolved.calibration.length
            data = make_feeds(
                loaded, job.calibration, job.tokenizer, samples, length, options.seed, progress, work
            )
        run = None if data is None else CalibrationRun(data.feeds, work, border_limit(options.memory_limit))
        fingerprint = make_fingerprint(
            job.source, resolved, options.seed, job.target.name, function_body, mapped_weights, data,
            None if job.saved is None else job.saved.path,
        )  # fmt: skip
        checkpoints = Checkpoints(work, store, fingerprint)
        resumed = sum(len(part.get("weights", ())) for part in checkpoints.found)
        if resumed:
            tell(f"{work}: going on; {resumed} of {len(planned.quantized)} weights are finished")
        ranges = RangeSource(
            None if data is None else data.feeds, resolved.calibration.ranges, job.saved, progress
        )
        materials = Materials(
            planned, store, run, progress, resolved.mixed, job.target.supports, job.target.remark, checkpoints, resolved.transform,
            options.seed, resolved.calibration, range_source=ranges,
            activations=resolved.activation_settings,
        )  # fmt: skip
        quantizing = quantizing_passes(materials, resolved, job.target)
        if not stopped:
            records += run_passes(loaded, quantizing, instruments, options.stop_after)
        check_model(loaded, records[-1].name)
        progress("saving", len(planned.quantized), len(planned.quantized))
        saved = model_file.save(loaded, staged)
        running = job.target.verify(saved, quantizing) if options.stop_after is None else {}
        kept, floating = _kept(saved, planned, goal, options)
        running |= {form: running.get(form, 0) + count for form, count in kept.items()}
        manifest = make_manifest(fingerprint, saved)
        given = job.has_data
        unused = given and not planned.needs_data and not stopped
        invented = resolved.has_static_ranges and data is not None and not given and job.saved is None
        measured = resolved.calibration.correct_biases == "measured"
        uncorrected = (
            measured
            and job.saved is not None
            and planned.has_static_convolutions
            and not planned.corrects_biases
        )
        report = CompileReport.of(
            job.source, saved, resolved, job.target.name, planned, layer_results(quantizing), records, running, data,
            [*([_unused(resolved)] if unused else []),
             *([INVENTED_RANGES] if invented else []),
             *([UNCORRECTED] if uncorrected else []), *floating, *left_plain(quantizing)],
            time.perf_counter() - start, memory.peak_bytes, mixed_result(quantizing), resumed,
            rotation_result(quantizing), None if job.saved is None else job.saved.path,
        )  # fmt: skip
        with writing(staged):
            (staged / "recipe.yaml").write_text(resolved.to_yaml(), encoding="utf-8")
            write_json(staged / MANIFEST, manifest)
            report.write(staged / "report.json")
            ranges.save(staged / RANGES, _words(data), prepared)
        write_compiled_page(job.source, staged, job.place, tell)
    return CompiledModel(job.place, report)


def _compile_within(
    job: Job,
    max_drop: float,
    calibration: Calibration,
    function_body: bool,
    mapped_weights: bool,
    options: Options,
    progress: Progress,
    tell: Callable[[str], None],
) -> CompiledModel:
    """``compile`` with the fewest layers float that hold ``max_drop``; ``calibration`` is as the user gave it."""
    _check_bounded(job, max_drop, options)
    start = time.perf_counter()
    once = replace(options, max_drop=None, force=False)
    with (
        PeakMemory() as memory,
        output_folder(job.place, options.force, job.sources) as (staged, work),
    ):
        run_passes(job.model, preparing_passes(job.recipe), [])
        settings = job.recipe.calibration
        data = make_feeds(
            job.model, job.calibration, job.tokenizer, settings.samples, settings.length, options.seed, progress, work
        )  # fmt: skip
        # What gives its feeds once gives them here.
        again = calibration if isinstance(calibration, (str, os.PathLike)) else data.feeds

        def compile_to(recipe: Recipe, place: Path) -> CompileReport:
            made = compile(
                job.source, recipe, calibration=again, tokenizer=job.tokenizer, output=place, target=job.target.name,
                function_body=function_body, mapped_weights=mapped_weights, options=once, progress=progress, tell=tell,
            )  # fmt: skip
            return made.report

        bounded = Bounded(
            job.source, job.model, job.recipe, data, max_drop, border_limit(options.memory_limit), options.allow_quantized
        )  # fmt: skip
        found = compile_within(bounded, compile_to, staged, work, progress, tell)
        report = replace(
            found,
            seconds=time.perf_counter() - start,
            peak_anonymous_bytes=memory.peak_bytes,
            warnings=[
                line for line in found.warnings if line != _unused(job.recipe)
            ],  # the drop was measured on it
        )
        with writing(staged):
            report.write(staged / "report.json")
        write_compiled_page(job.source, staged, job.place, tell)
    return CompiledModel(job.place, report)


def _check_bounded(job: Job, max_drop: float, options: Options) -> None:
    """Refuses what a bound on the drop cannot be held with.

    Raises:
        RecipeError: no share, or an option that is for one compile alone.
        CalibrationError: there are no data to measure on.
    """
    if not 0 <= max_drop < 1:
        raise RecipeError(f"max_drop: {max_drop!r}; give a share from 0 to below 1, 0.01")
    single = {"--resume": options.resume, "--stop-after": options.stop_after, "--dump-ir": options.dump_ir}
    given = [option for option, value in single.items() if value]
    if given:
        raise RecipeError(
            f"--max-drop compiles several times, and {given[0]} is for one compile; drop one of them"
        )
    if not job.has_data:
        raise CalibrationError(
            "--max-drop: is measured on calibration data, and none was given; give --calib DATA"
            + (" (and --set calib.ranges_from=FILE for ranges of a file)" if job.ranges_alone else "")
        )


def _unused(recipe: Recipe) -> str:
    return f"calibration data is not used: {recipe.name} needs none"


def _kept(saved: Path, planned: Plan, goal: Target, options: Options) -> tuple[dict[str, int], list[str]]:
    """How many products that came quantized run as which integer operator, and a line on those that multiply floats all the same."""
    if not options.allow_quantized or options.stop_after is not None:
        return {}, []
    ours = {use.node.name or "" for one in planned.quantized for use in one.weight.uses}
    prepare = register if goal.name == "qcompiler" else None
    running, floating = running_quantized(saved, ours, prepare)
    if not floating:
        return running, []
    what = (
        f"{counted(len(floating), 'product')} that came quantized multiply floats ({', '.join(floating[:3])}"
    )
    return running, [
        f"{what}{', ..' if floating[3:] else ''}): ONNX Runtime has no integer kernel for their QuantizeLinear and DequantizeLinear "
        "(it wants uint8 activations, int8 weights, and the result rounded too)"
    ]


@contextmanager
def _resumable(work: Path) -> Iterator[None]:
    """Has whatever ends a compile say that it can go on, where it can."""
    try:
        yield
    except ResumeError:
        raise  # says what to do itself
    except BaseException as error:
        if has_checkpoints(work):
            error.add_note(f"what is finished is in {work}: --resume goes on from there")
        raise


def _words(data: CalibrationFeeds | None) -> str:
    """What ranges were found on, for whoever reads their file."""
    return "" if data is None else f"{counted(len(data.feeds), 'feed')} of {data.description['source']}"


def _instruments(model: ir.Model, options: Options) -> list[Instrument]:
    dumps: list[Instrument] = [Dump(options.dump_ir)] if options.dump_ir is not None else []
    checks: list[Instrument] = [Verify(model)] if options.verify_each else []
    return [*dumps, *checks, *options.instruments]
