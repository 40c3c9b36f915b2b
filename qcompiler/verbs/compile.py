"""``qcompile MODEL``: quantize a model into a folder."""

from pathlib import Path

import click

from qcompiler.option_values import MemorySize, Share
from qcompiler.verbs.options import json_option, traceback_option
from qcompiler.verbs.show import show


@click.command(
    "compile",
    epilog="Example: qcompile model.onnx --recipe w4a16-awq --calib text.txt",
)
@click.argument("model")
@click.option(
    "--recipe", default="w4a16-awq", show_default=True, help="Built-in name (qcompile recipes) or FILE.yaml."
)
@click.option("-o", "--output", help="Folder to write; default ./<model>-<recipe>.")
@click.option(
    "--calib",
    metavar="PATH",
    help=".txt, .npz, folder of .npz, .jsonl, module:function, or a calibration.json; 'required' refuses to go without.",
)
@click.option("--tokenizer", metavar="FILE", help="For text; default tokenizer.json beside MODEL.")
@click.option("--target", default="ort", show_default=True, help="Where it will run (qcompile targets).")
@click.option(
    "--no-function-body",
    is_flag=True,
    help="With --target qcompiler: a model that runs with our library alone.",
)
@click.option(
    "--mapped-weights",
    is_flag=True,
    help="With --target qcompiler: weights that sessions share where the file is mapped; needs our library.",
)
@click.option(
    "--set",
    "settings",
    metavar="KEY=VALUE",
    multiple=True,
    help="Change the recipe: --set group_size=64. Repeat for more.",
)
@click.option("--budget", metavar="4.5bpw|90MB", help="Give out bits weight by weight, so that all fit.")
@click.option(
    "--max-kl",
    type=click.FloatRange(0, min_open=True),
    metavar="X",
    help="Give out bits so that the predicted KL stays under X.",
)
@click.option(
    "--max-drop",
    type=Share(),
    metavar="1%",
    help="Leave the layers float that hurt most, until at most this share of the float model's first classes differs.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of everything random.")
@click.option(
    "--memory-limit",
    type=MemorySize(),
    default="4GiB",
    show_default=True,
    help="Peak anonymous memory to aim at; a forecast above it is refused.",
)
@click.option(
    "--resume", is_flag=True, help="Go on from what a stopped run of the same compile had finished."
)
@click.option("--force", is_flag=True, help="Replace an output that exists.")
@click.option(
    "--allow-quantized", is_flag=True, help="Keep what is quantized already as it is, and quantize the rest."
)
@click.option("--dry-run", is_flag=True, help="Show what would become of each node; write nothing.")
@click.option("--dump-ir", metavar="DIR", help="Save the model after each pass.")
@click.option("--verify-each", is_flag=True, help="Check the model after each pass.")
@click.option("--stop-after", metavar="PASS", help="Stop after that pass and write what there is.")
@json_option
@traceback_option
def compile_verb(
    model: str, recipe: str, output: str | None, calib: str | None, tokenizer: str | None, target: str,
    no_function_body: bool, mapped_weights: bool, settings: tuple[str, ...], budget: str | None, max_kl: float | None,
    max_drop: float | None, seed: int,
    memory_limit: int, resume: bool, force: bool, allow_quantized: bool, dry_run: bool, dump_ir: str | None, verify_each: bool,
    stop_after: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Quantize MODEL into a folder."""
    from qcompiler import api
    from qcompiler.recipe.setting import Setting, budget_settings
    from qcompiler.report.progress import progress_shown

    first, last = budget_settings(budget, max_kl)
    changes: list[str | Setting] = [*first, *settings, *last]
    options = api.Options(
        seed,
        memory_limit,
        force,
        None if dump_ir is None else Path(dump_ir),
        verify_each,
        stop_after,
        resume,
        allow_quantized,
        max_drop,
    )
    if dry_run:
        from qcompiler.report.plan_table import plan_json, plan_table

        ahead = api.dry_run(
            model, recipe, calibration=calib, tokenizer=tokenizer, output=output, target=target,
            function_body=not no_function_body, mapped_weights=mapped_weights, settings=changes, options=options,
        )  # fmt: skip
        listed = plan_json if as_json else plan_table
        show(listed(ahead.plan, ahead.source, ahead.peak_bytes, ahead.refusals))
        return
    with progress_shown(quiet=as_json) as progress:
        result = api.compile(
            model, recipe, calibration=calib, tokenizer=tokenizer, output=output, target=target,
            function_body=not no_function_body, mapped_weights=mapped_weights, settings=changes, options=options, progress=progress,
            tell=lambda line: click.echo(line, err=True),
        )  # fmt: skip
    if as_json:
        show({**result.report.plain(), "output": str(result.path)})
        return
    from qcompiler.report.compile_summary import compile_summary

    show(compile_summary(result.report, str(result.path)))
