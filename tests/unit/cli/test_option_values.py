"""Values of options that click has no type for."""

import click
import pytest

from qcompiler.option_values import Share


@pytest.mark.parametrize(
    ("text", "share"), [("1%", 0.01), ("0.01", 0.01), (".5 %", 0.005), ("0", 0.0), ("0%", 0.0)]
)
def test_shares(text: str, share: float) -> None:
    assert Share().convert(text, None, None) == pytest.approx(share, rel=1e-12)


@pytest.mark.parametrize("text", ["", "%", "-1%", "100%", "1", "1e-2", "nan", "1%%", "one", "0.01kl", "1,5%"])
def test_no_shares(text: str) -> None:
    with pytest.raises(
        click.BadParameter, match="is not a share from 0 to below 1; write it like 1% or 0.01"
    ):
        Share().convert(text, None, None)
