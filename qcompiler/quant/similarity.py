"""SQNR and cosine of arrays that come one after another, as the outputs of a model do."""

import math

import numpy as np
import numpy.typing as npt


class Similarity:
    """Sums over pairs of arrays, in float64; an empty one is equal."""

    def __init__(self) -> None:
        self._signal = self._noise = self._dot = self._square = 0.0

    def add(self, reference: npt.NDArray[np.generic], approximation: npt.NDArray[np.generic]) -> None:
        """Count in one pair of arrays of one shape, of any number type; an infinity that both hold counts nothing."""
        r, a = reference.reshape(-1), approximation.reshape(-1)
        for start in range(0, r.size, 1 << 20):
            block = r[start : start + (1 << 20)].astype(np.float64)
            other = a[start : start + (1 << 20)].astype(np.float64)
            same = np.isinf(block) & (block == other)
            if same.any():
                block, other = block[~same], other[~same]
            with np.errstate(invalid="ignore"):  # an infinity of one side: told by what it comes to
                difference = block - other
                self._signal += float(block @ block)
                self._noise += float(difference @ difference)
                self._dot += float(block @ other)
                self._square += float(other @ other)

    @property
    def sqnr_db(self) -> float:
        """10 log10(sum r^2 / sum (r - a)^2); infinity when all were equal."""
        if self._noise == 0.0:
            return math.inf
        ratio = self._signal / self._noise if math.isfinite(self._signal) else 0.0
        return 10 * math.log10(ratio) if ratio > 0.0 else -math.inf

    @property
    def cosine(self) -> float:
        """Of the angle between all of the first and all of the second; 1 when both are 0, 0 when one holds infinity."""
        if self._signal == 0.0 or self._square == 0.0:
            return 1.0 if self._signal == self._square else 0.0
        if not math.isfinite(self._signal + self._square):
            return 0.0
        return self._dot / math.sqrt(self._signal * self._square)
