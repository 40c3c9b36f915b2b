"""The trade of a mixed compile, drawn: the weights' size against the loss that is predicted at it, and what was chosen.

One SVG without anything around it: no script, no font of its own, the same bytes for the same numbers.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

PARETO = "pareto.svg"
"""The figure's name in the output folder."""
WIDTH, HEIGHT = 640, 400
LEFT, RIGHT, TOP, BOTTOM = 76, 20, 36, 52  # margins
TICKS = 5  # along the axis of sizes, about
ROWS = 9  # of the table in the summary

Point = tuple[float, float]
"""Bytes and loss."""


def trade_rows(mixed: Mapping[str, Any]) -> list[tuple[int, float, bool]]:
    """(bytes, predicted loss, whether it was chosen): some points of the trade, from its smallest to its largest, and the choice."""
    points = _points(mixed)
    last = len(points) - 1
    places = (
        dict.fromkeys(round(i * last / (ROWS - 1)) for i in range(ROWS)) if last >= ROWS else range(last + 1)
    )
    chosen = (int(mixed["bytes"]), float(mixed["loss"]))
    found = {(int(points[i][0]), points[i][1]): False for i in places} | {chosen: True}
    return [(size, loss, taken) for (size, loss), taken in sorted(found.items())]


def pareto_svg(mixed: Mapping[str, Any]) -> str:
    """The figure.

    Args:
        mixed: ``CompileReport.mixed``: measure, trade, and bytes and loss of what was chosen.
    """
    points, chosen = _points(mixed), (float(mixed["bytes"]), float(mixed["loss"]))
    every = [*points, chosen]
    sizes = _sizes([size for size, _ in every])
    # Losses span decades; one that is nothing is drawn at the foot.
    positive = [loss for _, loss in every if loss > 0] or [1.0]
    low, high = math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive)))
    decades = range(low, max(high, low + 1) + 1)

    def x(size: float) -> float:
        return LEFT + (size - sizes[0]) / (sizes[-1] - sizes[0]) * (WIDTH - LEFT - RIGHT)

    def y(loss: float) -> float:
        place = math.log10(loss) if loss > 0 else decades[0]
        return TOP + (decades[-1] - place) / (decades[-1] - decades[0]) * (HEIGHT - TOP - BOTTOM)

    measure = escape(str(mixed["measure"]))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12" fill="#222">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        f'<text x="{LEFT}" y="20" font-size="14">Size of the weights and predicted {measure}</text>',
        *(_tick_of_size(x(size), size) for size in sizes),
        *(_tick_of_loss(y(10.0**power), power) for power in decades),
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 12}" text-anchor="middle">MB of quantized weights</text>',
        f'<polyline fill="none" stroke="#4477aa" stroke-width="1.5" points="{_joined(points, x, y)}"/>',
        *(_dot(x(size), y(loss), 2.5, "#4477aa", _told((size, loss), measure)) for size, loss in points),
        _dot(x(chosen[0]), y(chosen[1]), 6, "#cc3311", _told(chosen, measure)),
        _label(x(chosen[0]), y(chosen[1]), _told(chosen, measure)),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _points(mixed: Mapping[str, Any]) -> list[Point]:
    return sorted((float(size), float(loss)) for size, loss in mixed["trade"])


def _sizes(values: Sequence[float]) -> list[float]:
    """Round numbers of bytes that span the values, at equal steps."""
    span = (max(values) - min(values)) or max(values) or 1.0
    rough = span / TICKS
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)
    first, last = math.floor(min(values) / step), math.ceil(max(values) / step)
    return [step * i for i in range(first, max(last, first + 1) + 1)]


def _tick_of_size(x: float, size: float) -> str:
    foot = HEIGHT - BOTTOM
    return (
        f'<line x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{foot}" stroke="#ddd"/>'
        f'<text x="{x:.1f}" y="{foot + 18}" text-anchor="middle">{size / 1e6:.4g}</text>'
    )


def _tick_of_loss(y: float, power: int) -> str:
    return (
        f'<line x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" stroke="#ddd"/>'
        f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{10.0**power:.0e}</text>'
    )


def _joined(points: Sequence[Point], x: Callable[[float], float], y: Callable[[float], float]) -> str:
    return " ".join(f"{x(size):.1f},{y(loss):.1f}" for size, loss in points)


def _dot(x: float, y: float, radius: float, colour: str, told: str) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{colour}"><title>{told}</title></circle>'


def _told(point: Point, measure: str) -> str:
    return f"{point[0] / 1e6:.4g} MB, {measure} {point[1]:.3g}"


def _label(x: float, y: float, told: str) -> str:
    """Beside the point, on the side that has room."""
    left = x > WIDTH / 2
    place, anchor = (x - 12, "end") if left else (x + 12, "start")
    return f'<text x="{place:.1f}" y="{y - 10:.1f}" text-anchor="{anchor}">chosen: {told}</text>'
