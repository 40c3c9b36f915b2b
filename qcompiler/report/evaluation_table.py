"""An evaluation on the terminal."""

import math

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from qcompiler.report.evaluate import Evaluation
from qcompiler.report.fitted_table import LEAST_NAME, Column, FittedTable, rows_of
from qcompiler.report.sizes import format_decibel


def evaluation_table(found: Evaluation) -> RenderableType:
    """Figures of a language model, or a line for each output of any other; then the notes."""
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column(overflow="fold")
    rows = [("model", found.model), ("reference", found.reference), ("data", found.data)]
    if found.kl is not None and found.ppl is not None and found.reference_ppl is not None:
        change = 100 * (found.ppl / found.reference_ppl - 1)
        compared = f", {change:+.2f} %" if math.isfinite(change) else ""
        rows += [
            ("perplexity", f"{found.ppl:.3f} (reference {found.reference_ppl:.3f}{compared})"),
            ("KL", f"{found.kl:.4g} nats a token"),
        ]
    if len(found.outputs) == 1:
        rows += [
            ("top-1 agreement", _share(found.top1_agreement)),
            ("SQNR", format_decibel(found.sqnr_db)),
            ("cosine", f"{found.cosine:.6f}"),
        ]
    for key, value in rows:
        facts.add_row(key, escape(value))
    parts: list[RenderableType] = [facts]
    if len(found.outputs) > 1:
        parts += ["", _outputs(found)]
    return Group(*parts, *(Text(f"note: {note}") for note in found.notes))


def _outputs(found: Evaluation) -> FittedTable:
    columns = (
        Column("output", 0, "name", LEAST_NAME),
        Column("SQNR", 0, right=True),
        Column("cosine", 2, right=True),
        Column("top-1 agreement", 1, right=True),
    )
    rows = (
        (output.name, format_decibel(output.sqnr_db), f"{output.cosine:.6f}", _share(output.top1_agreement))
        for output in found.outputs
    )
    return FittedTable(columns, rows_of(rows))


def _share(value: float | None) -> str:
    return "no classes" if value is None else f"{100 * value:.2f} %"
