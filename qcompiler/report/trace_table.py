"""A trace on the terminal: one line a layer."""

from rich.console import Group, RenderableType
from rich.text import Text

from qcompiler.report.diff_table import decibel
from qcompiler.report.fitted_table import LEAST_NAME, Column, FittedTable, Row
from qcompiler.report.sizes import format_shape
from qcompiler.report.trace_model import Trace, TracedValue

_RANKS = {
    **{"NaN": 0, "inf": 0, "SQNR": 0, "saturated": 1, "least": 2, "greatest": 2},
    **{"deviation": 3, "mean": 4, "zeros": 5, "shape": 7},
}
"""Which columns stay where there is not room for all."""


def trace_table(found: Trace) -> RenderableType:
    """Layers in graph order, then where NaN or infinity comes from."""
    saturates = any(value.saturated is not None for value in found.values)
    compares = any(value.sqnr_db is not None for value in found.values)
    beyond = any(value.nan or value.infinite for value in found.values)
    columns = [Column("name", 0, "name", LEAST_NAME), Column("op", 6, "words", 8)]
    columns += [
        Column(title, _RANKS[title], right=True)
        for title in (
            *("shape", "least", "greatest", "mean", "deviation", "zeros"),
            *(["saturated"] if saturates else []),
            *(["SQNR"] if compares else []),
            *(["NaN", "inf"] if beyond else []),
        )
    ]
    rows = []
    for value in found.values:
        cells = [value.title, value.op, format_shape(value.shape)]
        cells += _range(value)
        cells.append(_share(value.zeros))
        cells += [_share(value.saturated)] if saturates else []
        cells += ["" if value.sqnr_db is None else decibel(value.sqnr_db)] if compares else []
        cells += [str(value.nan or ""), str(value.infinite or "")] if beyond else []
        rows.append(Row(cells))
    lines = [f"{found.model} on {found.data}"]
    lines += [_first("NaN", found.first_nan)] if found.first_nan is not None else []
    lines += [_first("infinity", found.first_infinite)] if found.first_infinite is not None else []
    lines += [f"note: {note}" for note in found.notes]
    return Group(FittedTable(columns, rows), "", *map(Text, lines))


def _range(value: TracedValue) -> list[str]:
    """Least, greatest, mean and deviation."""
    figures = [value.least, value.greatest, value.mean, value.deviation]
    if value.least is None:
        return ["no numbers", *[""] * (len(figures) - 1)]
    return ["" if number is None else f"{number:.3g}" for number in figures]


def _first(what: str, value: TracedValue) -> str:
    count = value.nan if what == "NaN" else value.infinite
    return f"first {what}: {value.name}, made by {value.op} {value.node} ({count} numbers)"


def _share(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2g} %" if share else "0"
