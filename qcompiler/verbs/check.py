"""``qcompile check``: whether a model computes the same however it is run."""

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from qcompiler.verbs.options import data_options, json_option, traceback_option
from qcompiler.verbs.show import show

if TYPE_CHECKING:
    from qcompiler.report.evaluate import EvaluationData

BROKEN = 3  # as of every promise that is not kept


@click.command("check", epilog="Example: qcompile check model-w8a8-static/model.onnx --data evaluation.npz")
@click.argument("model")
@data_options()
@click.option(
    "--provider", "providers", metavar="NAME", multiple=True,
    help="Of ONNX Runtime, beside the CPU; repeat for more. Default: all that are there.",
)  # fmt: skip
@click.option(
    "--bound", type=float, default=15.0, show_default=True, metavar="DB",
    help="Least SQNR of an output against the unoptimized model; 15 dB is an error of 18 %.",
)  # fmt: skip
@json_option
@traceback_option
def check_verb(
    model: str, given: "EvaluationData", providers: tuple[str, ...], bound: float, as_json: bool,
) -> None:  # fmt: skip
    """Whether MODEL computes the same at every optimization level, with more threads, on every provider.

    Ends with status 3 where it does not, and names the first node where the two ways to run part.
    """
    from qcompiler.report.check_model import check
    from qcompiler.report.check_table import check_table
    from qcompiler.report.progress import progress_shown

    with progress_shown(quiet=as_json) as progress:
        found = check(model, given, providers, bound, progress)
    show({**asdict(found), "holds": found.holds} if as_json else check_table(found))
    if not found.holds:
        raise click.exceptions.Exit(BROKEN)
