"""``qcompile inspect``: what is in a model."""

import re
from dataclasses import asdict, replace
from pathlib import Path

import click

from qcompiler.option_values import Pattern
from qcompiler.verbs.options import json_option, traceback_option
from qcompiler.verbs.show import show


@click.command("inspect", epilog="Example: qcompile inspect model-w4a16-awq/model.onnx --filter down_proj")
@click.argument("model")
@click.option("--flat", "view", flag_value="flat", help="A line for each product, however many.")
@click.option(
    "--folded",
    "view",
    flag_value="folded",
    help="A line for each block and kind; default with more than 60 weights.",
)
@click.option("--tree", "view", flag_value="tree", help="Products inside their modules.")
@click.option(
    "--filter", "pattern", metavar="REGEX", type=Pattern(), help="Only what has it in a name or a block."
)
@click.option(
    "--session",
    is_flag=True,
    help="Run it too: the kernel that each product runs on, its time, floats between integers.",
)
@click.option(
    "--provider", "providers", metavar="NAME", multiple=True,
    help="With --session: of ONNX Runtime, repeat for more; default CPUExecutionProvider.",
)  # fmt: skip
@click.option(
    "--data", metavar="PATH",
    help="With --session: inputs of your own, the first feed: .npz, folder of .npz, .jsonl or module:function.",
)  # fmt: skip
@click.option(
    "--node-data", "node_data_file", metavar="FILE.json", help="Write an overlay for Google's Model Explorer."
)
@click.option(
    "--value",
    type=click.Choice(["bits", "bytes", "sqnr", "time"]),
    help="With --node-data: what colours the nodes; default bits; time needs --session.",
)
@json_option
@traceback_option
def inspect_verb(
    model: str, view: str | None, pattern: re.Pattern[str] | None, session: bool, providers: tuple[str, ...],
    data: str | None, node_data_file: str | None, value: str | None, as_json: bool,
) -> None:  # fmt: skip
    """What is in MODEL: every product, how its weight is stored, and why."""
    if (providers or data is not None) and not session:
        raise click.UsageError("--provider and --data say how the model is run; give --session too")
    if value is not None and node_data_file is None:
        raise click.UsageError("--value says what the overlay shows; give --node-data FILE.json too")
    from qcompiler.graph.model_file import check_no_model_file
    from qcompiler.report.inspect_model import inspect
    from qcompiler.report.inspection_table import inspection_table, matching

    found = inspect(model)
    if node_data_file is not None:
        check_no_model_file(Path(node_data_file), model)
    if session:
        from qcompiler.report.inspect_session import inspect_session

        found = inspect_session(found, providers or ("CPUExecutionProvider",), data)
    shown = None if pattern is None else matching(found, pattern)
    if node_data_file is not None:
        from qcompiler.graph.disk import write_whole
        from qcompiler.report.json_text import to_json
        from qcompiler.report.node_data import node_data

        write_whole(Path(node_data_file), to_json(node_data(found, value or "bits")).encode())
        click.echo(f"wrote {node_data_file}", err=True)
    if as_json:
        show(asdict(found if shown is None else replace(found, products=shown)))
    else:
        show(inspection_table(found, shown, view))  # type: ignore[arg-type]  # one of the flags' values
