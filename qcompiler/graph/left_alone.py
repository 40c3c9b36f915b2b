"""What could have been turned and is not, with the reason; what has one reason in common is told once."""

from collections.abc import Sequence
from dataclasses import dataclass

from qcompiler.errors import CalibrationError


@dataclass(frozen=True)
class LeftAlone:
    """A stream, or heads, that no rotation was made for.

    Attributes:
        where: "stream of 576 channels from model.embed_tokens".
        fact: why; "{}" stands where ``about`` is named.
        about: the node, value or weight that decided it, which differs from layer to layer.
    """

    where: str
    fact: str
    about: str = ""

    @property
    def line(self) -> str:
        """For people."""
        return f"{self.where}: {self.fact.replace('{}', self.about)}"


class RefusalError(CalibrationError):
    """Why a stream or heads are left alone; ``fact`` and ``about`` as there."""

    def __init__(self, fact: str, about: str | None = "") -> None:
        super().__init__(fact.replace("{}", about or ""))
        self.fact, self.about = fact, about or ""


def lines(left: Sequence[LeftAlone]) -> list[str]:
    """One line for each fact, about the first that it holds for, and how many there are."""
    by_fact: dict[str, list[LeftAlone]] = {}
    for each in left:
        by_fact.setdefault(each.fact, []).append(each)
    return [
        f"{found[0].line} ({len(found)} such)" if len(found) > 1 else found[0].line
        for found in by_fact.values()
    ]
