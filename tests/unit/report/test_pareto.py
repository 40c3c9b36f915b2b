"""The drawn trade: every point at its place, the choice marked; rows for the summary."""

import itertools
import re
from typing import Any
from xml.etree import ElementTree

import pytest

from qcompiler.report.pareto import BOTTOM, HEIGHT, LEFT, RIGHT, ROWS, TOP, WIDTH, pareto_svg, trade_rows

SVG = "{http://www.w3.org/2000/svg}"


def mixed(trade: list[tuple[int, float]], chosen: tuple[int, float], measure: str = "kl") -> dict[str, Any]:
    return {"measure": measure, "trade": trade, "bytes": chosen[0], "loss": chosen[1]}


TRADE = [(10**6 * size, 10.0 ** (1 - size / 10)) for size in range(20, 61, 2)]


def test_points_lie_where_their_size_and_loss_say() -> None:
    drawn = ElementTree.fromstring(pareto_svg(mixed(TRADE, TRADE[5])))
    dots = drawn.findall(f"{SVG}circle")
    places = [(float(dot.attrib["cx"]), float(dot.attrib["cy"])) for dot in dots]
    assert len(dots) == len(TRADE) + 1 and places[-1] == places[5]
    xs, ys = zip(*places[:-1], strict=True)
    # Sizes are at equal steps and losses at equal ratios: so are the points, to the rounding of 0.1.
    assert {round(b - a) for a, b in itertools.pairwise(xs)} == {round((xs[-1] - xs[0]) / (len(xs) - 1))}
    assert {round(b - a) for a, b in itertools.pairwise(ys)} == {round((ys[-1] - ys[0]) / (len(ys) - 1))}
    assert xs[0] >= LEFT and xs[-1] <= WIDTH - RIGHT and ys[0] >= TOP and ys[-1] <= HEIGHT - BOTTOM
    (line,) = drawn.findall(f"{SVG}polyline")
    assert len(line.attrib["points"].split()) == len(TRADE)


def test_the_choice_is_told_and_nothing_is_loaded_from_elsewhere() -> None:
    text = pareto_svg(mixed(TRADE, (31_500_000, 0.005), "relative error"))
    assert "chosen: 31.5 MB, relative error 0.005" in text
    assert not re.findall(r"href|url\(|<script|@import", text)
    assert text == pareto_svg(mixed(TRADE, (31_500_000, 0.005), "relative error"))


@pytest.mark.parametrize(
    "trade",
    [[(1000, 0.5)], [(1000, 0.0)], [(1000, 0.0), (2000, 0.0)], [(0, 0.0)], [(5, 1e-12), (10**12, 30.0)]],
    ids=["one", "no loss", "no loss anywhere", "nothing", "wide"],
)
def test_any_trade_is_drawn_inside_the_frame(trade: list[tuple[int, float]]) -> None:
    drawn = ElementTree.fromstring(pareto_svg(mixed(trade, trade[0])))
    for dot in drawn.findall(f"{SVG}circle"):
        assert LEFT <= float(dot.attrib["cx"]) <= WIDTH - RIGHT
        assert TOP <= float(dot.attrib["cy"]) <= HEIGHT - BOTTOM


def test_rows_span_the_trade_and_hold_the_choice() -> None:
    rows = trade_rows(mixed(TRADE, (31_500_000, 0.005)))
    assert (rows[0][0], rows[-1][0]) == (TRADE[0][0], TRADE[-1][0])
    assert len(rows) == ROWS + 1
    assert [row for row in rows if row[2]] == [(31_500_000, 0.005, True)]
    assert rows == sorted(rows)


def test_a_short_trade_is_shown_whole() -> None:
    assert trade_rows(mixed(TRADE[:3], TRADE[1])) == [
        (*TRADE[0], False), (*TRADE[1], True), (*TRADE[2], False),
    ]  # fmt: skip
