"""What a finished compile tells on the terminal: sizes, time, memory, worst layers, what runs, warnings."""

from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from qcompiler.passes.assign_bits import MixedResult
from qcompiler.passes.layer_result import LayerResult
from qcompiler.passes.rotate import RotationResult
from qcompiler.report.compile_report import CompileReport
from qcompiler.report.fallback import Fallback
from qcompiler.report.fitted_table import LEAST_NAME, Column, FittedTable, rows_of
from qcompiler.report.sizes import (
    counted,
    format_bytes,
    format_memory,
    format_seconds,
    format_shape,
    size_change,
)
from qcompiler.report.trade_rows import trade_rows

WORST = 5


def compile_summary(report: CompileReport, output: str) -> RenderableType:
    """Tables for a rich console."""
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column(overflow="fold")
    for key, value in _facts(report, output):
        facts.add_row(key, escape(value))
    parts: list[RenderableType] = []
    worst = sorted(report.layers, key=lambda layer: -layer.output_error)[:WORST]
    if worst:
        parts += [_worst_table(worst, len(report.layers)), ""]
    if report.mixed is not None:
        parts += [_trade_table(report.mixed), ""]
    return Group(*parts, facts)


def _worst_table(layers: list[LayerResult], count: int) -> FittedTable:
    title = "layers by error of their output, worst first" + (
        f" ({len(layers)} of {count})" if count > len(layers) else ""
    )
    columns = (
        Column("name", 0, "name", LEAST_NAME),
        Column("role", 3, "words", 9),
        Column("N x K", 2, right=True),
        Column("stored as", 0, "words", 14),
        Column("output_error", 1, right=True),
        Column("SQNR", 0, right=True),
    )
    rows = (
        (
            layer.name,
            layer.role,
            format_shape(layer.shape),
            " + ".join(part for part in (layer.scheme, layer.beside) if part),
            f"{layer.output_error:.2e}",
            f"{layer.sqnr_db:.1f} dB",
        )
        for layer in layers
    )
    return FittedTable(columns, rows_of(rows), title)


def _trade_table(mixed: MixedResult) -> FittedTable:
    columns = (Column("weights", right=True), Column(f"predicted {mixed.measure}", right=True), Column(""))
    rows = (
        (format_bytes(size), f"{loss:.3g}", "chosen" if chosen else "")
        for size, loss, chosen in trade_rows(mixed)
    )
    return FittedTable(columns, rows_of(rows), "other budgets (all: report.html)")


def _runs_as_nothing(report: CompileReport) -> str:
    """Why no weight is read by an operator of the target."""
    if any(record.name.startswith("lower_") for record in report.passes):
        return "plain ONNX: no kernel reads the weights (the report says why)"
    return "not checked: stopped before the target's operators"


def _facts(report: CompileReport, output: str) -> list[tuple[str, str]]:
    weights = sum(layer.shape[0] * layer.shape[1] for layer in report.layers)
    stored = sum(layer.stored_bytes for layer in report.layers)
    change = size_change(report.float_bytes, report.bytes, 2)
    running = ", ".join(f"{count} {op}" for op, count in sorted(report.running.items()))
    facts = [
        ("output", output),
        ("size", f"{format_bytes(report.float_bytes)} -> {format_bytes(report.bytes)} ({change})"),
        ("weights", f"{len(report.layers)} quantized, {8 * stored / max(weights, 1):.2f} bits per weight; "
                    f"{counted(len(report.skipped), 'node')} left alone (qcompile inspect says why)"),
        *_rotated(report.rotation),
        *_mixed(report.mixed),
        *_fallback(report.fallback),
        ("runs as", running or _runs_as_nothing(report)),
        ("calibration", _calibration(report.calibration)),
        ("took", f"{format_seconds(report.seconds)}, "
                 f"peak anonymous memory {format_memory(report.peak_anonymous_bytes)}"
                 + (f"; {report.resumed} weights were finished before" if report.resumed else "")),
    ]  # fmt: skip
    return [*facts, *(("warning", warning) for warning in report.warnings)]


def _rotated(rotation: RotationResult | None) -> list[tuple[str, str]]:
    """Each residual stream that was rotated, and how many layers' heads."""
    if rotation is None:
        return []
    lines = [f"stream of {stream}" for stream in rotation.streams]
    if rotation.heads:
        lines.append(f"heads of {counted(rotation.heads, 'layer')}")
    return [("rotated", line) for line in lines or ["nothing"]]


def _mixed(mixed: MixedResult | None) -> list[tuple[str, str]]:
    """How many layers got how many bits, and the predicted loss."""
    if mixed is None:
        return []
    counts = ", ".join(f"{mixed.chosen.count(bits)} at {bits} bits" for bits in mixed.bits)
    return [
        (
            "mixed",
            f"{counts}, by {mixed.sensitivity}; predicted {mixed.measure} {mixed.loss:.3g} with round to nearest's error",
        ),
    ]


def _fallback(fallback: Fallback | None) -> list[tuple[str, str]]:
    """The drop, the layers that went back to float in order, and what was tried."""
    if fallback is None:
        return []
    tried = ", ".join(f"{count} float {drop:.3%}" for count, drop in fallback.tried)
    facts = [
        (
            "drop",
            f"{fallback.drop:.3%} of {fallback.max_drop:.3%} allowed, {fallback.measure} (tried: {tried})",
        )
    ]
    if fallback.layers:
        facts.append(
            ("back to float", f"{counted(len(fallback.layers), 'layer')}: {', '.join(fallback.layers)}")
        )
    return facts


def _calibration(description: dict[str, Any]) -> str:
    if not description:
        return "none needed"
    return ", ".join(f"{key} {value}" for key, value in description.items())
