"""Layers as rows of the page's table."""

from typing import Any

from qcompiler.report.model_report import LayerRow
from qcompiler.report.sizes import format_bytes

ENDLESS = 1e9
"""What stands for infinity where the page's script sorts."""


def layer_rows(layers: list[LayerRow]) -> list[dict[str, Any]]:
    """Layers with a weight, those with the largest errors first; ``place`` is that in the graph."""
    told = [layer for layer in layers if layer.bytes or layer.error is not None]
    ranked = sorted(enumerate(told, 1), key=lambda numbered: -_measured(numbered[1]))
    return [{"place": place, **layer_row(layer)} for place, layer in ranked]


def _measured(layer: LayerRow) -> float:
    """Its error, by whichever measure there is; -1 without any, behind all others."""
    if layer.error is not None:
        return min(layer.error, ENDLESS)
    return -1.0 if layer.depth_sqnr_db is None else min(10 ** (-layer.depth_sqnr_db / 10), ENDLESS)


def layer_row(layer: LayerRow) -> dict[str, Any]:
    """Its words and numbers."""
    return {
        "name": layer.name,
        "role": layer.role,
        "label": layer.label,
        "bytes": layer.bytes,
        "size": format_bytes(layer.bytes) if layer.bytes else "",
        "error": "" if layer.error is None else f"{layer.error:.2e}",
        "error_value": -1 if layer.error is None else min(layer.error, ENDLESS),
        "sqnr": _decibels(layer.sqnr_db),
        "sqnr_value": _sorted_by(layer.sqnr_db),
        "depth": _decibels(layer.depth_sqnr_db),
        "depth_value": _sorted_by(layer.depth_sqnr_db),
        "why": " / ".join(part for part in (layer.algorithm, layer.reason) if part),
    }


def _decibels(value: float | None) -> str:
    """Without unit; infinite where nothing was lost, empty where nothing was measured."""
    return "" if value is None else f"{value:.1f}".replace("inf", "∞")


def _sorted_by(decibels: float | None) -> float:
    """What stands for it where the page's script sorts, which knows no infinity."""
    return ENDLESS if decibels is None else max(-ENDLESS, min(decibels, ENDLESS))


def told(layer: LayerRow) -> str:
    """What shows when one points at its bar."""
    sqnr = "" if layer.sqnr_db is None else f", {_decibels(layer.sqnr_db)} dB"
    return f"{layer.name}: {layer.error:.2e}{sqnr}, {layer.label}"
