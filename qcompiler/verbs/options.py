"""The options that every verb has."""

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, cast

import click

json_option = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout, no tables.")
traceback_option = click.option(
    "--traceback",
    is_flag=True,
    expose_value=False,
    help="Show where an error came from.",  # read by main
)

Verb = TypeVar("Verb", bound=Callable[..., Any])


def data_options(windows: int = 4, length: int = 128) -> Callable[[Verb], Verb]:
    """What models are run on; the verb gets it as one ``given: EvaluationData``. ``windows`` and ``length`` are defaults."""
    options = (
        click.option("--text", metavar="FILE", help="UTF-8 text for a language model."),
        click.option(
            "--tokenizer",
            metavar="FILE",
            help="For text; default tokenizer.json beside the models, or beside what they were compiled from.",
        ),
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
            "--length", type=click.IntRange(2), default=length, show_default=True, help="Tokens in a window."
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
        @wraps(verb)
        def with_data(
            *,
            text: str | None,
            tokenizer: str | None,
            data: str | None,
            windows: int,
            length: int,
            seed: int,
            **others: Any,
        ) -> Any:
            if text is not None and data is not None:
                raise click.UsageError("--text and --data exclude each other; give one")
            from qcompiler.report.evaluate import EvaluationData

            given = EvaluationData(_path(text), _path(tokenizer), data, windows, length, seed=seed)
            return verb(given=given, **others)

        added: Any = with_data
        for option in reversed(options):
            added = option(added)
        return cast(Verb, added)

    return add


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)
