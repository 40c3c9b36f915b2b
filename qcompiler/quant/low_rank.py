"""A part of low rank beside the codes of a weight, in floats: W ~ base + A B, A [N, r], B [r, K].

It is added to what the codes mean. Letters: N outputs, K reduction, r rank.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qcompiler.errors import SchemeError
from qcompiler.quant.affine import check_held
from qcompiler.quant.scheme import SCALE_BYTES, ScaleDtype

Float = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class LowRank:
    """A B.

    Attributes:
        left: A, float32 [N, r]; values that ``dtype`` holds exactly.
        right: B, float32 [r, K], likewise.
    Raises:
        SchemeError: types, shapes or values that are none of these.
    """

    left: Float
    right: Float
    dtype: ScaleDtype

    def __post_init__(self) -> None:
        for name, part in (("left", self.left), ("right", self.right)):
            if part.dtype != np.float32 or part.ndim != 2:
                raise SchemeError(f"{name}: {part.dtype}{part.shape}; must be float32 of two dimensions")
            check_held(part, self.dtype, name)
        if self.left.shape[1] != self.right.shape[0] or not self.rank:
            raise SchemeError(
                f"left {self.left.shape}, right {self.right.shape}; must be [N, r] and [r, K], r at least 1"
            )

    @property
    def rank(self) -> int:
        """r."""
        rank: int = self.left.shape[1]
        return rank

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return self.left.shape[0], self.right.shape[1]

    @property
    def label(self) -> str:
        """Short text for reports: "rank 16"."""
        return f"rank {self.rank}"

    @property
    def stored_bytes(self) -> int:
        """Bytes of both factors."""
        return low_rank_bytes(self.rank, *self.shape, self.dtype)

    def dense(self, rows: slice) -> Float:
        """Some rows of A B."""
        product: Float = self.left[rows] @ self.right
        return product


def low_rank_bytes(rank: int, n: int, k: int, dtype: ScaleDtype) -> int:
    """Bytes of the factors of an [N, K] part of that rank."""
    return rank * (n + k) * SCALE_BYTES[dtype]
