"""The options that every verb has."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

json_option = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout, no tables.")
traceback_option = click.option(
    "--traceback",
    is_flag=True,
    expose_value=False,
    help="Show where an error came from.",  # read by main
)

Verb = TypeVar("Verb", bound=Callable[..., Any])


def data_options(windows: int = 4) -> Callable[[Verb], Verb]:
    """What models are run on where every layer is looked at; ``windows`` is the default of that option."""
    options = (
        click.option("--text", metavar="FILE", help="UTF-8 text for a language model."),
        click.option("--tokenizer", metavar="FILE", help="For text; default tokenizer.json beside a model."),
        click.option(
            "--data",
            metavar="PATH",
            help="Inputs for any model: .npz, folder of .npz, .jsonl or module:function.",
        ),
        click.option(
            "--windows",
            type=click.IntRange(1),
            default=windows,
            show_default=True,
            help="Windows of text, or feeds of data, that are used.",
        ),
        click.option(
            "--length", type=click.IntRange(2), default=128, show_default=True, help="Tokens in a window."
        ),
        click.option(
            "--seed",
            type=click.IntRange(0),
            default=0,
            show_default=True,
            help="Of invented inputs, where neither --text nor --data is given.",
        ),
    )

    def add(verb: Verb) -> Verb:
        for option in reversed(options):
            verb = option(verb)
        return verb

    return add
