"""Where models part, on the terminal."""

import math

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from qcompiler.report.bisect_layers import SHARP_DB, LayerBisection, LayerBreak
from qcompiler.report.diff_table import decibel
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
    table = _table()
    table.add_column("name", overflow="fold")
    table.add_column("op")
    for column in ("inputs", "output", "own noise"):
        table.add_column(column, justify="right", no_wrap=True)
    for each in found.noisiest[:NOISIEST]:
        layer = each.layer
        cells = (layer.title, layer.op, decibel(each.input_sqnr_db), decibel(layer.sqnr_db))
        table.add_row(*map(escape, cells), _own(each))
    parts.append(table)
    parts += [
        "",
        Text(
            f"bound: {found.bound}; {found.layers} layers, on {found.data}; {format_seconds(found.seconds)}"
        ),
    ]
    return Group(*parts, *(Text(f"note: {note}") for note in found.notes))


def passes_table(found: PassBisection) -> RenderableType:
    """Every pass with what its outputs are worth, the first that breaks, and the layer in it."""
    table = _table()
    table.add_column("pass", no_wrap=True)
    kl = any(each.kl is not None for each in found.passes)
    for column in ("SQNR", "max error", *(["KL"] if kl else []), "took"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("", overflow="fold")
    idle = sum(not each.modified for each in found.passes)
    for each in found.passes:
        if not each.modified:
            continue
        table.add_row(*map(escape, _cells(each, kl)), style="bold" if each.why else "")
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


def _table() -> Table:
    return Table(box=None, pad_edge=False, header_style="bold")
