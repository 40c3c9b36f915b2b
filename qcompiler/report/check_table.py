"""A check on the terminal: a line for each way to run, then where those that part do."""

from rich.console import Group, RenderableType
from rich.text import Text

from qcompiler.report.check_model import Check, VariantParity
from qcompiler.report.fitted_table import Column, FittedTable, rows_of
from qcompiler.report.parting import Parting, Step
from qcompiler.report.sizes import format_decibel

OPERATORS = 6  # that are named of those without a kernel


def check_table(found: Check) -> RenderableType:
    """The worst output of each way to run."""
    columns = (
        Column("level, threads, provider"),
        Column("parity"),
        Column("output", 2, "name", 16),
        Column("SQNR", 0, right=True),
        Column("max error", 1, right=True),
        Column("top-1", 3, right=True),
    )
    table = FittedTable(columns, rows_of(map(_cells, found.variants)))
    lines = [
        f"{found.model}: against {found.reference}, on {found.data}; bound {found.bound_db:g} dB",
        *found.notes,
    ]
    told: dict[str, list[str]] = {}
    for variant in found.variants:
        for line in _said(variant):
            told.setdefault(line, []).append(variant.label)
    lines += [f"{'; '.join(labels)}: {line}" for line, labels in told.items()]
    return Group(table, "", *map(Text, lines))


def _cells(variant: VariantParity) -> list[str]:
    if variant.error:
        return [variant.label, "fails", "", "", "", ""]
    worst = min(variant.outputs, key=lambda output: (output.compared, -output.not_numbers, output.sqnr_db))
    if not worst.compared:
        return [variant.label, "breaks", worst.name, "no numbers", "", ""]
    agreement = "" if worst.top1_agreement is None else f"{100 * worst.top1_agreement:.4g} %"
    return [
        variant.label, "holds" if variant.holds else "breaks", worst.name,
        format_decibel(worst.sqnr_db), f"{worst.max_error:.2g}", agreement,
    ]  # fmt: skip


def _said(variant: VariantParity) -> list[str]:
    lines = []
    if variant.error:
        lines.append(variant.error)
    for output in variant.outputs:
        if output.not_numbers:
            lines.append(
                f"output {output.name} has {output.not_numbers} NaN or infinities that the reference has not"
            )
    if isinstance(variant.parting, Parting):
        first, steepest = variant.parting.first, variant.parting.steepest
        lines.append(f"parts at {_step(first)}")
        if steepest != first:
            lines.append(f"the largest step up to there is {_step(steepest)}")
    elif variant.parting is not None:
        lines.append(f"where it parts is not known: {variant.parting}")
    if variant.elsewhere:
        most = [f"{count} {op}" for op, count in list(variant.elsewhere.items())[:OPERATORS]]
        rest = len(variant.elsewhere) - len(most)
        lines.append(
            f"no kernel there for {sum(variant.elsewhere.values())} nodes, which run on the CPU: {', '.join(most)}"
            + (f" and {rest} other types" if rest > 0 else "")
        )
    return lines


def _step(step: Step) -> str:
    return (
        f"{step.op} {step.node or step.value}, which runs as {step.runs_as}: value {step.value} has {format_decibel(step.sqnr_db)} "
        f"(max error {step.max_error:.2g}), what it is computed from {format_decibel(step.before_db)}"
    )
