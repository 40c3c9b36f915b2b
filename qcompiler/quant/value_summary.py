"""What the numbers of a value look like, over arrays that come one after another: sums alone are kept, in float64."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
_BLOCK = 1 << 20  # elements: 8 MB in float64


class ValueSummary:
    """Counts and sums; figures are of the finite numbers alone.

    Attributes:
        elements: numbers in all; nan, infinite and zeros: how many of them.
        least, greatest: of the finite ones.
    """

    def __init__(self) -> None:
        self.elements = self.nan = self.infinite = self.zeros = 0
        self.least, self.greatest = math.inf, -math.inf
        self._finite = 0
        self._sum = self._square = 0.0

    def add(self, array: Array) -> None:
        """Count in one array of any number type."""
        flat = array.reshape(-1)
        for start in range(0, flat.size, _BLOCK):
            block = flat[start : start + _BLOCK].astype(np.float64)
            finite = np.isfinite(block)
            self.nan += int(np.isnan(block).sum())
            self.infinite += int(np.isinf(block).sum())
            known = block[finite]
            self.elements += block.size
            self._finite += known.size
            if not known.size:
                continue
            self.zeros += int((known == 0).sum())
            self.least, self.greatest = (
                min(self.least, float(known.min())),
                max(self.greatest, float(known.max())),
            )
            self._sum += float(known.sum())
            self._square += float(known @ known)

    @property
    def mean(self) -> float:
        """0 without finite numbers."""
        return self._sum / self._finite if self._finite else 0.0

    @property
    def deviation(self) -> float:
        """Standard, around the mean."""
        if not self._finite:
            return 0.0
        return math.sqrt(max(self._square / self._finite - self.mean**2, 0.0))


class CodeSaturation:
    """Codes at an end of their range, where rounding has clamped; an end that is the zero point holds zeros, and does not count."""

    def __init__(self, zero_point: int) -> None:
        self.elements = self.saturated = 0
        self._zero_point = zero_point

    def add(self, codes: Array) -> None:
        """Count in one array of integers."""
        ends = np.iinfo(codes.dtype)
        self.elements += codes.size
        self.saturated += sum(
            int((codes == end).sum()) for end in (ends.min, ends.max) if end != self._zero_point
        )

    @property
    def share(self) -> float:
        """Of all codes."""
        return self.saturated / self.elements if self.elements else 0.0
