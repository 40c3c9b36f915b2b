"""Rows of a table that differ in their names alone, shown as one."""

from collections.abc import Callable, Hashable, Iterable
from dataclasses import replace
from typing import Any, ClassVar, Protocol, TypeVar


class _Row(Protocol):
    """A frozen dataclass with a name."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def name(self) -> str: ...


Row = TypeVar("Row", bound=_Row)


def folded(rows: Iterable[Row], likeness: Callable[[Row], Hashable | None]) -> list[Row]:
    """The rows without a likeness in order, then one for each likeness: "name and 3 more"."""
    alone: list[Row] = []
    groups: dict[Hashable, list[Row]] = {}
    for row in rows:
        like = likeness(row)
        if like is None:
            alone.append(row)
        else:
            groups.setdefault(like, []).append(row)
    for members in groups.values():
        first, more = members[0], len(members) - 1
        alone.append(replace(first, name=f"{first.name} and {more} more") if more else first)
    return alone
