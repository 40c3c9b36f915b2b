"""Where the time of a run goes, operator by operator, in the graph that ONNX Runtime makes of the model."""

from pathlib import Path

from qcompiler.bench.contender import Contender
from qcompiler.bench.result import OperatorTime
from qcompiler.bench.workloads import Workload
from qcompiler.targets.profiled_session import profile


def operator_times(contender: Contender, workload: Workload) -> list[OperatorTime]:
    """Of a few runs, profiled; the operator that takes longest is first.

    Raises:
        InputError, ResourceError: as ``profile``.
    """
    session = profile(
        Path(contender.path),
        workload.feed,
        ["CPUExecutionProvider"],
        threads=contender.threads,
        library=contender.library,
    )
    counts: dict[str, list[float]] = {}
    for node in session.nodes:
        counts.setdefault(node.op, []).append(node.microseconds / 1e6)
    total = session.microseconds / 1e6 or 1.0
    found = [OperatorTime(op, len(each), sum(each), sum(each) / total) for op, each in counts.items()]
    return sorted(found, key=lambda operator: -operator.seconds)
