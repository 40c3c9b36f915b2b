"""``qcompile report``: an HTML page on any model."""

from dataclasses import replace
from pathlib import Path

import click

from qcompiler.verbs.options import json_option, traceback_option
from qcompiler.verbs.show import show


@click.command(
    "report",
    epilog="Example: qcompile report out --reference model.onnx --text t.txt",
)
@click.argument("model")
@click.option("-o", "--output", metavar="FILE", help="The page; default report.html beside MODEL.")
@click.option("--reference", metavar="MODEL", help="The float model it was made from.")
@click.option("--text", metavar="FILE", help="Measure on this text; for a language model.")
@click.option("--tokenizer", metavar="FILE", help="For text; default tokenizer.json beside the reference.")
@click.option(
    "--data", metavar="PATH", help="Measure on these inputs: .npz, folder of .npz, .jsonl or module:function."
)
@click.option(
    "--windows",
    type=click.IntRange(1),
    default=4,
    show_default=True,
    help="Windows of text, or feeds, at most.",
)
@click.option("--length", type=click.IntRange(2), default=512, show_default=True, help="Tokens in a window.")
@click.option(
    "--speed", is_flag=True, help="Measure speed too, in turn with the reference where there is one."
)
@click.option("--force", is_flag=True, help="Replace a page that is there and is none of ours.")
@json_option
@traceback_option
def report_verb(
    model: str, output: str | None, reference: str | None, text: str | None, tokenizer: str | None, data: str | None,
    windows: int, length: int, speed: bool, force: bool, as_json: bool,
) -> None:  # fmt: skip
    """Write what is in MODEL, what its compile did and what it lost as one HTML page.

    MODEL may be a folder that compile wrote, or any ONNX file, whoever quantized it. With --reference and --text or
    --data both models run, and the page shows how far they are apart, and where.
    """
    if text is not None and data is not None:
        raise click.UsageError("--text and --data exclude each other; give one")
    if (text is not None or data is not None) and reference is None:
        raise click.UsageError("--text and --data compare with the float model; give it: --reference MODEL")
    from qcompiler.graph.model_file import model_path
    from qcompiler.report.evaluate import EvaluationData
    from qcompiler.report.model_report import make_report
    from qcompiler.report.page.page import NAME, check_page, write_page
    from qcompiler.report.progress import progress_shown

    place = Path(output) if output is not None else model_path(model).with_name(NAME)
    check_page(place, force)
    given = EvaluationData(
        None if text is None else Path(text),
        None if tokenizer is None else Path(tokenizer),
        data,
        windows,
        length,
    )
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
    show({"page": str(place), **found.plain()} if as_json else f"{place}")
