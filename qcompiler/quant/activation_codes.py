"""ActivationCodes: what the codes of one tensor of activations mean, x = (c - z) s, and the interval that they cover.

Codes are of 8 or 16 bits, unsigned or signed. Symmetric ones have the middle code for 0: what hardware without zero points takes.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from qcompiler.quant.ranges import Range, code_limits

ActivationType = Literal["uint8", "int8", "uint16", "int16"]


def bits_of(kind: ActivationType) -> int:
    """Of a code."""
    return 16 if kind.endswith("16") else 8


def is_signed(kind: ActivationType) -> bool:
    """Whether codes may be below 0."""
    return not kind.startswith("u")


@dataclass(frozen=True)
class ActivationCodes:
    """A type, a scale in units of the activation for one step, and the code of 0.

    Raises:
        ValueError: the scale is no positive number of float32, or the zero point is no code.
    """

    kind: ActivationType
    scale: np.float32
    zero_point: int

    def __post_init__(self) -> None:
        if not (np.isfinite(self.scale) and self.scale >= np.finfo(np.float32).tiny):
            raise ValueError(f"the scale {self.scale} is no positive number that float32 holds")
        first, last = self.limits
        if not first <= self.zero_point <= last:
            raise ValueError(
                f"the zero point {self.zero_point} is no code of {self.kind} ({first} to {last})"
            )

    @classmethod
    def covering(cls, found: Range, kind: ActivationType, symmetric: bool) -> "ActivationCodes":
        """Those that cover a range; see ``Range.scale_and_zero_point``."""
        scale, zero_point = found.scale_and_zero_point(bits_of(kind), is_signed(kind), symmetric)
        return cls(kind, scale, zero_point)

    @property
    def limits(self) -> tuple[int, int]:
        """The smallest and the largest code."""
        return code_limits(bits_of(self.kind), is_signed(self.kind))

    @property
    def covered(self) -> Range:
        """From what the smallest code means to what the largest does, as floats have it."""
        first, last = self.limits
        wide = float(self.scale)
        return Range((first - self.zero_point) * wide, (last - self.zero_point) * wide)

    @property
    def numpy_zero_point(self) -> "np.ndarray[tuple[()], np.dtype[np.integer]]":
        """As QuantizeLinear takes it: a scalar of the codes' type."""
        return np.array(self.zero_point, np.dtype(self.kind))
