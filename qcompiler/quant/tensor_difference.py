"""How far a tensor is from its reference, over arrays that come one after another: sums alone are kept, in float64.

Beside the plain figures it says what is left of the difference once the reference and the tensor may differ by one positive factor
a channel, and whether rows have kept their length: what moves scales between layers (AWQ, SmoothQuant, equalization) or turns
activations (rotations) leaves a tensor with other numbers that mean the same.
"""

import math
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Sums = npt.NDArray[np.float64]
_BLOCK = 1 << 20  # elements: 8 MB in float64
_INFINITE = 1e30  # a mask's "minus infinity" is often the least float; its square would be all of the signal


_FEWEST = 2  # numbers a channel: a factor takes one n-th of the noise of n numbers, so that no fit of noise gains 6 dB
_MOST_CHANNELS = 1 << 14


ChannelAxis = Literal["last", "first", "both"]
"""Channels are of the last axis, of the one behind the batch, or of these two together, the last one within the first."""


class TensorDifference:
    """Sums over pairs of arrays of one shape, of any number type."""

    def __init__(self) -> None:
        self.elements = 0
        self.unlike = 0
        """Numbers of which one side alone is NaN or infinite."""
        self.max_error = 0.0
        self.least, self.greatest = math.inf, -math.inf
        self._error = self._signal = self._noise = self._dot = self._square = 0.0
        self._rows = self._row_error = 0.0
        self._channels: dict[str, Sums] = {}  # which axis -> [3, C]: of r * r, r * a, a * a

    def add(self, reference: Array, approximation: Array) -> None:
        """Count in one pair.

        Raises:
            ValueError: their shapes differ.
        """
        if reference.shape != approximation.shape:
            raise ValueError(f"{list(reference.shape)} and {list(approximation.shape)} are not one shape")
        width = int(reference.shape[-1]) if reference.ndim else 1
        if reference.size == 0:
            return
        rows, others = reference.reshape(-1, width), approximation.reshape(-1, width)
        step = max(1, _BLOCK // width)
        for start in range(0, len(rows), step):
            self._add_rows(*self._finite(rows[start : start + step], others[start : start + step]))
        if reference.ndim >= 3:
            for r_one, a_one in zip(reference, approximation, strict=True):
                self._add_planes(r_one, a_one)

    def _finite(self, reference: Array, approximation: Array) -> tuple[Sums, Sums]:
        """As ``_known``; counts numbers of which one side alone is none, and keeps the range of the known ones."""
        r, a = reference.astype(np.float64), approximation.astype(np.float64)
        finite = _is_known(r) & _is_known(a)
        if finite.any():
            self.least = min(self.least, float(r.min(where=finite, initial=math.inf)))
            self.greatest = max(self.greatest, float(r.max(where=finite, initial=-math.inf)))
        if finite.all():
            return r, a
        alike = (r == a) | (np.isnan(r) & np.isnan(a))
        self.unlike += int((~finite & ~alike).sum())
        return np.where(finite, r, 0.0), np.where(finite, a, 0.0)

    @staticmethod
    def _known(reference: Array, approximation: Array) -> tuple[Sums, Sums]:
        """As float64, with zeros where either is NaN or infinite."""
        r, a = reference.astype(np.float64), approximation.astype(np.float64)
        finite = _is_known(r) & _is_known(a)
        return (r, a) if finite.all() else (np.where(finite, r, 0.0), np.where(finite, a, 0.0))

    def _add_rows(self, r: Sums, a: Sums) -> None:
        error = a - r
        products = np.stack([r * r, r * a, a * a])
        per_channel = products.sum(axis=1)
        self._count_channels("last", per_channel)
        signal, dot, square = per_channel.sum(axis=1).tolist()
        self._signal, self._dot, self._square = self._signal + signal, self._dot + dot, self._square + square
        self._noise += float(np.square(error).sum())
        self._error += float(error.sum())
        self.elements += r.size
        self.max_error = max(self.max_error, float(np.abs(error).max()))
        lengths = np.sqrt(products[(0, 2), :, :].sum(axis=2))
        self._rows += float(np.square(lengths[0]).sum())
        self._row_error += float(np.square(lengths[0] - lengths[1]).sum())

    def _add_planes(self, reference: Array, approximation: Array) -> None:
        """One sample [C, ..., W] of images, or of heads: channels are of the first axis, or of the first and the last together."""
        count, width = reference.shape[0], reference.shape[-1]
        joint = reference.ndim >= 3 and count * width <= _MOST_CHANNELS
        sums = np.zeros((3, count, width if joint else 1))
        for at in range(count):
            r, a = self._known(reference[at].reshape(-1, width), approximation[at].reshape(-1, width))
            products = np.stack([r * r, r * a, a * a])
            sums[:, at] = products.sum(axis=1) if joint else products.sum(axis=(1, 2))[:, None]
        self._count_channels("first", sums.sum(axis=2))
        if joint:
            self._count_channels("both", sums.reshape(3, -1))

    def _count_channels(self, axis: str, sums: Sums) -> None:
        known = self._channels.get(axis)
        if known is None:
            self._channels[axis] = sums
        elif known.shape == sums.shape:
            known += sums
        else:  # an axis that is as long as the data
            self._channels[axis] = np.zeros((3, 0))

    @property
    def sqnr_db(self) -> float:
        """10 log10(sum r^2 / sum (r - a)^2); infinity when all are equal, -infinity when one side alone is not finite."""
        return -math.inf if self.unlike else _decibel(self._signal, self._noise)

    @property
    def cosine(self) -> float:
        """Of the angle between all of both; 1 when both are 0."""
        if self._signal == 0.0 or self._square == 0.0:
            return 1.0 if self._signal == self._square else 0.0
        return self._dot / math.sqrt(self._signal * self._square)

    @property
    def mean_error(self) -> float:
        """Mean of tensor minus reference: what a bias would take back."""
        return self._error / self.elements if self.elements else 0.0

    @property
    def rescaled_sqnr_db(self) -> float:
        """SQNR after the one positive factor a channel that fits best: channels of the last axis, of the second, or of both together."""
        best = -math.inf
        for sums in self._channels.values():
            if sums.shape[1] * _FEWEST > self.elements:
                continue  # so few numbers a channel that a factor for each says little
            signal, dot, square = sums
            fits = (dot > 0) & (square > 0)
            left = signal - np.where(fits, dot * dot / np.where(fits, square, 1.0), 0.0)
            # A difference of sums: below their rounding nothing is known.
            noise = max(float(np.maximum(left, 0.0).sum()), 1e-14 * float(signal.sum()))
            if signal.size:
                best = max(best, _decibel(float(signal.sum()), noise))
        return -math.inf if self.unlike else best

    def channels(self, axis: ChannelAxis) -> int:
        """How many channels along ``axis`` were summed; 0 where they are not known, or numbers a channel are too few to say much."""
        sums = self._channels.get(axis)
        return 0 if sums is None or sums.shape[1] * _FEWEST > self.elements else sums.shape[1]

    def most_rescaled(self, axis: ChannelAxis, count: int) -> npt.NDArray[np.int64]:
        """Sorted: the ``count`` channels along ``axis`` of which a positive factor for each explains the most noise."""
        _, dot, square = self._channels[axis]
        # signal - 2 dot + square is the noise; what the best factor leaves of it is signal - dot^2 / square.
        explained = square - 2 * dot + np.where(dot > 0, dot * dot / np.where(square > 0, square, 1.0), 0.0)
        return np.sort(np.argsort(-explained, kind="stable")[:count])

    def scaled_noise(self, axis: ChannelAxis, factors: Sums) -> Sums:
        """[C]: what is left of the noise in each channel along ``axis`` of the tensor times ``factors``, float64 [C]; nothing is fitted."""
        signal, dot, square = self._channels[axis]
        left: Sums = np.maximum(signal - 2 * factors * dot + factors * factors * square, 0.0)
        return left

    def scaled_sqnr_db(self, axis: ChannelAxis, factors: Sums) -> float:
        """SQNR of the tensor times ``factors``, likewise."""
        signal = float(self._channels[axis][0].sum())
        # A difference of sums: below their rounding nothing is known.
        noise = max(float(self.scaled_noise(axis, factors).sum()), 1e-14 * signal)
        return -math.inf if self.unlike else _decibel(signal, noise)

    @property
    def length_error(self) -> float:
        """Relative root mean square of what rows (along the last axis) have gained or lost in length."""
        return math.sqrt(self._row_error / self._rows) if self._rows else 0.0


def _is_known(array: Sums) -> npt.NDArray[np.bool_]:
    with np.errstate(invalid="ignore"):
        known: npt.NDArray[np.bool_] = np.abs(array) < _INFINITE
    return known


def _decibel(signal: float, noise: float) -> float:
    if noise == 0.0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0.0 else -math.inf
