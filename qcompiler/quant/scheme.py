"""QuantScheme: what is stored for a weight (bits, granularity, zero points, type of the scales).

Letters: N outputs, K reduction, G groups along K.
"""

from dataclasses import dataclass, replace
from enum import Enum
from typing import Literal, get_args

from qcompiler.errors import SchemeError

ScaleDtype = Literal["float32", "float16", "bfloat16"]

BITS = (2, 3, 4, 8)
SMALLEST_GROUP = 16
"""The least that ADJUST goes down to: a float32 scale for 16 weights already costs 2 bits a weight."""

_SCALE_BYTES: dict[str, int] = {"float32": 4, "float16": 2, "bfloat16": 2}


class Granularity(str, Enum):
    """How many weights share one scale."""

    GROUP = "group"
    CHANNEL = "channel"
    TENSOR = "tensor"


class GroupFallback(str, Enum):
    """What to do when the group size does not divide K."""

    ADJUST = "adjust"
    PAD = "pad"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class QuantScheme:
    """Integer codes with one scale (and zero point) for each group: w = (code - zero_point) * scale.

    Codes are unsigned, 0..2^bits - 1. A symmetric scheme stores no zero points: they are the midpoint,
    2^(bits - 1).

    Raises:
        SchemeError: bits, group size or scale type that we cannot store.
    """

    bits: int
    symmetric: bool
    granularity: Granularity = Granularity.GROUP
    group_size: int | None = None
    scale_dtype: ScaleDtype = "float32"

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise SchemeError(f"bits: {self.bits} is not supported; use one of {', '.join(map(str, BITS))}")
        if self.granularity is Granularity.GROUP and (self.group_size is None or self.group_size < 1):
            raise SchemeError(
                f"group_size: {self.group_size} is not supported; use a positive number, channel or tensor"
            )
        if self.granularity is not Granularity.GROUP and self.group_size is not None:
            raise SchemeError(
                f"group_size: {self.group_size} has no meaning "
                f"with granularity {self.granularity.value}; leave it out"
            )
        if self.scale_dtype not in get_args(ScaleDtype):
            raise SchemeError(
                f"scale_dtype: {self.scale_dtype} is not supported; "
                f"use one of {', '.join(get_args(ScaleDtype))}"
            )

    @property
    def max_code(self) -> int:
        return (1 << self.bits) - 1

    @property
    def midpoint(self) -> int:
        """The zero point of a symmetric scheme."""
        return 1 << (self.bits - 1)

    @property
    def label(self) -> str:
        """Short text for logs and reports, such as "int4 g64 asym"."""
        width = f"g{self.group_size}" if self.granularity is Granularity.GROUP else self.granularity.value
        return f"int{self.bits} {width} {'sym' if self.symmetric else 'asym'}"

    def group_width(self, k: int) -> int:
        """Weights of one row that share a scale; the last group of a row may hold fewer."""
        return k if self.group_size is None else self.group_size

    def groups(self, k: int) -> int:
        """Groups in one row of K weights (1 for channel and tensor)."""
        return 1 if self.group_size is None else -(-k // self.group_size)

    def scale_shape(self, n: int, k: int) -> tuple[int, int]:
        """Shape of the scales (and zero points) of an [N, K] weight."""
        return (1, 1) if self.granularity is Granularity.TENSOR else (n, self.groups(k))

    def stored_bytes(self, n: int, k: int) -> int:
        """Bytes of an [N, K] weight: dense codes (short groups padded to whole ones), scales and zero points.

        Three bits count as three; a target that can only store four says so itself.
        """
        rows, groups = self.scale_shape(n, k)
        width = k if self.group_size is None else groups * self.group_size
        codes = n * -(-width * self.bits // 8)
        zero_points = 0 if self.symmetric else rows * -(-groups * self.bits // 8)
        return codes + rows * groups * _SCALE_BYTES[self.scale_dtype] + zero_points

    def bits_per_weight(self, n: int, k: int) -> float:
        """Stored bits for each weight, scales and zero points included."""
        return 8 * self.stored_bytes(n, k) / (n * k)


def fit_group(
    scheme: QuantScheme, k: int, fallback: GroupFallback, where: str
) -> tuple[QuantScheme, str | None]:
    """The scheme to use for rows of K weights, and the reason when K made it differ or padded.

    ADJUST halves the group size until it divides K; where that would take it below SMALLEST_GROUP, the last
    group stays short, as with PAD.

    Raises:
        SchemeError: the group size does not divide K and the fallback is ERROR.
    """
    group = scheme.group_size
    if group is None or k % group == 0:
        return scheme, None
    if fallback is GroupFallback.ERROR:
        raise SchemeError(
            f"{where}: K={k} is not a multiple of group_size={group}; use one that divides {k}, "
            f"or set group_fallback: {GroupFallback.ADJUST.value}"
        )
    if fallback is GroupFallback.ADJUST:
        size = group
        while size % 2 == 0 and size // 2 >= SMALLEST_GROUP:
            size //= 2
            if k % size == 0:
                reason = f"group_size {group} does not divide K={k}: {size} used"
                return replace(scheme, group_size=size), reason
    return scheme, f"group_size {group} does not divide K={k}: the last group holds {k % group} weights"
