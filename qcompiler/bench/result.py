"""What a benchmark found; plain dataclasses, whose ``asdict`` is the JSON of ``qcompile bench --json``."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Spread:
    """Seconds of many runs: the median, and what a tenth of them is below and above."""

    median: float
    p10: float
    p90: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Spread":
        """Of at least one run."""
        p10, median, p90 = np.quantile(seconds, (0.1, 0.5, 0.9)).tolist()
        return cls(median, p10, p90)


@dataclass(frozen=True)
class TimesAsFast:
    """How many times as fast the model is as what it is measured against: above 1 it is the faster one.

    Attributes:
        median, lower_quartile, upper_quartile: of the ratios of pairs, each of two runs that followed one another.
        of_medians: the ratio of both medians.
    """

    median: float
    lower_quartile: float
    upper_quartile: float
    of_medians: float

    @classmethod
    def of(cls, model: Sequence[float], against: Sequence[float]) -> "TimesAsFast":
        """From the seconds of both, pair by pair."""
        ratios = np.asarray(against) / np.asarray(model)
        lower, median, upper = np.quantile(ratios, (0.25, 0.5, 0.75)).tolist()
        return cls(median, lower, upper, float(np.median(against) / np.median(model)))


@dataclass(frozen=True)
class OperatorTime:
    """All nodes of one operator in the graph that ONNX Runtime really runs.

    Attributes:
        op: with its domain, unless that is ONNX's own.
        seconds: of all of them in one run, while it was profiled; share: of all nodes' time.
    """

    op: str
    nodes: int
    seconds: float
    share: float


@dataclass(frozen=True)
class Runs:
    """The runs of one model.

    Attributes:
        tokens_per_second: None where it takes no tokens.
        every: seconds of each run, in order.
        operators: where the time went, the most first; empty where that was not asked for.
    """

    seconds: Spread
    tokens_per_second: float | None
    every: list[float] = field(default_factory=list)
    operators: list[OperatorTime] = field(default_factory=list)


@dataclass(frozen=True)
class WorkloadResult:
    """Runs on the same inputs, in turn.

    Attributes:
        name: prefill, decode, batch or data; see ``Workload``.
        tokens: in one run, over all rows of the batch; past: those that the cache holds. None where there are none.
        shapes: of the inputs of the model.
        pairs: how often each was run.
        against, times_as_fast: None where a model is measured alone.
    """

    name: str
    tokens: int | None
    past: int | None
    shapes: dict[str, list[int]]
    pairs: int
    model: Runs
    against: Runs | None
    times_as_fast: TimesAsFast | None


@dataclass(frozen=True)
class Loads:
    """What it took to load one model, each time in a fresh process; bytes are medians of peaks, above what the process held before.

    Attributes:
        seconds: to create a session.
        load_anonymous_bytes, load_resident_bytes: at most while it was created. Resident memory holds the pages of mapped files
            too, which the system can drop and processes share.
        run_anonymous_bytes, run_resident_bytes: at most until the first run of each workload had ended.
    """

    seconds: Spread
    load_anonymous_bytes: int
    load_resident_bytes: int
    run_anonymous_bytes: int
    run_resident_bytes: int


@dataclass(frozen=True)
class LoadResult:
    """Loads of both, in turn; ``pairs`` is how many."""

    pairs: int
    model: Loads
    against: Loads | None
    times_as_fast: TimesAsFast | None


@dataclass(frozen=True)
class Measured:
    """Which model, and how it was run."""

    path: str
    how: str


@dataclass(frozen=True)
class Benchmark:
    """Everything that was measured.

    Attributes:
        threads: of each session; None where it was left to ONNX Runtime.
        onnxruntime, qcompiler: their versions.
        loads: None where none were asked for.
        notes: what a reader should know.
        since: beside an earlier benchmark; None where none was given.
    """

    model: Measured
    against: Measured | None
    threads: int | None
    onnxruntime: str
    workloads: list[WorkloadResult]
    loads: LoadResult | None
    notes: list[str] = field(default_factory=list)
    qcompiler: str = ""
    since: "Since | None" = None


@dataclass(frozen=True)
class Change:
    """One workload then and now.

    Attributes:
        then, now: seconds, median.
        times_as_fast: then / now: above 1 it is faster now.
        apart: whether the middle 80 % of runs then and now do not overlap; else the change may be the machine's.
    """

    name: str
    then: float
    now: float
    times_as_fast: float
    apart: bool


@dataclass(frozen=True)
class Since:
    """An earlier benchmark's JSON beside this one's model; not in turn, so what else the machine did then and now counts.

    Attributes:
        path: of the JSON; onnxruntime, qcompiler: the versions of then.
        changes: of workloads of the same name and shapes.
        left_out: workloads that only one has, or of other shapes.
    """

    path: str
    onnxruntime: str
    qcompiler: str
    changes: list[Change]
    left_out: list[str]
