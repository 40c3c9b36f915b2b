"""Values of options on the command line that click has no type for."""

import re
from typing import Any

import click

_UNITS = {"k": 1000, "ki": 1 << 10, "m": 1000**2, "mi": 1 << 20, "g": 1000**3, "gi": 1 << 30}


class MemorySize(click.ParamType[int]):
    """``4GiB``, ``512MiB``, ``2GB`` -> bytes."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg]i?)b?", str(value).strip().lower())
        if match is None:
            self.fail(f"{value!r} is not a size; write it like 4GiB, 512MiB or 2GB", param, ctx)
        return int(float(match[1]) * _UNITS[match[2]])


class Dimension(click.ParamType[tuple[str, int]]):
    """``batch=4`` -> ("batch", 4)."""

    name = "dimension"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, int]:
        name, _, size = str(value).rpartition("=")
        if not name or not size.isdecimal() or int(size) < 1:
            self.fail(f"{value!r} is not NAME=SIZE; write it like batch=4, its size 1 or more", param, ctx)
        return name, int(size)


class Share(click.ParamType[float]):
    """``1%`` or ``0.01`` -> 0.01."""

    name = "share"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        match = re.fullmatch(r"(\d+(?:\.\d+)?|\.\d+)\s*(%?)", str(value).strip())
        share = float(match[1]) / (100 if match[2] else 1) if match else -1.0
        if not 0 <= share < 1:
            self.fail(f"{value!r} is not a share from 0 to below 1; write it like 1% or 0.01", param, ctx)
        return share


class Pattern(click.ParamType[re.Pattern[str]]):
    """A regular expression."""

    name = "regex"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> re.Pattern[str]:
        try:
            return re.compile(value)
        except re.error as error:
            self.fail(f"{value!r} is no regular expression: {error}", param, ctx)
