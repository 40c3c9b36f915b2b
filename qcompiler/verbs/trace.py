"""``qcompile trace``: what flows through a model for a given input, layer by layer."""

import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qcompiler.verbs.options import data_options, json_option, traceback_option
from qcompiler.verbs.show import show

if TYPE_CHECKING:
    from qcompiler.report.evaluate import EvaluationData


@click.command(
    "trace", epilog="Example: qcompile trace out --data feed.npz --reference model.onnx --layers mlp"
)
@click.argument("model")
@click.option("--reference", metavar="MODEL", help="Its float model: an SQNR beside each layer.")
@click.option(
    "--layers", metavar="REGEX", default="", help="Those whose name, or whose value's name, holds it."
)
@data_options(windows=1)
@json_option
@traceback_option
def trace_verb(
    model: str, reference: str | None, layers: str, given: "EvaluationData", as_json: bool,
) -> None:  # fmt: skip
    """Range, mean, zeros, saturated codes, NaN and infinity of every layer of MODEL."""
    try:
        re.compile(layers)
    except re.error as error:
        raise click.UsageError(f"--layers {layers!r}: not a regular expression: {error}") from error
    from qcompiler.report.progress import progress_shown
    from qcompiler.report.trace_model import trace
    from qcompiler.report.trace_table import trace_table

    with progress_shown(quiet=as_json) as progress:
        found = trace(Path(model), given, None if reference is None else Path(reference), layers, progress)
    show(asdict(found) if as_json else trace_table(found))
