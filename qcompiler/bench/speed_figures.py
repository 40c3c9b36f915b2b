"""A benchmark as figures of a report."""

from qcompiler.bench.bench_table import workload_title
from qcompiler.bench.result import Benchmark
from qcompiler.report.model_report import SpeedFigure


def speed_figures(found: Benchmark) -> list[SpeedFigure]:
    """One for each workload; a model that was measured against itself, without our library, is beside no float model."""
    beside_float = found.against is not None and found.against.path != found.model.path
    return [
        SpeedFigure(
            workload_title(workload), 1e3 * workload.model.seconds.median, workload.model.tokens_per_second,
            workload.times_as_fast.median if workload.times_as_fast is not None and beside_float else None,
        )
        for workload in found.workloads
    ]  # fmt: skip
