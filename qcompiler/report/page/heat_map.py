"""Errors as a map: blocks of the model down, layers of a block across."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from qcompiler.report.model_report import LayerRow

MOST_COLUMNS = 16
"""Wider maps say less than the list of layers does."""


SPAN = 100.0
"""Between the coldest and the hottest error: what is smaller is as cold."""


@dataclass(frozen=True)
class Cell:
    """One layer: its error in words, what shows when one points at it, and how hot it is, 0 to 1."""

    text: str
    told: str
    heat: float


@dataclass(frozen=True)
class HeatRow:
    """One block; a cell is None where it has no such layer."""

    block: str
    cells: list[Cell | None]


@dataclass(frozen=True)
class HeatMap:
    """The whole map; columns are names of layers within their block."""

    columns: list[str]
    rows: list[HeatRow]


def heat_map(layers: Sequence[LayerRow]) -> HeatMap | None:
    """Of layers with errors; None where blocks have nothing in common to lay side by side.

    Heat is the error's place between the least (but at most SPAN times smaller than the largest) and the largest, on a logarithmic scale.
    """
    inside = [layer for layer in layers if layer.block and layer.error is not None]
    blocks = list(dict.fromkeys(layer.block for layer in inside))
    columns = list(dict.fromkeys(_within(layer) for layer in inside))
    if len(blocks) < 2 or not 1 <= len(columns) <= MOST_COLUMNS:
        return None
    logs = [math.log(layer.error) for layer in inside if layer.error]
    high = max(logs, default=0.0)
    low = max(min(logs, default=0.0), high - math.log(SPAN))
    cells = {(layer.block, _within(layer)): _cell(layer, low, high) for layer in inside}
    return HeatMap(
        columns, [HeatRow(block, [cells.get((block, column)) for column in columns]) for block in blocks]
    )


def _within(layer: LayerRow) -> str:
    """The layer's name behind that of its block."""
    return layer.name.removeprefix(layer.block).lstrip("./") or layer.name


def _cell(layer: LayerRow, low: float, high: float) -> Cell:
    error = layer.error or 0.0
    heat = 0.0 if error <= 0 else 1.0 if high <= low else max(0.0, (math.log(error) - low) / (high - low))
    return Cell(f"{error:.1e}", f"{layer.name}: {layer.label}", round(heat, 3))
