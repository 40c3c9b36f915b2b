"""``qcompile report``: an HTML page on any model."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qcompiler.verbs.options import data_options, json_option, traceback_option
from qcompiler.verbs.show import show

if TYPE_CHECKING:
    from qcompiler.report.evaluate import EvaluationData


@click.command(
    "report",
    epilog="Example: qcompile report out --reference model.onnx --text t.txt",
)
@click.argument("model")
@click.option("-o", "--output", metavar="FILE", help="The page; default report.html beside MODEL.")
@click.option("--reference", metavar="MODEL", help="The float model it was made from.")
@data_options(windows=4, length=512)
@click.option(
    "--speed", is_flag=True, help="Measure speed too, in turn with the reference where there is one."
)
@click.option("--force", is_flag=True, help="Replace a page that is there and is none of ours.")
@json_option
@traceback_option
def report_verb(
    model: str, output: str | None, reference: str | None, given: "EvaluationData", speed: bool, force: bool, as_json: bool,
) -> None:  # fmt: skip
    """Write what is in MODEL, what its compile did and what it lost as one HTML page.

    MODEL may be a folder that compile wrote, or any ONNX file, whoever quantized it. With --reference and --text or
    --data both models run, and the page shows how far they are apart, and where.
    """
    if (given.text is not None or given.data is not None) and reference is None:
        raise click.UsageError("--text and --data compare with the float model; give it: --reference MODEL")
    from qcompiler.graph.model_file import check_no_model_file, model_path
    from qcompiler.report.evaluate import INFINITE
    from qcompiler.report.model_report import NOT_COMPARED, make_report
    from qcompiler.report.page.page import NAME, check_page, write_page
    from qcompiler.report.progress import progress_shown

    place = Path(output) if output is not None else model_path(model).with_name(NAME)
    check_page(place, force)
    check_no_model_file(place, model, reference)
    with progress_shown(quiet=as_json) as progress:
        found = make_report(
            Path(model),
            None if reference is None else Path(reference),
            None if reference is None else given,
            progress,
        )
        if speed:
            from qcompiler.bench.benchmark import BenchSettings, measure
            from qcompiler.bench.speed_figures import speed_figures

            settings = BenchSettings(loads=0)
            found = replace(found, speed=speed_figures(measure(model, reference, settings, progress)))
        write_page(found, place)
    for note in found.notes:
        if note.startswith((INFINITE, NOT_COMPARED)):
            click.echo(f"warning: {note}", err=True)
    show({"page": str(place), **found.plain()} if as_json else f"{place}")
