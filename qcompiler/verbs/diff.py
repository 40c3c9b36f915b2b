"""``qcompile diff``: two models side by side, graph and numbers."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from qcompiler.verbs.options import data_options, json_option, traceback_option
from qcompiler.verbs.show import show

if TYPE_CHECKING:
    from qcompiler.report.evaluate import EvaluationData


@click.command("diff", epilog="Example: qcompile diff model.onnx model-w4a16-awq/model.onnx --text t.txt")
@click.argument("reference")
@click.argument("model")
@data_options()
@click.option("--worst", type=click.IntRange(1), default=10, show_default=True, help="Layers in the table.")
@click.option("--speed", is_flag=True, help="Measure how fast both run too, in turn.")
@json_option
@traceback_option
def diff_verb(
    reference: str, model: str, given: "EvaluationData", worst: int, speed: bool, as_json: bool,
) -> None:  # fmt: skip
    """What differs between REFERENCE and MODEL: nodes, the numbers of every layer, size.

    MODEL is most often what REFERENCE was quantized to, by qcompiler or by another tool.
    """
    from qcompiler.report.diff_models import diff
    from qcompiler.report.diff_table import diff_table
    from qcompiler.report.progress import progress_shown

    timed: Any = None
    with progress_shown(quiet=as_json) as progress:
        found = diff(reference, model, given, progress)
        if speed:
            from qcompiler.bench.benchmark import BenchSettings, measure

            timed = measure(model, reference, BenchSettings(loads=0), progress)
    if as_json:
        show({**asdict(found), "speed": None if timed is None else asdict(timed)})
        return
    show(diff_table(found, worst))
    if timed is not None:
        from qcompiler.bench.bench_table import bench_table

        show("")
        show(bench_table(timed))
