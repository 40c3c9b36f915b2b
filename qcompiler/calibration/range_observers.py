"""Ranges of activations, gathered batch by batch in bounded memory: two numbers a tensor, or a histogram of a few thousand counts.

    minmax      the smallest and the largest number seen
    average     the average of each batch's smallest and largest, in which a batch weighs the less the longer it is past:
                m_n = sum_i (1 - c)^(n - i) x_i / sum_i (1 - c)^(n - i), i = 1..n. Up to about 1 / c batches that is their mean, afterwards
                the moving average of Jacob et al. 2018, section 3.1 (divided as in Kingma and Ba 2015, section 3, so that the first batch,
                which a plain moving average begins with, weighs no more than others)
    percentile  what cuts off a share of the numbers at the ends
    entropy     what loses least of the distribution (KL divergence; Migacz 2017)
    mse         what costs least squared error of rounding

The last three are searches over a histogram, in ``quant.range_choice``.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from qcompiler.calibration.observers import NOT_FINITE
from qcompiler.errors import CalibrationError
from qcompiler.quant.histogram import Histogram
from qcompiler.quant.range_choice import entropy_range, mse_range, percentile_range
from qcompiler.quant.ranges import Range

RangeMethod = Literal["minmax", "average", "percentile", "entropy", "mse"]
OF_HISTOGRAMS: tuple[RangeMethod, ...] = ("percentile", "entropy", "mse")
BLOCK = 1 << 16  # numbers turned to float32 at a time: what is computed of them stays in a core's cache

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class RangeOptions:
    """How ranges are found.

    Attributes:
        percentile: percent of the numbers that the range holds (``percentile``).
        averaging: c, the weight of the last of many batches (``average``); 0.01 as in ONNX Runtime.
        bins: of a histogram, at least (``percentile``, ``entropy``, ``mse``); at most twice as many.
    Raises:
        ValueError: an option outside of its bounds.
    """

    percentile: float = 99.99
    averaging: float = 0.01
    bins: int = 2048

    def __post_init__(self) -> None:
        if not 0 < self.percentile <= 100:
            raise ValueError(f"percentile must be above 0 and at most 100, not {self.percentile}")
        if not 0 < self.averaging <= 1:
            raise ValueError(f"averaging must be above 0 and at most 1, not {self.averaging}")
        if self.bins < 2:
            raise ValueError(f"bins must be at least 2, not {self.bins}")


class RangeObserver:
    """The range of one tensor.

    Args:
        method: see above.
        where: the value's name, for errors.
        options: of the method.
    """

    def __init__(self, method: RangeMethod, where: str, options: RangeOptions | None = None) -> None:
        self._method = method
        self._where = where
        self._options = options or RangeOptions()
        self._histogram = Histogram(self._options.bins) if method in OF_HISTOGRAMS else None
        self._extremes: Range | None = None
        self._average = _Average(self._options.averaging)
        self._batches = 0
        self._numbers = 0

    @property
    def batches(self) -> int:
        """How many arrays with at least one number were seen."""
        return self._batches

    @property
    def numbers(self) -> int:
        """How many numbers were seen."""
        return self._numbers

    def add(self, array: Array) -> None:
        """Take in a batch: any float type and shape; one without numbers counts for nothing.

        Raises:
            CalibrationError: NaN or infinity, or numbers that are not floats.
        """
        _check_floats(array, self._where)
        if array.size == 0:
            return
        lowest, highest = math.inf, -math.inf
        with np.errstate(over="ignore"):  # of float64: refused as infinite
            for block in _blocks(array, self._where):
                lowest, highest = min(lowest, float(block.min())), max(highest, float(block.max()))
                if self._histogram is not None:
                    self._histogram.add(block)
        extremes = Range(lowest, highest)
        self._batches += 1
        self._numbers += array.size
        self._extremes = extremes if self._extremes is None else self._extremes.joined(extremes)
        self._average.add(extremes)

    def range(self, bits: int = 8, symmetric: bool = False) -> Range | None:
        """The range by the method; None when nothing was seen.

        Args:
            bits: of the codes that are to cover it (``entropy``, ``mse``).
            symmetric: whether these lie symmetrically about 0 (``percentile``, ``entropy``, ``mse``).
        """
        if self._extremes is None or self._method == "minmax":
            return self._extremes
        if self._histogram is None:
            return self._average.range()
        bins = self._histogram.bins
        assert bins is not None  # something was seen
        if self._method == "percentile":
            return percentile_range(bins, self._options.percentile, symmetric)
        choose = entropy_range if self._method == "entropy" else mse_range
        return choose(bins, bits, symmetric)


class ChannelRangeObserver:
    """The range of each channel of a tensor, each as of a tensor of its own.

    Args:
        method: as of RangeObserver; with one of ``OF_HISTOGRAMS`` each channel has a histogram, 32 KiB at most by default.
        where: the value's name, for errors.
        axis: of the channels; a negative one counts from the last.
        options: of the method.
    """

    def __init__(
        self, method: RangeMethod, where: str, axis: int, options: RangeOptions | None = None
    ) -> None:
        self._method = method
        self._where = where
        self._axis = axis
        self._options = options or RangeOptions()
        self._channels: list[RangeObserver] = []

    def add(self, array: Array) -> None:
        """Take in a batch: any float type, as many channels as the first.

        Raises:
            CalibrationError: NaN or infinity, numbers that are not floats, no such axis, or another number of channels.
        """
        _check_floats(array, self._where)
        if not -array.ndim <= self._axis < array.ndim:
            raise CalibrationError(
                f"{self._where}: has {array.ndim} dimensions, so no channels along axis {self._axis}; give an axis that it has"
            )
        count = array.shape[self._axis]
        if not self._channels:
            self._channels = [
                RangeObserver(self._method, f"{self._where}, channel {index}", self._options)
                for index in range(count)
            ]
        if count != len(self._channels):
            raise CalibrationError(
                f"{self._where}: {count} channels along axis {self._axis}, {len(self._channels)} in earlier batches; "
                "give an axis of fixed size, or take one range for the tensor"
            )
        for observer, channel in zip(self._channels, np.moveaxis(array, self._axis, 0), strict=True):
            observer.add(channel)

    def ranges(self, bits: int = 8, symmetric: bool = False) -> list[Range] | None:
        """The range of each channel; None when nothing was seen. The arguments are those of ``RangeObserver.range``."""
        found = [observer.range(bits, symmetric) for observer in self._channels]
        seen = [one for one in found if one is not None]
        return seen if seen else None


class _Average:
    """The average of each end over batches, m_n in the equation on top."""

    def __init__(self, averaging: float) -> None:
        self._averaging = averaging
        self._ends = np.zeros(2)
        self._weight = 0.0

    def add(self, extremes: Range) -> None:
        kept = (1 - self._averaging) * self._weight
        self._weight = kept + 1
        # As a step from the last average, so that equal batches leave it as it is, and the sum cannot overflow.
        self._ends += (np.array([extremes.lowest, extremes.highest]) - self._ends) / self._weight

    def range(self) -> Range:
        return Range(float(self._ends[0]), float(self._ends[1]))


def _check_floats(array: Array, where: str) -> None:
    # Types of ml_dtypes, bfloat16 among them, have kind V.
    if array.dtype.kind not in "fV" or not np.can_cast(array.dtype, np.float64, "safe"):
        raise CalibrationError(f"{where}: holds {array.dtype}; only float tensors have ranges, leave it out")


def _blocks(array: Array, where: str) -> Iterator[npt.NDArray[np.float32]]:
    """The numbers as float32, a block at a time, in whatever order they lie in memory; a block lives until the next."""
    iterator: Any = np.nditer(
        array,
        flags=["external_loop", "buffered"],
        op_dtypes=[np.dtype(np.float32)],
        casting="same_kind",
        order="K",
        buffersize=BLOCK,
    )
    for block in iterator:
        # Both are NaN where there is one; of float64, what float32 does not hold has become infinite.
        if not (np.isfinite(block.min()) and np.isfinite(block.max())):
            raise CalibrationError(f"{where}: {NOT_FINITE}")
        yield block
