"""Statistics of a linear's or convolution's input, gathered batch by batch in bounded memory: one K x K sum (for each group of channels),
a few sums of K, some rows."""

import numpy as np
import numpy.typing as npt

from qcompiler.algorithms import Need
from qcompiler.calibration.windows import Window
from qcompiler.errors import CalibrationError
from qcompiler.quant.statistics import GroupedStatistics, InputStatistics

NOT_FINITE = "NaN or infinity in the activations; check the calibration data, or the float model on it"
BLOCK_ROWS = 4096  # rows turned to float32 at a time
SAMPLED_ROWS = (
    256  # at least so many of those seen are kept, where an algorithm wants some, and at most twice as many
)


class InputObserver:
    """Adds up what `InputStatistics` holds.

    Rows of zeros, which pad an expert's share of the tokens, are not counted: they drive nothing.

    Args:
        k: channels of the input.
        needs: which statistics; nothing else is computed.
        where: the value's name, for errors.
    """

    def __init__(self, k: int, needs: frozenset[Need], where: str) -> None:
        self._where = where
        self._k = k
        self._rows = 0
        self._products = np.zeros((k, k), np.float32) if Need.HESSIAN in needs else None
        self._channels = Need.CHANNELS in needs
        self._sum_abs = np.zeros(k, np.float64)
        self._max_abs = np.zeros(k, np.float32)
        self._sum_square = np.zeros(k, np.float64)
        self._sum = np.zeros(k, np.float64)
        self._lowest = np.full(k, np.inf, np.float32)
        self._highest = np.full(k, -np.inf, np.float32)
        self._sample = RowSample(k) if Need.ROWS in needs else None

    def add(self, activation: npt.NDArray[np.generic]) -> None:
        """Take in rows: any float type, [..., K].

        Raises:
            CalibrationError: NaN or infinity, or rows of another width.
        """
        if activation.shape[-1:] != (self._k,):
            raise CalibrationError(
                f"{self._where}: the data gives {list(activation.shape)}, the weight takes rows of {self._k}"
            )
        flat = activation.reshape(-1, self._k)
        for start in range(0, len(flat), BLOCK_ROWS):
            rows = np.ascontiguousarray(flat[start : start + BLOCK_ROWS], dtype=np.float32)
            self._add_block(rows)

    def _add_block(self, rows: npt.NDArray[np.float32]) -> None:
        if not np.isfinite(rows).all():
            raise CalibrationError(f"{self._where}: {NOT_FINITE}")
        driven = rows.any(axis=1)
        if not driven.all():
            rows = rows[driven]
        if not len(rows):
            return
        self._rows += len(rows)
        if self._products is not None:
            self._products += rows.T @ rows
        if self._channels:
            self._sum += rows.sum(axis=0, dtype=np.float64)
            np.minimum(self._lowest, rows.min(axis=0), out=self._lowest)
            np.maximum(self._highest, rows.max(axis=0), out=self._highest)
            magnitude = np.abs(rows)
            self._sum_abs += magnitude.sum(axis=0, dtype=np.float64)
            np.maximum(self._max_abs, magnitude.max(axis=0), out=self._max_abs)
            self._sum_square += np.square(rows, out=magnitude).sum(axis=0, dtype=np.float64)
        if self._sample is not None:
            self._sample.add(rows)

    def statistics(self) -> InputStatistics | None:
        """What was seen; None when nothing was. The sums are given away: nothing can be added afterwards."""
        if self._rows == 0:
            return None
        if self._products is not None:
            self._products /= np.float32(self._rows)
        return InputStatistics(
            rows=self._rows,
            hessian=self._products,
            mean_abs=(self._sum_abs / self._rows).astype(np.float32) if self._channels else None,
            max_abs=self._max_abs if self._channels else None,
            mean_square=(self._sum_square / self._rows).astype(np.float32) if self._channels else None,
            sample=None if self._sample is None else self._sample.rows(),
            lowest=self._lowest if self._channels else None,
            highest=self._highest if self._channels else None,
            mean=(self._sum / self._rows).astype(np.float32) if self._channels else None,
        )


class WindowObserver:
    """The same of a convolution without groups of channels: its rows are the windows that its kernel sees.

    Args:
        as of ``InputObserver``.
    """

    def __init__(self, window: Window, k: int, needs: frozenset[Need], where: str) -> None:
        self._window = window
        self._rows = InputObserver(k, needs, where)
        self._where = where

    def add(self, activation: npt.NDArray[np.generic]) -> None:
        """Take in [batch, channels, *space].

        Raises:
            CalibrationError: NaN or infinity, or another shape.
        """
        self._rows.add(_windows(self._window, activation, self._where)[0])

    def statistics(self) -> InputStatistics | None:
        """As of ``InputObserver``."""
        return self._rows.statistics()


class GroupsObserver:
    """The Hessians of a convolution's groups of channels.

    Args:
        window: with more than one group.
        k: numbers of a window that one group sees.
        where: the value's name, for errors.
    """

    def __init__(self, window: Window, k: int, where: str) -> None:
        self._window = window
        self._where = where
        self._rows = 0
        self._products = np.zeros((window.groups, k, k), np.float32)

    def add(self, activation: npt.NDArray[np.generic]) -> None:
        """Take in [batch, channels, *space].

        Raises:
            CalibrationError: NaN or infinity, or another shape.
        """
        rows = _windows(self._window, activation, self._where)
        if not np.isfinite(rows).all():
            raise CalibrationError(f"{self._where}: {NOT_FINITE}")
        self._rows += rows.shape[1]
        self._products += rows.transpose(0, 2, 1) @ rows

    def statistics(self) -> GroupedStatistics | None:
        """What was seen; None when nothing was. The sums are given away: nothing can be added afterwards."""
        if self._rows == 0:
            return None
        self._products /= np.float32(self._rows)
        return GroupedStatistics(self._rows, self._products)


def _windows(window: Window, activation: npt.NDArray[np.generic], where: str) -> npt.NDArray[np.float32]:
    try:
        return window.rows(activation)
    except CalibrationError as error:
        raise CalibrationError(f"{where}: {error}") from error


class RowSample:
    """Evenly spaced rows of all that is seen: every n-th, n doubled whenever they become too many."""

    def __init__(self, k: int) -> None:
        self._kept = np.empty((2 * SAMPLED_ROWS, k), np.float32)
        self._count = 0
        self._stride = 1
        self._until_next = 0  # rows to pass over

    def add(self, rows: npt.NDArray[np.float32]) -> None:
        """Rows [.., K] in their order."""
        at = self._until_next
        while at < len(rows):
            if self._count == len(self._kept):
                self._count //= 2
                self._kept[: self._count] = self._kept[::2]
                self._stride *= 2
            self._kept[self._count] = rows[at]
            self._count += 1
            at += self._stride
        self._until_next = at - len(rows)

    def rows(self) -> npt.NDArray[np.float32]:
        """Those kept, float32 [R, K]."""
        return self._kept[: self._count].copy()
