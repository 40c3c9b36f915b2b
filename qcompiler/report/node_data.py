"""What an inspection says of nodes, as an overlay for Google's Model Explorer ("custom node data").

One file colours the nodes by one kind of number: ``{"results": {node: {"value": number}}, "gradient": [{"stop": 0, "bgColor": ..}]}``.
Nodes are called as in the model, which is what Model Explorer's adapter for ONNX calls them, and stop 0 is the least value.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from qcompiler.errors import InputError
from qcompiler.report.inspect_model import InspectedProduct, Inspection

_WHITE, _RED, _GREEN, _BLUE = "#ffffff", "#d73027", "#66bd63", "#4393c3"


@dataclass(frozen=True)
class Overlay:
    """One kind of number: of a product (None for none), of several in one node, and its colours from least to most."""

    of: Callable[[InspectedProduct], float | None]
    together: Callable[[Iterable[float]], float]
    colours: tuple[str, str]
    missing: str


OVERLAYS = {
    "bits": Overlay(lambda product: product.bits, max, (_WHITE, _BLUE), "no product has a weight"),
    "bytes": Overlay(lambda product: product.bytes or None, sum, (_WHITE, _BLUE), "no product has a weight"),
    "sqnr": Overlay(
        lambda product: product.sqnr_db, min, (_RED, _GREEN), "the model has no notes on errors; models that qcompile compiled do"
    ),
    "time": Overlay(
        lambda product: None if product.running is None else product.running.microseconds, sum, (_WHITE, _RED),
        "the model was not run; add --session",
    ),
}  # fmt: skip
"""By the word for it on the command line; time is in microseconds, SQNR in decibels."""


def node_data(found: Inspection, what: str) -> dict[str, Any]:
    """The content of a file.

    Args:
        what: one of ``OVERLAYS``.
    Raises:
        InputError: the inspection has no such numbers.
    """
    overlay = OVERLAYS[what]
    values: dict[str, list[float]] = {}
    for product in found.products:
        value = overlay.of(product)
        for name in product.nodes if value is not None else ():
            values.setdefault(name, []).append(float(value or 0.0))
    if not values:
        raise InputError(f"{found.model}: no {what} to write: {overlay.missing}")
    return {
        "results": {name: {"value": overlay.together(several)} for name, several in values.items()},
        "gradient": [{"stop": stop, "bgColor": colour} for stop, colour in enumerate(overlay.colours)],
    }
