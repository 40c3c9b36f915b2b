"""The figures of reports, drawn by Matplotlib: SVG without script or outside reference, the same bytes for the same numbers.

In a page (``inline``) text and axes take the page's colours, so that one figure serves light and dark; on its own
(``file``) a figure is black on white. Series have colours that differ for colour-blind eyes (Paul Tol, *Colour schemes*, "bright").
"""

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import Any, Literal

from matplotlib import rc_context
from matplotlib.figure import Figure

Surface = Literal["inline", "file"]
BLUE, RED, GREEN, GREY = "#4477aa", "#ee6677", "#228833", "#888888"
SERIES = (BLUE, RED, GREEN, "#ccbb44", "#66ccee", "#aa3377")
WIDTH = 10.0  # inches; a page makes them as wide as it is itself

# Stand-ins, which become the page's colours: Matplotlib knows no currentColor.
_TEXT, _LINES = "#010203", "#040506"
_COLOURS: dict[Surface, tuple[str, str]] = {
    "inline": ("currentColor", "var(--line)"),
    "file": ("#222222", "#dddddd"),
}


@dataclass(frozen=True)
class Point:
    """Of a scatter: x, y, and the text that shows when one points at it."""

    x: float
    y: float
    told: str


@dataclass(frozen=True)
class Bar:
    """Of a bar chart: its height, its series, and the text that shows when one points at it."""

    height: float
    series: str
    told: str


def bars(values: Sequence[Bar], ylabel: str, xlabel: str) -> str:
    """One bar for each value, in order, coloured by series; logarithmic where values span more than a decade."""
    with _drawing(2.6) as (axes, svg):
        names = list(dict.fromkeys(bar.series for bar in values))
        log = _spans_decades([bar.height for bar in values])
        heights = [bar.height for bar in values if bar.height > 0]
        least = max(min(heights, default=1.0), max(heights, default=1.0) / MOST_SPAN)
        for index, name in enumerate(names):
            own = [(x, bar) for x, bar in enumerate(values) if bar.series == name]
            drawn = axes.bar(
                [x for x, _ in own], [max(bar.height, least) if log else bar.height for _, bar in own],
                width=0.8, color=SERIES[index % len(SERIES)], label=name,
            )  # fmt: skip
            svg.tell(drawn.patches, [bar.told for _, bar in own])
        if log:
            axes.set_yscale("log")
            axes.set_ylim(bottom=least / 1.5)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        axes.margins(x=0.01)
        if len(names) > 1:
            axes.figure.legend(
                loc="outside upper right", frameon=False, ncols=6, fontsize=8, labelcolor=_TEXT
            )
    return svg.text


MOST_SPAN = 1e6
"""Of a logarithmic axis; what is smaller is drawn at its foot: a weight that is on its grid has no error at all."""


def _spans_decades(heights: Sequence[float]) -> bool:
    positive = [height for height in heights if height > 0]
    return bool(positive) and max(positive) > 10 * min(positive)


def growth(points: Sequence[Point], ylabel: str, xlabel: str) -> str:
    """A line through points in order, the least of them marked."""
    with _drawing(2.6) as (axes, svg):
        axes.plot([p.x for p in points], [p.y for p in points], color=BLUE, linewidth=1)
        dots = [axes.plot([p.x], [p.y], "o", color=BLUE, markersize=2.5)[0] for p in points]
        svg.tell(dots, [p.told for p in points])
        axes.set(xlabel=xlabel, ylabel=ylabel)
        axes.margins(x=0.01)
    return svg.text


def histogram(edges: Sequence[float], before: Sequence[int], after: Sequence[int], xlabel: str) -> str:
    """Counts before (an area, where they are known) and after (a line), on a logarithmic axis."""
    with _drawing(2.2, width=4.5) as (axes, svg):
        if before:
            axes.stairs(before, edges, fill=True, color=GREY, alpha=0.45, label="before")
        axes.stairs(after, edges, color=BLUE, linewidth=1, label="after")
        axes.set_yscale("log", nonpositive="clip")
        axes.minorticks_off()
        axes.set_ylim(bottom=0.7)
        axes.set(xlabel=xlabel, ylabel="count")
        axes.legend(loc="upper right", frameon=False, fontsize=7, labelcolor=_TEXT)
    return svg.text


def trade(
    points: Sequence[tuple[float, float]],
    chosen: tuple[float, float],
    measure: str,
    surface: Surface = "inline",
) -> str:
    """Bytes of weights against predicted loss, for the best choices of other budgets, and what was chosen.

    Args:
        points: (bytes, loss); a loss of 0 is drawn at the foot, since losses span decades.
        chosen: likewise.
    """
    every = sorted([*points, chosen])
    foot = min((loss for _, loss in every if loss > 0), default=1.0) / 2
    with _drawing(3.4, surface=surface) as (axes, svg):
        sizes, losses = [size / 1e6 for size, _ in every], [max(loss, foot) for _, loss in every]
        axes.plot(sizes, losses, color=BLUE, linewidth=1)
        dots = [
            axes.plot([x], [y], "o", color=BLUE, markersize=3)[0] for x, y in zip(sizes, losses, strict=True)
        ]
        svg.tell(dots, [_told(size, loss, measure) for size, loss in every])
        place = (chosen[0] / 1e6, max(chosen[1], foot))
        (dot,) = axes.plot([place[0]], [place[1]], "o", color=RED, markersize=7)
        svg.tell([dot], [f"chosen: {_told(*chosen, measure)}"])
        right = place[0] > (min(sizes) + max(sizes)) / 2
        axes.annotate(
            f"chosen: {_told(*chosen, measure)}", place, (-8 if right else 8, 8), textcoords="offset points",
            ha="right" if right else "left", fontsize=8, color=_TEXT,
        )  # fmt: skip
        axes.set_yscale("log")
        axes.set(xlabel="MB of quantized weights", ylabel=f"predicted {measure}")
    return svg.text


def _told(size: float, loss: float, measure: str) -> str:
    return f"{size / 1e6:.4g} MB, {measure} {loss:.3g}"


@dataclass(frozen=True)
class Panel:
    """One of several figures side by side: its title, and numbers by the name of their line."""

    title: str
    lines: Sequence[tuple[str, Sequence[float]]]


def shares_within(panels: Sequence[Panel], xlabel: str, ylabel: str, surface: Surface = "inline") -> str:
    """The share of numbers that are at most x, for each line of each panel."""
    with _drawing(2.8, surface=surface, columns=len(panels)) as (every, svg):
        for axes, panel in zip(every, panels, strict=True):
            for place, (name, values) in enumerate(panel.lines):
                axes.ecdf(values, label=name, color=SERIES[place % len(SERIES)], linewidth=1.2)
            axes.set(title=panel.title, xlabel=xlabel, ylabel=ylabel)
            axes.title.set_color(_TEXT)
            if len(panel.lines) > 1:
                axes.legend(frameon=False, fontsize=8, labelcolor=_TEXT)
    return svg.text


class _Svg:
    """A figure's text, once it is drawn, and what its marks tell."""

    def __init__(self) -> None:
        self.text = ""
        self._titles: list[str] = []

    def tell(self, marks: Sequence[Any], told: Sequence[str]) -> None:
        """Marks (artists) that show a text when one points at them."""
        for mark, text in zip(marks, told, strict=True):
            mark.set_gid(f"told-{len(self._titles)}-")
            self._titles.append(text)

    def finish(self, drawn: str, surface: Surface) -> None:
        text = drawn[drawn.index("<svg") :]
        for index, title in enumerate(self._titles):
            mark = f'<g id="told-{index}-">'
            text = text.replace(mark, f"<g><title>{escape(title)}</title>", 1)
        referred = set(re.findall(r"#(\w+)", text))
        text = re.sub(r' id="([^"]+)"', lambda found: found[0] if found[1] in referred else "", text)
        for stand_in, colour in zip((_TEXT, _LINES), _COLOURS[surface], strict=True):
            text = text.replace(stand_in, colour)
        self.text = text


_SETTINGS: Any = {
    "svg.fonttype": "none", "svg.hashsalt": "qcompiler", "font.size": 9, "font.family": "sans-serif",
}  # fmt: skip


_MARGINS = {"top": 0.9, "right": 0.985, "wspace": 0.25}
"""Shares of the figure; fixed, since to find them by drawing takes as long as to draw."""


@contextmanager
def _drawing(
    height: float, width: float = WIDTH, surface: Surface = "inline", columns: int | None = None
) -> Iterator[tuple[Any, _Svg]]:
    """Axes to draw on (with ``columns`` a list of them), and the text that they become on the way out."""
    svg = _Svg()
    with rc_context(_SETTINGS):
        figure = Figure(figsize=(width, height))
        figure.subplots_adjust(**_MARGINS, left=0.6 / width, bottom=0.5 / height)
        every = figure.subplots(1, columns or 1, squeeze=False)[0]
        for axes in every:
            _plain(axes)
        if surface == "inline":
            figure.patch.set_alpha(0)
        yield (every[0] if columns is None else list(every)), svg
        target = io.StringIO()
        figure.savefig(
            target, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
        svg.finish(target.getvalue(), surface)


def _plain(axes: Any) -> None:
    """Two sides, in the page's colours, and lines across."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(_LINES)
    axes.tick_params(colors=_TEXT, which="both", labelsize=8)
    axes.xaxis.label.set_color(_TEXT)
    axes.yaxis.label.set_color(_TEXT)
    axes.grid(axis="y", color=_LINES, linewidth=0.5)
    axes.set_axisbelow(True)
    axes.patch.set_alpha(0)
