"""QuantScheme: what is stored for a weight (bits, granularity, zero points, type of the scales).

Letters: N outputs, K reduction, G groups along K.
"""

from dataclasses import dataclass, replace
from enum import Enum
from typing import Literal, get_args

from qcompiler.errors import SchemeError

ScaleDtype = Literal["float32", "float16", "bfloat16"]
Dtype = Literal["int", "nf4", "fp4", "e2m1", "e4m3", "e5m2"]
"""What a code means: an integer, an entry of one of the tables in ``codebook``, or a float of 8 bits (``float8``)."""
FLOAT8: tuple[Dtype, ...] = ("e4m3", "e5m2")
ZeroPoint = Literal["int", "float"]
"""What a zero point may be: one of the codes, or any number."""
GroupAxis = Literal["input", "output"]
"""What a group holds: weights of neighbouring input channels K of one row, or of neighbouring rows N of one input channel."""

BITS = (1, 2, 3, 4, 8)
TWO_LEVEL_BITS = (2, 3, 4)
SCALE_BLOCK = 256
"""Scales that share a step where scales are themselves quantized (QLoRA, section 3)."""
SMALLEST_GROUP = 16
"""The least that ADJUST goes down to: a float32 scale for 16 weights already costs 2 bits a weight."""

SCALE_BYTES: dict[ScaleDtype, int] = {"float32": 4, "float16": 2, "bfloat16": 2}


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
    2^(bits - 1), and scales may be negative (``signed_scales``).
    ``zero_point`` "float" stores them in the type of the scales, so that a range need neither hold 0 nor begin at a code.
    ``two_level`` stores scales and minima as whole numbers (see ``two_level``).
    ``group_axis`` "output" has groups of rows: scales are [G, K], and the weight is stored as that of the transpose, ``turned``.

    With ``dtype`` "e4m3" or "e5m2" a code is a float of 8 bits, w = float8(code) * scale (see ``float8``).
    With another ``dtype`` than "int" a code is the index of a table, w = table[code] * scale, and groups are blocks of the row-major weight
    (see ``codebook``); ``double_quant`` stores their scales in 8 bits.

    Raises:
        SchemeError: bits, group size or scale type that we cannot store.
    """

    bits: int
    symmetric: bool
    granularity: Granularity = Granularity.GROUP
    group_size: int | None = None
    scale_dtype: ScaleDtype = "float32"
    dtype: Dtype = "int"
    double_quant: bool = False
    zero_point: ZeroPoint = "int"
    two_level: bool = False
    group_axis: GroupAxis = "input"

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
        if self.bits == 1 and self.symmetric and not self.is_codebook:
            raise SchemeError(
                "bits: 1 has no middle for a symmetric weight; set symmetric: false (zero_point: float gives a group any two values)"
            )
        self._check_dtype()
        self._check_zero_point()
        self._check_two_level()
        self._check_group_axis()

    def _check_dtype(self) -> None:
        if self.dtype not in get_args(Dtype):
            raise SchemeError(
                f"dtype: {self.dtype} is not supported; use one of {', '.join(get_args(Dtype))}"
            )
        if not self.is_codebook and self.double_quant:
            what = "integers" if self.dtype == "int" else "8-bit floats"
            raise SchemeError(f"double_quant: {what} keep float scales; use it with dtype nf4 or fp4")
        if self.is_float8:
            self._check_float8()
        if not self.is_codebook:
            return
        if self.bits != 4:
            raise SchemeError(f"dtype: {self.dtype} has 4 bits, not {self.bits}; set bits: 4 or dtype: int")
        if not self.symmetric:
            raise SchemeError(f"dtype: {self.dtype} has no zero points; set symmetric: true or dtype: int")
        if self.granularity is not Granularity.GROUP:
            raise SchemeError(
                f"dtype: {self.dtype} has a scale for each block of weights, not for each {self.granularity.value}; "
                "set group_size to a number"
            )

    def _check_float8(self) -> None:
        if self.bits != 8:
            raise SchemeError(f"dtype: {self.dtype} has 8 bits, not {self.bits}; set bits: 8 or dtype: int")
        if not self.symmetric:
            raise SchemeError(f"dtype: {self.dtype} has no zero points; set symmetric: true or dtype: int")
        if self.granularity is Granularity.GROUP:
            raise SchemeError(
                f"dtype: {self.dtype} has a scale for each output or one for all, not for each group; "
                "set group_size: channel or tensor"
            )

    def _check_zero_point(self) -> None:
        if self.zero_point not in get_args(ZeroPoint):
            raise SchemeError(
                f"zero_point: {self.zero_point} is not supported; use one of {', '.join(get_args(ZeroPoint))}"
            )
        if self.zero_point == "int":
            return
        if self.symmetric or self.dtype != "int":
            raise SchemeError(
                "zero_point: float, but there are none; set symmetric: false with dtype: int, or zero_point: int"
            )
        if self.granularity is not Granularity.GROUP:
            raise SchemeError(
                f"zero_point: float is stored for each group, not for each {self.granularity.value}; "
                "set group_size to a number"
            )

    def _check_two_level(self) -> None:
        if not self.two_level:
            return
        if self.dtype != "int" or self.bits not in TWO_LEVEL_BITS:
            what = f"{self.bits} bits" if self.dtype == "int" else f"dtype {self.dtype}"
            raise SchemeError(
                f"two_level: scales of two levels are not stored with {what}; set dtype: int and bits: "
                f"{', '.join(map(str, TWO_LEVEL_BITS))} (for 8 bits scale_dtype: float16 is the same size), or two_level: false"
            )
        if self.has_float_zero_points or self.granularity is not Granularity.GROUP:
            raise SchemeError(
                "two_level: minima take the place of zero points, for each group; set zero_point: int and a group_size"
            )

    def _check_group_axis(self) -> None:
        if self.group_axis not in get_args(GroupAxis):
            raise SchemeError(
                f"group_axis: {self.group_axis} is not supported; use one of {', '.join(get_args(GroupAxis))}"
            )
        if self.group_axis == "input":
            return
        if self.is_codebook or self.two_level or self.granularity is not Granularity.GROUP:
            raise SchemeError(
                f"group_axis: output is for groups of integers, not for {self.label}; "
                "set dtype: int, two_level: false and group_size to a number, or group_axis: input"
            )

    @property
    def is_codebook(self) -> bool:
        """Whether codes are indices of a table."""
        return self.dtype != "int" and not self.is_float8

    @property
    def is_float8(self) -> bool:
        """Whether codes are floats of 8 bits."""
        return self.dtype in FLOAT8

    @property
    def has_float_zero_points(self) -> bool:
        """Whether zero points are numbers of the scales' type."""
        return self.zero_point == "float"

    @property
    def signed_scales(self) -> bool:
        """Whether scales may be negative: of symmetric integers, whose codes reach one further down than up; the sign turns them round.

        Not with 8 bits for a channel or tensor: a sign gains nothing there, and integer kernels elsewhere may want positive ones.
        """
        groups = self.granularity is Granularity.GROUP
        return self.symmetric and self.dtype == "int" and (groups or self.bits < 8)

    @property
    def groups_rows(self) -> bool:
        """Whether a group holds weights of several rows."""
        return self.group_axis == "output"

    @property
    def turned(self) -> "QuantScheme":
        """Of the transposed weight."""
        return replace(self, group_axis="input" if self.groups_rows else "output")

    @property
    def max_code(self) -> int:
        return (1 << self.bits) - 1

    @property
    def midpoint(self) -> int:
        """The zero point of a symmetric scheme."""
        return 1 << (self.bits - 1)

    @property
    def label(self) -> str:
        """Short text for logs and reports, such as "int4 g64 asym" or "nf4 g64"."""
        if self.is_codebook:
            return f"{self.dtype} g{self.group_size}{' dq' if self.double_quant else ''}"
        width = f"g{self.group_size}" if self.granularity is Granularity.GROUP else self.granularity.value
        if self.is_float8:
            return f"{self.dtype} {width}"
        width += "-out" if self.groups_rows else ""
        extra = " two-level" if self.two_level else " float-zp" if self.has_float_zero_points else ""
        return f"int{self.bits} {width} {'sym' if self.symmetric else 'asym'}{extra}"

    def group_width(self, k: int) -> int:
        """Weights of one row that share a scale; the last group of a row may hold fewer."""
        return k if self.group_size is None else self.group_size

    def groups(self, k: int) -> int:
        """Groups in one row of K weights (1 for channel and tensor)."""
        return 1 if self.group_size is None else -(-k // self.group_size)

    @property
    def level_bits(self) -> int:
        """Bits of a two-level scale's code."""
        return 4 if self.bits == 2 else 6

    @property
    def super_groups(self) -> int:
        """Groups that share the step of two-level scales."""
        return 16 if self.group_size is not None and self.group_size <= 16 else 8

    def supers(self, n: int, k: int) -> int:
        """Super-blocks S of an [N, K] weight with two-level scales."""
        return -(-n * self.groups(k) // self.super_groups)

    @property
    def stored_middle(self) -> int:
        """The middle of the codes as they are stored: of four bits for three, of two for one."""
        return 1 << (self.storage_bits - 1)

    @property
    def storage_bits(self) -> int:
        """Bits that one code takes in a packed layout: three-bit codes are stored in four, one-bit codes in two."""
        return self.bits + 1 if self.bits in (1, 3) else self.bits

    def blocks(self, n: int, k: int) -> int:
        """Blocks in an [N, K] codebook weight."""
        return -(-n * k // self.group_width(k))

    def scale_shape(self, n: int, k: int) -> tuple[int, int]:
        """Shape of the scales (and zero points) of an [N, K] integer weight."""
        if self.groups_rows:
            return self.groups(n), k
        return (1, 1) if self.granularity is Granularity.TENSOR else (n, self.groups(k))

    def stored_bytes(self, n: int, k: int) -> int:
        """Bytes of an [N, K] weight: dense codes (short groups padded to whole ones), scales and zero points.

        Three bits count as four, one as two: no layout here stores them closer.
        """
        if self.groups_rows:
            return self.turned.stored_bytes(k, n)
        if self.is_codebook:
            blocks = self.blocks(n, k)
            scales = blocks * SCALE_BYTES[self.scale_dtype]
            return -(-n * k // 2) + (blocks + 4 * -(-blocks // SCALE_BLOCK) if self.double_quant else scales)
        rows, groups = self.scale_shape(n, k)
        width = k if self.group_size is None else groups * self.group_size
        bits = self.storage_bits
        codes = n * -(-width * bits // 8)
        if self.two_level:
            level = self.supers(n, k) * (self.super_groups * self.level_bits // 8 + 2)
            return codes + (level if self.symmetric else 2 * level)
        scales = rows * groups * SCALE_BYTES[self.scale_dtype]
        zero_points = 0 if self.symmetric else rows * -(-groups * bits // 8)
        return codes + scales + (scales if self.has_float_zero_points else zero_points)

    def bits_per_weight(self, n: int, k: int) -> float:
        """Stored bits for each weight, scales and zero points included."""
        return 8 * self.stored_bytes(n, k) / (n * k)


def fit_group(
    scheme: QuantScheme, shape: tuple[int, int], fallback: GroupFallback, where: str
) -> tuple[QuantScheme, str | None]:
    """The scheme to use for a weight of ``shape`` (N, K), and the reason when the shape made it differ or padded.

    Blocks of a codebook run on from row to row, so any K takes them. ADJUST halves the group size until it
    divides K (N for groups of rows); where that would take it below SMALLEST_GROUP, the last group stays short, as with PAD.

    Raises:
        SchemeError: the group size does not divide K and the fallback is ERROR.
    """
    group = scheme.group_size
    letter, k = ("N", shape[0]) if scheme.groups_rows else ("K", shape[1])
    if group is None or k % group == 0 or scheme.is_codebook:
        return scheme, None
    if fallback is GroupFallback.ERROR:
        raise SchemeError(
            f"{where}: {letter}={k} is not a multiple of group_size={group}; use one that divides {k}, "
            f"or set group_fallback: {GroupFallback.ADJUST.value}"
        )
    if fallback is GroupFallback.ADJUST:
        size = group
        while size % 2 == 0 and size // 2 >= SMALLEST_GROUP:
            size //= 2
            if k % size == 0:
                reason = f"group_size {group} does not divide {letter}={k}: {size} used"
                return replace(scheme, group_size=size), reason
    return (
        scheme,
        f"group_size {group} does not divide {letter}={k}: the last group holds {k % group} weights",
    )
