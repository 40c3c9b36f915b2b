"""A comparison of two models on the terminal: sizes, what changed block by block, the worst layers, growth through depth."""

import math
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from qcompiler.report.diff_models import BlockError, ModelDiff, ModelSize, worst_first
from qcompiler.report.fitted_table import LEAST_NAME, Column, FittedTable, rows_of
from qcompiler.report.graph_changes import BlockChanges, GraphChanges
from qcompiler.report.sizes import counted, format_bytes, size_change
from qcompiler.report.tensor_errors import RESCALED, TURNED, TensorError

WORST = 10
_SHOWN = 6  # lines of a list whose rest is counted
_BAR_DB, _BAR = 50.0, 25  # a bar of that many signs is an error of 0 dB, none one of -50 dB


def diff_table(found: ModelDiff, worst: int = WORST) -> RenderableType:
    """Everything, with the ``worst`` layers."""
    parts: list[RenderableType] = [_sizes(found)]
    if found.equal:
        return Group(*parts, "", Text("equal: the same nodes and the same weights"))
    parts += ["", *_structure(found.graph)]
    if found.numbers is None:
        parts += ["", Text(f"numbers not compared: {found.without_numbers}")]
    else:
        errors = found.numbers.errors
        layers = worst_first(errors)
        some = f" ({worst} of {len(layers)})" if len(layers) > worst else ""
        parts += ["", Text(f"on {found.numbers.data}")]
        parts += [Text(f"layers by error, worst first{some}"), _errors(layers[:worst])]
        parts += ["", Text("outputs"), _errors(errors.outputs, by_layer=False)]
        if len(found.numbers.growth) > 1:
            parts += [
                "",
                Text("error through depth, at the end of each block"),
                _growth(found.numbers.growth),
            ]
        turned = sum(error.relation == TURNED for error in errors.values)
        if turned:
            parts.append(
                Text(f"{counted(turned, 'layer')} left out: rotated, and turned back by what reads them")
            )
        if any(error.relation == RESCALED for error in layers[:worst]):
            parts.append(
                Text("rescaled: channels have other scales, which later nodes take back; SQNR without them")
            )
    if found.lost:
        parts.append(Text(f"not matched: {_list(found.lost)}"))
    return Group(*parts, *(Text(f"note: {note}") for note in found.notes))


def error_cells(error: TensorError) -> tuple[str, ...]:
    """SQNR, cosine, largest error, range of the reference; the middle two are left out where one side alone is not finite."""
    span = f"{error.least:.3g} .. {error.greatest:.3g}" if error.least <= error.greatest else "no numbers"
    if error.unlike:
        return decibel(error.sqnr_db), "", "", span
    return (
        decibel(error.sqnr_db),
        f"{error.cosine:.5f}",
        f"{error.max_error:.3g}",
        span,
    )


def decibel(value: float) -> str:
    """``equal``, ``12.3 dB``, ``NaN or inf`` where one side alone is not finite."""
    if value == math.inf:
        return "equal"
    return "NaN or inf" if value == -math.inf else f"{value:.1f} dB"


def _sizes(found: ModelDiff) -> FittedTable:
    columns = (
        Column("", 0, "name", LEAST_NAME, called="model"),
        Column("files", 4, right=True),
        Column("nodes", 3, right=True),
        Column("quantized weights", 2, right=True),
        Column("bits per weight", 1, right=True),
        Column("size", 0, right=True),
    )
    change = size_change(found.reference.file_bytes, found.other.file_bytes, 2)
    same = found.reference.file_bytes == found.other.file_bytes
    sides = ((found.reference, ""), (found.other, "" if same else f" ({change})"))
    return FittedTable(columns, rows_of(_size_cells(side, ratio) for side, ratio in sides))


def _size_cells(side: ModelSize, ratio: str) -> tuple[str, ...]:
    bits = "" if side.bits_per_weight is None else f"{side.bits_per_weight:.2f}"
    size = format_bytes(side.file_bytes) + ratio
    weights = f"{side.weights:,}" if side.weights else "none"
    return side.path, str(side.files), str(side.nodes), weights, bits, size


def _structure(graph: GraphChanges) -> list[RenderableType]:
    parts: list[RenderableType] = []
    if graph.blocks:
        columns = (
            Column("block", 0, "name", LEAST_NAME),
            Column("products replaced", 0, "words", 16),
            Column("nodes added", 1, "words", 14),
            Column("nodes removed", 1, "words", 14),
        )
        rows = (
            (name, *map(_counts, (changes.replaced, changes.added, changes.removed)))
            for name, changes in _alike(graph.blocks)
        )
        parts.append(FittedTable(columns, rows_of(rows)))
    else:
        parts.append(Text("the same nodes"))
    lines = list(graph.signature)
    if graph.changed:
        lines.append(f"attributes changed: {_list([f'{node.op} {node.name}' for node in graph.changed])}")
    if graph.initializers_changed:
        lines.append(f"initializers changed: {_list(graph.initializers_changed)}")
    if graph.initializers_added or graph.initializers_removed:
        lines.append(f"initializers: {graph.initializers_removed} gone, {graph.initializers_added} new")
    return [*parts, *map(Text, lines)]


def _alike(blocks: Sequence[BlockChanges]) -> list[tuple[str, BlockChanges]]:
    """Neighbours in which the same changed are one line."""
    runs: list[list[BlockChanges]] = []
    for changes in blocks:
        last = runs[-1][-1] if runs else None
        same = last is not None and bool(last.block) and bool(changes.block)
        if same and last is not None and _contents(last) == _contents(changes):
            runs[-1].append(changes)
        else:
            runs.append([changes])
    return [
        (
            (run[0].block or "in no block")
            if len(run) == 1
            else f"{run[0].block} .. {run[-1].block} ({len(run)} alike)",
            run[0],
        )
        for run in runs
    ]


def _contents(changes: BlockChanges) -> tuple[dict[str, int], ...]:
    return changes.replaced, changes.added, changes.removed


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {what}" for what, count in counts.items())


def _errors(errors: Sequence[TensorError], by_layer: bool = True) -> FittedTable:
    columns = [
        Column("name", 0, "name", LEAST_NAME),
        Column("op", 4, "words", 8),
        Column("SQNR", 0, right=True),
        Column("cosine", 3, right=True),
        Column("max error", 1, right=True),
        Column("range", 5, right=True),
    ]
    marks = any(error.relation for error in errors)
    if marks:
        columns.append(Column("", 2, called="what is rescaled"))
    rows = (
        (
            error.title if by_layer else error.name,
            error.op,
            *error_cells(error),
            *([error.relation] if marks else []),
        )
        for error in errors
    )
    return FittedTable(columns, rows_of(rows))


def _growth(growth: Sequence[BlockError]) -> FittedTable:
    columns = (
        Column("block", 0, "name", 16),
        Column("SQNR", 0, right=True),
        Column("", 2, called="bars"),
        Column("worst layer in it", 1, "name", 30),
    )
    rows = []
    for block in growth:
        signs = _BAR if block.sqnr_db == -math.inf else round(_BAR * (1 - max(block.sqnr_db, 0) / _BAR_DB)) if (
            math.isfinite(block.sqnr_db)
        ) else 0  # fmt: skip
        worst = f"{block.worst} ({decibel(block.worst_sqnr_db)})" if block.worst != block.block else ""
        rows.append((block.block, decibel(block.sqnr_db), "#" * max(signs, 0), worst))
    return FittedTable(columns, rows_of(rows))


def _list(names: Sequence[str]) -> str:
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
