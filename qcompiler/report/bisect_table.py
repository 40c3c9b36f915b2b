"""Where models part, on the terminal."""

import math

from rich.console import Group, RenderableType
from rich.text import Text

from qcompiler.report.bisect_layers import SHARP_DB, LayerBisection, LayerBreak
from qcompiler.report.diff_table import decibel
from qcompiler.report.fitted_table import LEAST_NAME, Column, FittedTable, Row, rows_of
from qcompiler.report.pass_parity import PassBisection, PassParity
from qcompiler.report.sizes import format_seconds

NOISIEST = 5


def layers_table(found: LayerBisection) -> RenderableType:
    """The layer, then those that add most."""
    parts: list[RenderableType] = [Text(_sentence(found), style="bold"), ""]
    count = min(NOISIEST, found.layers)
    parts.append(
        Text(f"layers by the noise that they add themselves, most first ({count} of {found.layers})")
    )
    columns = (
        Column("name", 0, "name", LEAST_NAME),
        Column("op", 1, "words", 8),
        *(Column(title, 0, right=True) for title in ("inputs", "output", "own noise")),
    )
    rows = (
        (
            each.layer.title,
            each.layer.op,
            decibel(each.input_sqnr_db),
            decibel(each.layer.sqnr_db),
            _own(each),
        )
        for each in found.noisiest[:NOISIEST]
    )
    parts.append(FittedTable(columns, rows_of(rows)))
    parts += [
        "",
        Text(
            f"bound: {found.bound}; {found.layers} layers, on {found.data}; {format_seconds(found.seconds)}"
        ),
    ]
    return Group(*parts, *(Text(f"note: {note}") for note in found.notes))


def passes_table(found: PassBisection) -> RenderableType:
    """Every pass with what its outputs are worth, the first that breaks, and the layer in it."""
    kl = any(each.kl is not None for each in found.passes)
    columns = (
        Column("pass", 0, "name", 24),
        Column("SQNR", 0, right=True),
        Column("max error", 3, right=True),
        *([Column("KL", 2, right=True)] if kl else []),
        Column("took", 4, right=True),
        Column("", 1, "words", 16, called="notes", below=True),
    )
    changed = [each for each in found.passes if each.modified]
    idle = len(found.passes) - len(changed)
    table = FittedTable(
        columns, [Row(_cells(each, kl), "bold" if each.why else "", tell=True) for each in changed]
    )
    parts: list[RenderableType] = [
        Text(f"outputs after each pass, against {found.model} ({idle} more changed nothing)"),
        table,
        "",
    ]
    if found.first is None:
        parts.append(Text(f"parity holds after every pass, with a bound of {found.bound}", style="bold"))
    else:
        parts.append(Text(f"parity breaks in pass {found.first}", style="bold"))
    if found.layers is not None:
        parts += [layers_table(found.layers), ""]
    parts.append(
        Text(
            f"{found.recipe} on {found.data}; bound: {found.bound}; passes {format_seconds(found.compile_seconds)}, "
            f"all {format_seconds(found.seconds)}"
        )
    )
    said = [] if found.layers is None else found.layers.notes
    return Group(*parts, *(Text(f"note: {note}") for note in found.notes if note not in said))


def _cells(each: PassParity, kl: bool) -> tuple[str, ...]:
    took = format_seconds(each.seconds)
    divergence = [] if not kl else ["" if each.kl is None else f"{each.kl:.3g}"]
    if each.sqnr_db is None or each.max_error is None:
        return each.name, "", "", *(divergence), took, each.note
    why = f"<- breaks: {each.why}" if each.why else ""
    return each.name, decibel(each.sqnr_db), f"{each.max_error:.3g}", *divergence, took, why


def _sentence(found: LayerBisection) -> str:
    if found.first is None:
        return f"no layer parts: all are within the bound, {found.bound}"
    layer, before = found.first.layer, decibel(found.first.input_sqnr_db)
    place = f" in {layer.block}" if layer.block else ""
    how = (
        "it breaks there" if found.first.sharp
        else f"errors grow evenly up to there: it is less than {SHARP_DB:g} dB worse than its inputs"
    )  # fmt: skip
    return f"first to part: {layer.title} ({layer.op}{place}): inputs {before}, output {decibel(layer.sqnr_db)}; {how}"


def _own(each: LayerBreak) -> str:
    return "none" if each.own_sqnr_db == math.inf else decibel(each.own_sqnr_db)
