"""Rows for the summary: some of the trade, and the choice."""

from qcompiler.passes.assign_bits import MixedResult
from qcompiler.report.trade_rows import ROWS, trade_rows


def mixed(trade: list[tuple[int, float]], chosen: tuple[int, float]) -> MixedResult:
    return MixedResult("output", "kl", 4, (4, 8), (), (), *chosen, tuple(trade))


TRADE = [(10**6 * size, 10.0 ** (1 - size / 10)) for size in range(20, 61, 2)]


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
