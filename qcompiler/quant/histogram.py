"""Histogram: how often numbers fall into bins, whose width doubles when numbers come to lie too far apart.

Bins are 2^e wide and their edges are whole multiples of that: a number x lies in bin floor(x / 2^e). To widen is to add up
neighbouring pairs, floor(i / 2), which is exact: no count is ever shared out between bins. And e is the smallest that holds all
numbers seen, so that the histogram of some numbers is the same in whatever order and batches they came. (Where bins are laid out
by the first batch's range, as in TensorRT's calibration and those after it, it depends on that batch.)
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FINEST = 24  # a bin is no narrower than 2^-24 of the largest number: float32 tells no more apart
SMALLEST_EXPONENT = -126  # of a bin's width: the smallest power of 2 whose inverse is a normal float32 too


@dataclass(frozen=True, eq=False)
class Bins:
    """What a histogram counted.

    Attributes:
        first: of the first bin, which begins at first * 2^exponent.
        exponent: a bin is 2^exponent wide.
        counts: int64 [n], of each bin; the first and the last are not 0.
        lowest: the smallest number seen.
        highest: the largest.
    """

    first: int
    exponent: int
    counts: npt.NDArray[np.int64]
    lowest: float
    highest: float

    def edges(self) -> npt.NDArray[np.float64]:
        """Float64 [n + 1]: where bins begin and end; the first begins with the smallest number, the last ends with the largest."""
        edges = np.ldexp(
            np.arange(self.first, self.first + len(self.counts) + 1, dtype=np.float64), self.exponent
        )
        edges[0], edges[-1] = self.lowest, self.highest
        return edges

    def magnitudes(self) -> "Bins":
        """The histogram of |x|: bin i below 0 holds what lies in bin -1 - i above it."""
        indices = np.arange(self.first, self.first + len(self.counts))
        indices = np.where(indices < 0, -1 - indices, indices)
        first = int(indices.min())
        counts = np.zeros(int(indices.max()) - first + 1, np.int64)
        np.add.at(counts, indices - first, self.counts)
        ends = abs(self.lowest), abs(self.highest)
        lowest = 0.0 if self.lowest < 0 < self.highest else min(ends)
        return Bins(first, self.exponent, counts, lowest, max(ends))


class Histogram:
    """Counts in bins that widen.

    Args:
        bins: so many are in use at least, and at most twice as many, unless float32 tells fewer numbers apart in the range.
    """

    def __init__(self, bins: int) -> None:
        self._most = 2 * bins
        self._bins: Bins | None = None

    @property
    def bins(self) -> Bins | None:
        """What was counted; None when nothing was."""
        return self._bins

    def add(self, values: npt.NDArray[np.float32]) -> None:
        """Count numbers of any shape, all finite."""
        if values.size == 0:
            return
        lowest, highest = float(values.min()), float(values.max())
        old = self._bins
        if old is not None:
            lowest, highest = min(lowest, old.lowest), max(highest, old.highest)
        exponent = _finest_exponent(lowest, highest, self._most)
        first, last = _bin_of(lowest, exponent), _bin_of(highest, exponent)
        places = values.reshape(-1) * np.float32(math.ldexp(1.0, -exponent))
        np.floor(places, out=places)
        places -= np.float32(first)  # exact: whole numbers up to 2^24
        counts = np.bincount(places.astype(np.intp), minlength=last - first + 1).astype(np.int64, copy=False)
        if old is not None:
            before = np.arange(old.first, old.first + len(old.counts)) >> (exponent - old.exponent)
            np.add.at(counts, before - first, old.counts)
        self._bins = Bins(first, exponent, counts, lowest, highest)


def _bin_of(value: float, exponent: int) -> int:
    return math.floor(math.ldexp(value, -exponent))


def _finest_exponent(lowest: float, highest: float, most: int) -> int:
    """The smallest e for which [lowest, highest] lies in at most ``most`` bins of width 2^e; it never falls when the range grows."""
    largest = max(abs(lowest), abs(highest))
    if largest == 0:
        return SMALLEST_EXPONENT
    exponent = max(SMALLEST_EXPONENT, math.frexp(largest)[1] - FINEST)
    if highest > lowest:
        exponent = max(
            exponent, math.frexp((highest - lowest) / most)[1] - 1
        )  # floor(log2): one too few at most
    while _bin_of(highest, exponent) - _bin_of(lowest, exponent) >= most:
        exponent += 1
    return exponent
