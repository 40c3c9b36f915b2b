"""Rows of a table that differ in their names alone."""

from dataclasses import dataclass

from qcompiler.report.folded import folded


@dataclass(frozen=True)
class Row:
    name: str
    reason: str


def test_like_rows_become_one_that_counts_them() -> None:
    rows = [Row("a", "x"), Row("b", ""), Row("c", "x"), Row("d", "y"), Row("e", "")]
    shown = folded(rows, lambda row: row.reason or None)
    assert [row.name for row in shown] == ["b", "e", "a and 1 more", "d"]
    assert folded(shown[:2], lambda row: None) == shown[:2]
