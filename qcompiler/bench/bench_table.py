"""A benchmark on the terminal."""

from collections.abc import Iterable, Sequence

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from qcompiler.bench.result import Benchmark, LoadResult, Loads, Since, Spread, TimesAsFast, WorkloadResult
from qcompiler.report.fitted_table import Column, FittedTable, rows_of
from qcompiler.report.sizes import counted, format_rate


def bench_table(found: Benchmark) -> RenderableType:
    """What was measured, times with their spread, memory, then the notes."""
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column(overflow="fold")
    facts.add_row("model", escape(f"{found.model.path} ({found.model.how})"))
    if found.against is not None:
        same = found.against.path == found.model.path
        name = "the same file" if same else found.against.path
        facts.add_row("against", escape(f"{name} ({found.against.how})"))
    threads = "threads as it chooses" if found.threads is None else f"threads: {found.threads}"
    facts.add_row("on", f"ONNX Runtime {found.onnxruntime}, CPU, {threads}")
    if found.against is None:
        counts = [f"{workload.name} {counted(workload.pairs, 'run')}" for workload in found.workloads]
        counts += (
            [] if found.loads is None else [f"load {counted(found.loads.pairs, 'process', 'processes')}"]
        )
        facts.add_row("measured", ", ".join(counts))
    parts: list[RenderableType] = [facts, "", _times(found)]
    if found.loads is not None:
        parts += ["", _memory(found.loads)]
    if found.since is not None:
        parts += ["", _since(found.since)]
    for workload in found.workloads:
        if workload.model.operators:
            parts += ["", _operators(workload)]
    return Group(*parts, *(Text(f"note: {note}") for note in found.notes))


def _times(found: Benchmark) -> FittedTable:
    both = found.against is not None
    columns = ["", "", "median", "p10", "p90", "tokens/s", *(["times as fast"] if both else [])]
    cells: list[tuple[str, ...]] = []
    for workload in found.workloads:
        rows = [("model", workload.model), ("against", workload.against)]
        for place, (who, runs) in enumerate(rows):
            if runs is not None:
                speed = "" if runs.tokens_per_second is None else format_rate(runs.tokens_per_second)
                ratio = [_ratio(workload.times_as_fast) if place == 0 else ""] if both else []
                title = (
                    workload_title(workload)
                    if place == 0
                    else f"{counted(workload.pairs, 'run')} each, in turn"
                )
                cells.append((title, who if both else "", *_spread(runs.seconds), speed, *ratio))
    if found.loads is not None:
        for place, (who, loads) in enumerate(_sides(found.loads)):
            title = (
                "load"
                if place == 0
                else f"{counted(found.loads.pairs, 'process', 'processes')} each, in turn"
            )
            ratio = [_ratio(found.loads.times_as_fast) if place == 0 else ""] if both else []
            cells.append((title, who if both else "", *_spread(loads.seconds), "", *ratio))
    return _table(columns, cells)


def _since(since: Since) -> Group:
    versions = ", ".join(
        f"{name} {version}"
        for name, version in (("ONNX Runtime", since.onnxruntime), ("qcompiler", since.qcompiler))
        if version
    )
    cells = (
        (
            change.name,
            "",
            format_time(change.then),
            format_time(change.now),
            f"{change.times_as_fast:.2f}{'' if change.apart else ' (within the spread)'}",
        )
        for change in since.changes
    )
    table = _table([f"since {since.path}", "", "then", "now", "times as fast"], cells)
    lines = (
        [f"then with {versions}; not in turn: what else the machine did then and now counts"]
        if versions
        else []
    )
    lines += [f"not compared: {', '.join(since.left_out)}"] if since.left_out else []
    return Group(table, *map(Text, lines))


OPERATORS = 12
"""That are shown for each side; the rest is one line."""


def _operators(workload: WorkloadResult) -> FittedTable:
    """Where the time of a run goes, each side by itself."""
    cells: list[tuple[str, ...]] = []
    for who, runs in (("model", workload.model), ("against", workload.against)):
        if runs is None:
            continue
        shown, rest = runs.operators[:OPERATORS], runs.operators[OPERATORS:]
        for operator in shown:
            side = who if workload.against is not None else ""
            time = format_time(operator.seconds)
            cells.append((operator.op, side, str(operator.nodes), time, f"{operator.share:.1%}"))
        if rest:
            seconds, share = sum(each.seconds for each in rest), sum(each.share for each in rest)
            nodes = str(sum(each.nodes for each in rest))
            cells.append((f"{len(rest)} others", "", nodes, format_time(seconds), f"{share:.1%}"))
    return _table([f"{workload.name}, operator", "", "nodes", "time", "share"], cells)


def _memory(loads: LoadResult) -> FittedTable:
    cells: list[tuple[str, ...]] = []
    both = loads.against is not None
    for title, anonymous, resident in (
        ("loading", "load_anonymous_bytes", "load_resident_bytes"),
        ("loading and running", "run_anonymous_bytes", "run_resident_bytes"),
    ):
        for place, (who, side) in enumerate(_sides(loads)):
            sizes = [_megabytes(getattr(side, key)) for key in (anonymous, resident)]
            cells.append((title if place == 0 else "", who if both else "", *sizes))
    return _table(["peak memory", "", "anonymous", "resident"], cells)


def _sides(loads: LoadResult) -> list[tuple[str, Loads]]:
    return [("model", loads.model), *([] if loads.against is None else [("against", loads.against)])]


def _table(titles: Sequence[str], cells: Iterable[Sequence[str]]) -> FittedTable:
    """What, which side, figures: of a narrow screen the ends of a spread go first."""
    columns = [
        Column(title, {"p10": 2, "p90": 2, "tokens/s": 1}.get(title, 0), right=place > 1)
        if place
        else Column(title, 0, "name", 20)
        for place, title in enumerate(titles)
    ]
    return FittedTable(columns, rows_of(cells))


def workload_title(workload: WorkloadResult) -> str:
    """``decode, 1 token after 128``."""
    if workload.tokens is None:
        (name, shape), *more = workload.shapes.items()
        inputs = f"{name} {' x '.join(map(str, shape))}" + (f" and {len(more)} more" if more else "")
        return f"{workload.name}, {inputs}"
    return f"{workload.name}, {counted(workload.tokens, 'token')}" + (
        f" after {workload.past}" if workload.past else ""
    )


def _spread(seconds: Spread) -> list[str]:
    return [format_time(value) for value in (seconds.median, seconds.p10, seconds.p90)]


def _ratio(ratio: TimesAsFast | None) -> str:
    if ratio is None:
        return ""
    return f"{ratio.median:.2f} ({ratio.lower_quartile:.2f} to {ratio.upper_quartile:.2f})"


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB"


def format_time(seconds: float) -> str:
    """Three digits: ``41.3 us``, ``702 ms``, ``1.51 s``."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= 0.9995 * size:
            return _digits(seconds / size, unit)
    return _digits(seconds / 1e-6, "us")


def _digits(value: float, unit: str) -> str:
    return f"{value:.0f} {unit}" if value >= 99.95 else f"{value:.3g} {unit}"
