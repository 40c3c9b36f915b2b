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
