"""What calibration knows about the input of one linear, or of one convolution."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]


@dataclass(eq=False)
class InputStatistics:
    """Statistics of the M rows x [K] that a linear received.

    Attributes:
        rows: M, how many rows were seen.
        hessian: float32 [K, K], mean of x x^T.
        mean_abs: float32 [K], mean of |x|.
        max_abs: float32 [K], largest |x|.
        lowest, highest, mean: float32 [K], of x.
        mean_square: float32 [K], mean of x^2; the diagonal of the Hessian for those who need no more of it.
        remaining: float32 [K], the mean square that the channels rounded later cannot explain: what an error
            in channel k costs under a quantizer that makes up for it (GPTQ).
        sample: float32 [R, K], some of the rows, evenly spaced.
        derived: what algorithms computed from these, for the next weight that reads the same input; it lives as
            long as they do.
    """

    rows: int
    hessian: FloatArray | None = None
    mean_abs: FloatArray | None = None
    max_abs: FloatArray | None = None
    mean_square: FloatArray | None = None
    remaining: FloatArray | None = None
    sample: FloatArray | None = None
    lowest: FloatArray | None = None
    highest: FloatArray | None = None
    mean: FloatArray | None = None
    derived: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)

    def diagonal(self) -> FloatArray | None:
        """The mean of x^2 for each input channel, float32 [K]; None when it was not gathered."""
        if self.mean_square is not None:
            return self.mean_square
        return None if self.hessian is None else np.diagonal(self.hessian)

    def scaled(self, scale: npt.NDArray[np.floating]) -> "InputStatistics":
        """The statistics of x / scale, scale [K] positive; ``remaining`` has to be found anew."""
        s = np.asarray(scale, dtype=np.float32)
        return InputStatistics(
            rows=self.rows,
            hessian=None if self.hessian is None else _divided(self.hessian, s),
            mean_abs=None if self.mean_abs is None else self.mean_abs / s,
            max_abs=None if self.max_abs is None else self.max_abs / s,
            mean_square=None if self.mean_square is None else self.mean_square / (s * s),
            sample=None if self.sample is None else self.sample / s,
            lowest=None if self.lowest is None else self.lowest / s,
            highest=None if self.highest is None else self.highest / s,
            mean=None if self.mean is None else self.mean / s,
        )

    def shifted(self, shift: npt.NDArray[np.floating]) -> "InputStatistics":
        """The statistics of x - shift, shift [K]; ``remaining`` has to be found anew, and ``mean_abs`` is that of the sampled rows.

        Raises:
            ValueError: there is no mean, lowest and highest, or no sample.
        """
        if self.mean is None or self.lowest is None or self.highest is None or self.sample is None:
            raise ValueError("statistics without the ranges and means of channels cannot be shifted")
        z = np.asarray(shift, dtype=np.float32)
        lowest, highest, mean, sample = self.lowest - z, self.highest - z, self.mean - z, self.sample - z
        hessian = self.hessian
        if hessian is not None:  # E (x - z)(x - z)^T = E x x^T - m z^T - z m^T + z z^T
            hessian = hessian - np.outer(self.mean, z) - np.outer(z, mean)
        square = self.mean_square
        if square is not None:
            square = np.maximum(square - z * (2 * self.mean - z), 0)
        return InputStatistics(
            rows=self.rows,
            hessian=hessian,
            mean_abs=np.abs(sample).mean(axis=0),
            max_abs=np.maximum(highest, -lowest),
            mean_square=square,
            sample=sample,
            lowest=lowest,
            highest=highest,
            mean=mean,
        )


@dataclass(frozen=True, slots=True, eq=False)
class GroupedStatistics:
    """Of a convolution with G groups of channels: each group of outputs sees rows of its own.

    Attributes:
        rows: how many each group saw.
        hessian: float32 [G, K, K], mean of x x^T of each group; outputs n N/G to (n + 1) N/G - 1 see the n-th.
    """

    rows: int
    hessian: FloatArray


def _divided(hessian: FloatArray, s: FloatArray) -> FloatArray:
    divided = hessian / s[:, None]
    divided /= s[None, :]
    return divided
