"""The command line ``qcompile``: its verbs, what goes without one, and how it ends."""

import difflib
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import click

from qcompiler.exit_status import CLOSED_PIPE, outcome
from qcompiler.verbs.bench import bench_verb
from qcompiler.verbs.bisect import bisect_verb
from qcompiler.verbs.catalogue import recipes_verb, targets_verb
from qcompiler.verbs.check import check_verb
from qcompiler.verbs.compile import compile_verb
from qcompiler.verbs.diff import diff_verb
from qcompiler.verbs.doctor import doctor_verb
from qcompiler.verbs.eval import eval_verb
from qcompiler.verbs.inspect import inspect_verb
from qcompiler.verbs.report import report_verb
from qcompiler.verbs.show import show
from qcompiler.verbs.trace import trace_verb


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


@click.group(
    cls=_DefaultVerb,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Without a verb, compile: qcompile model.onnx --recipe w4a16-rtn",
    no_args_is_help=True,
)
@click.version_option(package_name="qcompiler")
def cli() -> None:
    """Quantize ONNX models, look into them, and measure what was lost."""


VERBS = (
    compile_verb,
    inspect_verb,
    diff_verb,
    check_verb,
    eval_verb,
    bench_verb,
    bisect_verb,
    trace_verb,
    report_verb,
    recipes_verb,
    targets_verb,
    doctor_verb,
)
for verb in VERBS:
    cli.add_command(verb)


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
        show({"error": line, "status": status})
    except click.exceptions.Exit as closed:
        return closed.exit_code
    return status


def _on_terminate(number: int, frame: object) -> NoReturn:
    sys.exit(128 + number)


if __name__ == "__main__":
    main()
