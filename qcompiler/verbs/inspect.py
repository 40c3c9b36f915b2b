"""``qcompile inspect``: what is in a model."""

from dataclasses import asdict

import click

from qcompiler.verbs.options import json_option, traceback_option
from qcompiler.verbs.show import show


@click.command("inspect", epilog="Example: qcompile inspect model-w4a16-awq/model.onnx")
@click.argument("model")
@json_option
@traceback_option
def inspect_verb(model: str, as_json: bool) -> None:
    """What is in MODEL: every product, how its weight is stored, and why."""
    from qcompiler.report.inspect_model import inspect
    from qcompiler.report.inspection_table import inspection_table

    found = inspect(model)
    show(asdict(found) if as_json else inspection_table(found))
