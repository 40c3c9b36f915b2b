"""``qcompile eval``: how far a model is from its reference."""

from dataclasses import asdict
from pathlib import Path

import click

from qcompiler.verbs.options import json_option, traceback_option
from qcompiler.verbs.show import show


@click.command(
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
@json_option
@traceback_option
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
    show(asdict(found) if as_json else evaluation_table(found))


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)
