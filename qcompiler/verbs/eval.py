"""``qcompile eval``: how far a model is from its reference."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qcompiler.verbs.options import data_options, json_option, traceback_option
from qcompiler.verbs.show import show

if TYPE_CHECKING:
    from qcompiler.report.evaluate import EvaluationData


@click.command(
    "eval",
    epilog="Example: qcompile eval out/model.onnx --reference model.onnx --text t.txt",
)
@click.argument("model")
@click.option("--reference", required=True, metavar="MODEL", help="The float model it was made from.")
@data_options(windows=8, length=512)
@click.option("--skip-chars", type=click.IntRange(0), default=0, help="Start at this character of the text.")
@click.option(
    "--offset",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.0,
    metavar="FRACTION",
    help="Start at this fraction of the text.",
)
@json_option
@traceback_option
def eval_verb(
    model: str, reference: str, given: "EvaluationData", skip_chars: int, offset: float, as_json: bool,
) -> None:  # fmt: skip
    """How far MODEL is from its reference: perplexity, KL, top-1 agreement, SQNR."""
    from qcompiler.report.evaluate import evaluate
    from qcompiler.report.evaluation_table import evaluation_table
    from qcompiler.report.progress import progress_shown

    given = replace(given, skip_chars=skip_chars, offset=offset)
    with progress_shown(quiet=as_json) as progress:
        found = evaluate(Path(model), Path(reference), given, progress)
    show(asdict(found) if as_json else evaluation_table(found))
