"""How the runs of a benchmark spread: for each workload the share of runs that took at most so long, as SVG."""

from pathlib import Path

from qcompiler.bench.result import Benchmark
from qcompiler.graph.disk import writing
from qcompiler.report import figures


def write_plot(found: Benchmark, path: Path) -> None:
    """Into a file.

    Raises:
        ResourceError: it cannot be written.
    """
    with writing(path):
        path.write_text(bench_plot(found), encoding="utf-8")


def bench_plot(found: Benchmark) -> str:
    """One panel for each workload, one line for each model."""
    panels = []
    for workload in found.workloads:
        sides = [("model", workload.model), ("against", workload.against)]
        lines = [(who, [1e3 * seconds for seconds in runs.every]) for who, runs in sides if runs is not None]
        panels.append(figures.Panel(workload.name, lines))
    return figures.shares_within(panels, "ms", "share of runs", "file")
