"""Options of a search for scales over shrunk ranges, each refitted to its codes in closed form."""

from dataclasses import dataclass

from qcompiler.algorithms.arrays import Device
from qcompiler.algorithms.limits import check_at_least, check_share


@dataclass(frozen=True, slots=True)
class RangeSearchOptions:
    """How scales are searched.

    Attributes:
        steps: how many ranges are tried, from the full one (or a little above it) downward.
        shrink: the smallest of them, as a share of the full one.
        rounds: of refitting.
        weighted: weigh errors by the channels' mean squares when there are statistics.
        device: where the maths runs.
    Raises:
        SchemeError: a number outside what it can be.
    """

    steps: int
    shrink: float
    rounds: int = 2
    weighted: bool = True
    device: Device = "cpu"

    def __post_init__(self) -> None:
        check_at_least(self, steps=1, rounds=0)
        check_share(self, "shrink")
