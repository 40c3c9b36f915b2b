"""Measure a model, alone or in turn with another: speed of each workload in this process, loads in fresh ones."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import onnxruntime as ort

from qcompiler.bench.alternate import WARM_UP, alternate, rounds_within
from qcompiler.bench.contender import Contender, timed_run
from qcompiler.bench.loading import measure_loads
from qcompiler.bench.operator_times import operator_times
from qcompiler.bench.pairing import Side, pair_up
from qcompiler.bench.result import Benchmark, Runs, Spread, TimesAsFast, WorkloadResult
from qcompiler.bench.workloads import Sizes, Workload, check_dims, make_workloads
from qcompiler.errors import InputError
from qcompiler.graph.session_errors import SESSION_ERRORS
from qcompiler.report.manifest import installed_version

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class BenchSettings:
    """How to measure.

    Attributes:
        sizes: of the inputs.
        threads: of each session; None leaves it to ONNX Runtime, which takes one for each core.
        runs: of each model on each workload; None for as many as fit ``seconds``, 10 to 1000.
        seconds: about, for each workload; of both models together.
        loads: of each model, in fresh processes; 0 for none.
        operators: whether some more runs are profiled, operator by operator.
    """

    sizes: Sizes = field(default_factory=Sizes)
    threads: int | None = None
    runs: int | None = None
    seconds: float = 10.0
    loads: int = 5
    operators: bool = False


def measure(
    model: str | os.PathLike[str],
    against: str | os.PathLike[str] | None = None,
    settings: BenchSettings | None = None,
    progress: Progress | None = None,
) -> Benchmark:
    """Measure ``model``, in turn with ``against`` or, if it holds operators of ours, with itself without our library.

    Args:
        model: ONNX file, or a folder with a model.onnx; likewise ``against``.
        progress: called with (what is at hand, done, of how many).

    Raises:
        InputError: a file that is no model, inputs that cannot be made up, or that ONNX Runtime cannot run on.
        ResourceError: our library is not here, or memory for a load.
    """
    settings = settings or BenchSettings()
    tell = progress or (lambda what, done, total: None)
    sides, notes = pair_up(model, against, settings.threads)
    check_dims(settings.sizes.dims, [side.model for side in sides])
    made = [make_workloads(side.contender.path, side.model, settings.sizes) for side in sides]
    workloads = _common(sides, made, notes)
    notes += _unused(settings.sizes, workloads[0])
    results = _measure_runs([side.contender for side in sides], workloads, settings, tell)
    if settings.operators:
        results = _with_operators([side.contender for side in sides], workloads, results, tell)
    loads = None
    if settings.loads:
        loads = measure_loads(
            [side.contender for side in sides], workloads, settings.loads, partial(tell, "loading")
        )
    other = sides[1].measured if len(sides) > 1 else None
    return Benchmark(
        sides[0].measured,
        other,
        settings.threads,
        ort.__version__,
        results,
        loads,
        notes,
        installed_version("qcompiler") or "",
    )


def _measure_runs(
    contenders: Sequence[Contender],
    workloads: Sequence[Sequence[Workload]],
    settings: BenchSettings,
    tell: Progress,
) -> list[WorkloadResult]:
    """Sessions of all live side by side here, and are gone on return."""
    sessions = []
    for place, contender in enumerate(contenders):
        tell("opening", place, len(contenders))
        sessions.append(contender.open())
    results = []
    for pair in zip(*workloads, strict=True):
        takes = [_checked_run(*each) for each in zip(contenders, sessions, pair, strict=True)]
        name = pair[0].name
        warm = alternate(takes, WARM_UP, partial(tell, f"warming up {name}"))
        rounds = settings.runs or rounds_within(settings.seconds, sum(each[-1] for each in warm))
        times = alternate(takes, rounds, partial(tell, name))
        results.append(_result(pair, times))
    return results


def _with_operators(
    contenders: Sequence[Contender],
    workloads: Sequence[Sequence[Workload]],
    results: Sequence[WorkloadResult],
    tell: Progress,
) -> list[WorkloadResult]:
    """The results with where the time goes; profiling slows runs, so these are others than the timed ones."""
    found = []
    for place, (result, pair) in enumerate(zip(results, zip(*workloads, strict=True), strict=True)):
        tell(f"profiling {result.name}", place, len(results))
        ours, *theirs = (operator_times(*each) for each in zip(contenders, pair, strict=True))
        model = replace(result.model, operators=ours)
        against = result.against and replace(result.against, operators=theirs[0])
        found.append(replace(result, model=model, against=against))
    return found


def _checked_run(
    contender: Contender, session: ort.InferenceSession, workload: Workload
) -> Callable[[], float]:
    """``timed_run``, once it has run; errors say what could be given instead."""
    try:
        run = timed_run(session, workload.feed)
        run()
    except SESSION_ERRORS as error:
        said = " ".join(str(error).split())
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in workload.feed.items())
        if len(shapes) > _LONG:
            shapes = shapes[:_LONG] + " ..."
        remedy = (
            "give data that fits" if workload.name == "data"
            else "give other sizes (--tokens, --past, --dim NAME=SIZE), or its inputs by --data FILE.npz"
        )  # fmt: skip
        raise InputError(
            f"{contender.path}: ONNX Runtime cannot run it on {workload.name} inputs {shapes}: {said}; {remedy}"
        ) from error
    return run


_LONG = 200  # characters of a list of shapes; caches have dozens


def _result(pair: Sequence[Workload], times: Sequence[Sequence[float]]) -> WorkloadResult:
    first = pair[0]
    runs = [_runs(workload.tokens, seconds) for workload, seconds in zip(pair, times, strict=True)]
    shapes = {name: list(array.shape) for name, array in first.feed.items()}
    both = len(times) > 1
    return WorkloadResult(
        first.name, first.tokens, first.past, shapes, len(times[0]), runs[0], runs[1] if both else None,
        TimesAsFast.of(times[0], times[1]) if both else None,
    )  # fmt: skip


def _runs(tokens: int | None, seconds: Sequence[float]) -> Runs:
    spread = Spread.of(seconds)
    return Runs(spread, None if tokens is None else tokens / spread.median, list(seconds))


def _common(sides: Sequence[Side], made: list[list[Workload]], notes: list[str]) -> list[list[Workload]]:
    """Workloads that all sides have, which must be of the same size.

    Raises:
        InputError: there are none, or their sizes differ.
    """
    if len(made) == 1:
        return made
    ours, theirs = ({workload.name: workload for workload in own} for own in made)
    names = [name for name in ours if name in theirs]
    paths = [side.contender.path for side in sides]
    if not names:
        raise InputError(
            f"{paths[0]} takes {', '.join(ours)} and {paths[1]} {', '.join(theirs)}: nothing that both can run; measure each alone"
        )
    for name in names:
        for what in ("tokens", "past"):
            counts = [getattr(own[name], what) for own in (ours, theirs)]
            if None not in counts and counts[0] != counts[1]:
                raise InputError(
                    f"{name}: {paths[0]} runs on {counts[0]} {what} and {paths[1]} on {counts[1]}; "
                    f"give --{what}, or --dim for the batch, so that they are equal"
                )
        _check_shapes(name, paths, ours[name], theirs[name])
    left = [name for name in (*ours, *theirs) if name not in names]
    if left:
        notes.append(f"only one of the models runs {', '.join(left)}, which was not measured")
    return [[own[name] for name in names] for own in (ours, theirs)]


def _check_shapes(name: str, paths: Sequence[str], first: Workload, second: Workload) -> None:
    """Inputs of one name, where a model takes no tokens, have one shape in both."""
    if first.tokens is not None:
        return
    for key in first.feed.keys() & second.feed.keys():
        shapes = [list(workload.feed[key].shape) for workload in (first, second)]
        if shapes[0] != shapes[1]:
            raise InputError(
                f"{name}: input {key} is {shapes[0]} in {paths[0]} and {shapes[1]} in {paths[1]}; give sizes by --dim NAME=SIZE"
            )


def _unused(sizes: Sizes, workloads: Sequence[Workload]) -> list[str]:
    """Notes on what was asked for and has no effect."""
    names = {workload.name for workload in workloads}
    notes = []
    if sizes.tokens is not None and "prefill" not in names:
        notes.append(f"--tokens {sizes.tokens} has no effect: nothing here takes as many tokens as one likes")
    if sizes.past is not None and "decode" not in names:
        notes.append(
            f"--past {sizes.past} has no effect: nothing here takes keys and values of earlier tokens"
        )
    if sizes.dims and "data" in names:
        notes.append("--dim has no effect: the data has its own sizes")
    return notes
