"""``qcompile bisect``: the first pass, and in it the first layer, where a quantized model parts from the float one."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qcompiler.option_values import MemorySize
from qcompiler.verbs.options import data_options, json_option, traceback_option
from qcompiler.verbs.show import show

if TYPE_CHECKING:
    from qcompiler.report.evaluate import EvaluationData


@click.command("bisect", epilog="Example: qcompile bisect model.onnx --recipe mine.yaml --calib text.txt")
@click.argument("model")
@click.argument("other", required=False)
@click.option("--recipe", help="Compile with it and look after every pass; in place of OTHER.")
@click.option(
    "--calib",
    metavar="PATH",
    help="As compile takes it; parity is measured on it too, unless told otherwise.",
)
@click.option("--target", default="ort", show_default=True, help="As compile takes it.")
@click.option(
    "--set", "settings", metavar="KEY=VALUE", multiple=True, help="Change the recipe. Repeat for more."
)
@click.option("--allow-quantized", is_flag=True, help="As compile takes it.")
@click.option(
    "--memory-limit", type=MemorySize(), default="4GiB", show_default=True, help="As compile takes it."
)
@click.option(
    "--min-sqnr",
    type=float,
    metavar="DB",
    help="What counts as alike; default 10 dB: a tenth of the power is noise.",
)
@click.option(
    "--max-error", type=click.FloatRange(0), metavar="X", help="In place of it: largest absolute difference."
)
@click.option(
    "--max-kl",
    type=click.FloatRange(0),
    metavar="X",
    help="In place of it: KL divergence of the outputs; with --recipe.",
)
@data_options()
@json_option
@traceback_option
def bisect_verb(
    model: str, other: str | None, recipe: str | None, calib: str | None, target: str, settings: tuple[str, ...],
    allow_quantized: bool, memory_limit: int, min_sqnr: float | None, max_error: float | None, max_kl: float | None,
    given: "EvaluationData", as_json: bool,
) -> None:  # fmt: skip
    """Where a quantized model parts from MODEL, the float one.

    With OTHER, a model that was made from it: the first layer whose inputs are alike and whose output is not. With
    --recipe, a compile into a temporary folder: first the pass, then the layer in what that pass left.
    """
    if other is not None and recipe is not None:
        raise click.UsageError("a second model and --recipe exclude each other; give one")
    if other is None and recipe is None:
        raise click.UsageError("give a second model, or --recipe NAME to compile with")
    if sum(bound is not None for bound in (min_sqnr, max_error, max_kl)) > 1:
        raise click.UsageError("--min-sqnr, --max-error and --max-kl exclude each other; give one")
    if other is not None and max_kl is not None:
        raise click.UsageError("--max-kl is of whole models; for layers give --min-sqnr or --max-error")
    from qcompiler.api import Options
    from qcompiler.bisect import bisect_passes
    from qcompiler.calibration.feeds import REQUIRED
    from qcompiler.report.bisect_layers import Bound, bisect_layers
    from qcompiler.report.bisect_table import layers_table, passes_table
    from qcompiler.report.progress import progress_shown

    if (
        given.text is None
        and given.data is None
        and calib not in (None, REQUIRED)
        and not str(calib).endswith(".json")
    ):
        # and not ranges alone
        given = replace(given, data=calib)
    bound = Bound(min_sqnr, max_error, max_kl)
    with progress_shown(quiet=as_json) as progress:
        if other is not None:
            layers = bisect_layers(Path(model), Path(other), bound, given, progress)
        else:
            assert recipe is not None
            passes = bisect_passes(
                model, recipe, bound, given, calibration=calib, tokenizer=given.tokenizer, target=target, settings=settings,
                options=Options(given.seed, memory_limit, allow_quantized=allow_quantized), progress=progress,
            )  # fmt: skip
    if other is not None:
        show(asdict(layers) if as_json else layers_table(layers))
    else:
        show(asdict(passes) if as_json else passes_table(passes))
