"""Range: the interval that an activation's codes cover, and the one home of what scale and zero point follow from it.

    asymmetric: s = (highest - lowest) / (c1 - c0),  z = round(c0 - lowest / s)     over [lowest, highest] widened to hold 0
    symmetric:  s = max(|lowest|, |highest|) / (2^(b-1) - 1),  z = the middle code

c0 and c1 are the smallest and largest of the 2^b codes: 0 and 2^b - 1, or, signed, -2^(b-1) and 2^(b-1) - 1. The range holds 0, and z is
a code, so that 0 is held exactly: what pads a convolution and what a Relu cuts off costs nothing (Jacob et al. 2018, section 2.1).
"""

import math
from dataclasses import dataclass

import numpy as np

BITS = (8, 16)
"""Widths of codes that activations are stored in."""


@dataclass(frozen=True)
class Range:
    """The numbers from ``lowest`` to ``highest``, in units of the activation.

    Raises:
        ValueError: an end is not finite, or ``lowest`` is above ``highest``.
    """

    lowest: float
    highest: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.lowest) and math.isfinite(self.highest)):
            raise ValueError(f"the range {self.lowest} to {self.highest} is not finite")
        if self.lowest > self.highest:
            raise ValueError(f"the range {self.lowest} to {self.highest} ends below its beginning")

    def joined(self, other: "Range") -> "Range":
        """The smallest range that holds both."""
        return Range(min(self.lowest, other.lowest), max(self.highest, other.highest))

    def scale_and_zero_point(self, bits: int, signed: bool, symmetric: bool) -> tuple[np.float32, int]:
        """What a code is worth, and which code is 0; the equations are on top.

        A range of nothing but 0, or too small for a float32 scale, has scale 1; its zero point is 0, or 2^(b-1) where codes are
        unsigned and ``symmetric``.

        Args:
            bits: of a code, 8 or 16.
            signed: codes below 0.
            symmetric: the zero point is the middle code: 0 where codes are signed, otherwise 2^(b-1).
        Raises:
            ValueError: other ``bits``; or a scale that float32 does not hold.
        """
        first, last = code_limits(bits, signed)
        middle = first + 2 ** (bits - 1)
        lowest, highest = min(float(self.lowest), 0.0), max(float(self.highest), 0.0)
        if symmetric:
            step = max(-lowest, highest) / (last - middle)
        else:
            step = highest / (last - first) - lowest / (last - first)  # the difference alone may overflow
        if step > float(np.finfo(np.float32).max):
            raise ValueError(
                f"the range {self.lowest} to {self.highest} needs a scale that float32 does not hold"
            )
        scale = np.float32(step)
        if not scale >= np.finfo(np.float32).tiny:
            return np.float32(1), middle if symmetric else 0
        if symmetric:
            return scale, middle
        return scale, int(np.clip(np.rint(first - lowest / float(scale)), first, last))


def code_limits(bits: int, signed: bool) -> tuple[int, int]:
    """The smallest and the largest code.

    Raises:
        ValueError: ``bits`` is not 8 or 16.
    """
    if bits not in BITS:
        raise ValueError(f"activations have codes of 8 or 16 bits, not {bits}")
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
