"""The command line ``qcompile``: arguments in, a call of the API, tables or JSON out; no logic."""

import difflib
import io
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from qcompiler.exit_status import CLOSED_PIPE, outcome
from qcompiler.option_values import Dimension, MemorySize, Share

if TYPE_CHECKING:
    from rich.console import RenderableType

# Everything else is imported where it is used: `qcompile --help` must not load torch.


class _DefaultVerb(click.Group):
    """``qcompile MODEL ...`` is ``qcompile compile MODEL ...``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("--help", "-h", "--version"):
            near = difflib.get_close_matches(args[0], self.commands, n=1, cutoff=0.7)
            if near and not args[0].startswith("-") and "." not in args[0] and not Path(args[0]).exists():
                raise click.UsageError(
                    f"{args[0]!r} is neither a verb nor a file; did you mean {near[0]!r}?", ctx
                )
            args = ["compile", *args]
        return super().parse_args(ctx, args)


_json = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout, no tables.")
_traceback = click.option(
    "--traceback",
    is_flag=True,
    expose_value=False,
    help="Show where an error came from.",  # read by main
)


@click.group(
    cls=_DefaultVerb,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Without a verb, compile: qcompile model.onnx --recipe w4a16-rtn",
    no_args_is_help=True,
)
@click.version_option(package_name="qcompiler")
def cli() -> None:
    """Quantize ONNX models, look into them, and measure what was lost."""


@cli.command(
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
@_json
@_traceback
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
        show = plan_json if as_json else plan_table
        _show(show(ahead.plan, ahead.source, ahead.peak_bytes, ahead.refusals))
        return
    with progress_shown(quiet=as_json) as progress:
        result = api.compile(
            model, recipe, calibration=calib, tokenizer=tokenizer, output=output, target=target,
            function_body=not no_function_body, mapped_weights=mapped_weights, settings=changes, options=options, progress=progress,
            tell=lambda line: click.echo(line, err=True),
        )  # fmt: skip
    if as_json:
        _show({**asdict(result.report), "output": str(result.path)})
        return
    from qcompiler.report.compile_summary import compile_summary

    _show(compile_summary(result.report, str(result.path)))


@cli.command("inspect", epilog="Example: qcompile inspect model-w4a16-awq/model.onnx")
@click.argument("model")
@_json
@_traceback
def inspect_verb(model: str, as_json: bool) -> None:
    """What is in MODEL: every product, how its weight is stored, and why."""
    from qcompiler.report.inspect_model import inspect
    from qcompiler.report.inspection_table import inspection_table

    found = inspect(model)
    _show(asdict(found) if as_json else inspection_table(found))


@cli.command(
    "eval",
    epilog="Example: qcompile eval out/model.onnx --reference model.onnx --text t.txt",
)
@click.argument("model")
@click.option("--reference", required=True, metavar="MODEL", help="The float model it was made from.")
@click.option("--text", metavar="FILE", help="UTF-8 text for a language model.")
@click.option("--tokenizer", metavar="FILE", help="For text; default tokenizer.json beside the reference.")
@click.option(
    "--data", metavar="PATH", help="Inputs for any model: .npz, folder of .npz, .jsonl or module:function."
)
@click.option(
    "--windows",
    type=click.IntRange(1),
    default=8,
    show_default=True,
    help="Windows of text, or feeds of data, that are used.",
)
@click.option("--length", type=click.IntRange(2), default=512, show_default=True, help="Tokens in a window.")
@click.option("--skip-chars", type=click.IntRange(0), default=0, help="Start at this character of the text.")
@click.option(
    "--offset",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.0,
    metavar="FRACTION",
    help="Start at this fraction of the text.",
)
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True,
    help="Of random inputs, where neither --text nor --data is given.",
)  # fmt: skip
@_json
@_traceback
def eval_verb(
    model: str, reference: str, text: str | None, tokenizer: str | None, data: str | None,
    windows: int, length: int, skip_chars: int, offset: float, seed: int, as_json: bool,
) -> None:  # fmt: skip
    """How far MODEL is from its reference: perplexity, KL, top-1 agreement, SQNR."""
    if text is not None and data is not None:
        raise click.UsageError("--text and --data exclude each other; give one")
    from qcompiler.report.evaluate import EvaluationData, evaluate
    from qcompiler.report.evaluation_table import evaluation_table
    from qcompiler.report.progress import progress_shown

    given = EvaluationData(_path(text), _path(tokenizer), data, windows, length, skip_chars, offset, seed)
    with progress_shown(quiet=as_json) as progress:
        found = evaluate(Path(model), Path(reference), given, progress)
    _show(asdict(found) if as_json else evaluation_table(found))


@cli.command("bench", epilog="Example: qcompile bench out/model.onnx --tokens 512 --threads 2")
@click.argument("model")
@click.option(
    "--against", metavar="MODEL2",
    help="Default: the same file without our library, where it has operators of ours.",
)  # fmt: skip
@click.option(
    "--tokens", type=click.IntRange(1), help="Of a prefill, where the model takes tokens; default 512."
)
@click.option(
    "--past",
    type=click.IntRange(0),
    help="Tokens before the one of a decode, where the model takes a past; default 128.",
)
@click.option(
    "--dim", "dims", metavar="NAME=SIZE", type=Dimension(), multiple=True,
    help="Size of a symbolic dimension: --dim batch=4. Repeat for more.",
)  # fmt: skip
@click.option(
    "--data",
    metavar="PATH",
    help="Inputs of your own, the first feed: .npz, folder of .npz, .jsonl or module:function.",
)
@click.option("--threads", type=click.IntRange(1), metavar="N", help="Default: as ONNX Runtime chooses.")
@click.option(
    "--runs",
    type=click.IntRange(1),
    metavar="N",
    help="Of each model on each workload, in place of --seconds.",
)
@click.option(
    "--seconds", type=click.FloatRange(0, min_open=True), help="About, for each workload; default 10.",
)  # fmt: skip
@click.option(
    "--loads",
    type=click.IntRange(0),
    default=5,
    show_default=True,
    help="In fresh processes, of each model; 0 for none.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of made-up inputs.")
@_json
@_traceback
def bench_verb(
    model: str, against: str | None, tokens: int | None, past: int | None, dims: tuple[tuple[str, int], ...], data: str | None,
    threads: int | None, runs: int | None, seconds: float | None, loads: int, seed: int, as_json: bool,
) -> None:  # fmt: skip
    """Latency, tokens/s, load time and peak memory of MODEL, in turn with another."""
    if runs is not None and seconds is not None:
        raise click.UsageError("--runs and --seconds exclude each other; give one")
    from qcompiler.bench.bench_table import bench_table
    from qcompiler.bench.benchmark import BenchSettings, measure
    from qcompiler.bench.workloads import Sizes
    from qcompiler.report.progress import progress_shown

    sizes = Sizes(tokens, past, dict(dims), data, seed)
    settings = BenchSettings(sizes, threads, runs, 10.0 if seconds is None else seconds, loads)
    with progress_shown(quiet=as_json) as progress:
        found = measure(model, against, settings, progress)
    _show(asdict(found) if as_json else bench_table(found))


@cli.command("recipes", epilog="Example: qcompile recipes w4a16-awq > mine.yaml")
@click.argument("name", required=False)
@_json
@_traceback
def recipes_verb(name: str | None, as_json: bool) -> None:
    """The built-in recipes; with NAME, that recipe as YAML to start your own from."""
    from qcompiler.recipe import Recipe, builtin_recipes

    if name is not None:
        recipe = Recipe.load(name)
        _show(recipe.to_mapping() if as_json else recipe.to_yaml())
        return
    rows = builtin_recipes()
    _show([{"name": key, "description": text} for key, text in rows] if as_json else _listed(rows))


@cli.command("targets", epilog="Example: qcompile targets")
@_json
@_traceback
def targets_verb(as_json: bool) -> None:
    """Where compiled models can run."""
    from qcompiler.targets import TARGETS

    rows = [(target.name, target.description) for target in TARGETS]
    _show([{"name": key, "description": text} for key, text in rows] if as_json else _listed(rows))


@cli.command("doctor", epilog="Example: qcompile doctor")
@_json
@_traceback
def doctor_verb(as_json: bool) -> None:
    """What this machine can run, and what is missing."""
    from qcompiler.report.doctor import doctor_table, examine

    findings = examine(Path())
    _show([asdict(finding) for finding in findings] if as_json else doctor_table(findings))


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point; ends the process with the status of the contract."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    signal.signal(signal.SIGTERM, _on_terminate)  # so that work folders are removed
    try:
        returned = cli.main(given, prog_name="qcompile", standalone_mode=False)
        sys.stdout.flush()
        status = returned if isinstance(returned, int) else 0  # of --help, or CLOSED_PIPE
    except BaseException as error:  # every way out has its status and, at most, one line
        status, line = outcome(error)
        if "--traceback" in given and status not in (0, 130, CLOSED_PIPE, 143):
            traceback.print_exception(error)
        if isinstance(error, click.ClickException):
            error.show()
            line = error.format_message()
        elif line:
            print(f"error: {line}", file=sys.stderr)
        if "--json" in given and line:
            status = _say_error(line, status)
    if status == CLOSED_PIPE:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left to flush goes nowhere
    sys.exit(status)


def _say_error(line: str, status: int) -> int:
    """The error as the one JSON document that was asked for; returns the status to end with."""
    try:
        _show({"error": line, "status": status})
    except click.exceptions.Exit as closed:
        return closed.exit_code
    return status


def _on_terminate(number: int, frame: object) -> NoReturn:
    sys.exit(128 + number)


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)


def _show(value: "RenderableType | dict[str, Any] | list[Any]") -> None:
    """A table, text or JSON on stdout, by click's echo: rich has its own way out of a closed pipe."""
    if isinstance(value, (dict, list)):
        from qcompiler.report.json_text import to_json

        _say(to_json(value))
    elif isinstance(value, str):
        _say(value.removesuffix("\n"))
    else:
        from rich.console import Console

        screen = Console()
        width = screen.width if screen.is_terminal else 160
        text = Console(
            file=io.StringIO(), width=width, force_terminal=screen.is_terminal, color_system="auto"
        )
        with text.capture() as capture:
            text.print(value)
        _say("\n".join(line.rstrip() for line in capture.get().splitlines()))


def _say(text: str) -> None:
    try:
        click.echo(text)
    except BrokenPipeError as error:
        raise click.exceptions.Exit(CLOSED_PIPE) from error


def _listed(rows: Sequence[tuple[str, str]]) -> str:
    width = max(len(key) for key, _ in rows)
    return "\n".join(f"{key:{width}}  {text}" for key, text in rows)


if __name__ == "__main__":
    main()
