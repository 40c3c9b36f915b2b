"""Sizes as people read them."""

import pytest

from qcompiler.report.sizes import size_change


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [(683, 129, "5.3 times smaller"), (683, 1070, "1.6 times larger"), (10, 10, "1.0 times smaller")],
)
def test_what_grew_is_not_called_smaller(before: int, after: int, said: str) -> None:
    assert size_change(before, after, 1) == said
