"""What a verb prints on stdout: a table, text or one JSON document."""

import io
from typing import TYPE_CHECKING, Any

import click

from qcompiler.exit_status import CLOSED_PIPE

if TYPE_CHECKING:
    from rich.console import RenderableType


def show(value: "RenderableType | dict[str, Any] | list[Any]") -> None:
    """A table, text or JSON on stdout, by click's echo: rich has its own way out of a closed pipe."""
    if isinstance(value, (dict, list)):
        from qcompiler.report.json_text import to_json

        _say(to_json(value))
    elif isinstance(value, str):
        _say(value.removesuffix("\n"))
    else:
        from rich.console import Console

        from qcompiler.report.fitted_table import WIDE

        screen = Console()
        width = screen.width if screen.is_terminal else WIDE
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
