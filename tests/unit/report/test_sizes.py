"""Sizes as people read them."""

import pytest

from qcompiler.report.sizes import counted, format_rate, size_change


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [(683, 129, "5.3 times smaller"), (683, 1070, "1.6 times larger"), (10, 10, "1.0 times smaller")],
)
def test_what_grew_is_not_called_smaller(before: int, after: int, said: str) -> None:
    assert size_change(before, after, 1) == said


@pytest.mark.parametrize(
    ("rate", "said"),
    [(17068.3, "17,070"), (999.96, "1,000"), (999.4, "999.4"), (88.246, "88.25"), (1.5e6, "1,500,000")],
)
def test_a_rate_has_no_exponent(rate: float, said: str) -> None:
    assert format_rate(rate) == said


def test_one_is_counted_as_one() -> None:
    assert (
        counted(1, "process", "processes") == "1 process"
        and counted(2, "process", "processes") == "2 processes"
    )
    assert counted(1, "feed") == "1 feed" and counted(0, "feed") == "0 feeds"
