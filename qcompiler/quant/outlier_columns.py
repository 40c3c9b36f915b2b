"""Whole columns of a weight kept in floats beside its codes: W ~ base + the columns, where the base is 0.

A column multiplies one channel of the activations; those that are kept are multiplied with that channel as it is, unrounded.
Letters: N outputs, K reduction, C columns.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qcompiler.errors import SchemeError
from qcompiler.quant.affine import check_held, store_values
from qcompiler.quant.scheme import SCALE_BYTES, ScaleDtype

Float = npt.NDArray[np.float32]
INDEX_BYTES = 8  # int64, which Gather reads everywhere


@dataclass(frozen=True, slots=True, eq=False)
class OutlierColumns:
    """The columns.

    Attributes:
        values: float32 [N, C]; values that ``dtype`` holds exactly.
        places: int64 [C], rising, 0..K - 1: where they belong.
        k: K.
    Raises:
        SchemeError: types, shapes or values that are none of these.
    """

    values: Float
    places: npt.NDArray[np.int64]
    k: int
    dtype: ScaleDtype

    def __post_init__(self) -> None:
        if self.values.dtype != np.float32 or self.values.ndim != 2:
            raise SchemeError(
                f"values: {self.values.dtype}{self.values.shape}; must be float32 of two dimensions"
            )
        if self.places.dtype != np.int64 or self.places.shape != self.values.shape[1:] or not self.count:
            raise SchemeError(
                f"places: {self.places.dtype}{self.places.shape} for values {self.values.shape}; "
                "must be int64, one for each column, at least one"
            )
        if self.places[0] < 0 or self.places[-1] >= self.k or (np.diff(self.places) <= 0).any():
            raise SchemeError(f"places: must rise, from 0 to {self.k - 1}")
        check_held(self.values, self.dtype, "values")

    @classmethod
    def of(cls, weight: Float, places: npt.NDArray[np.int64], dtype: ScaleDtype) -> "OutlierColumns":
        """Those columns of ``weight`` [N, K], in the nearest numbers that ``dtype`` holds."""
        return cls(store_values(weight[:, places], dtype), places, weight.shape[1], dtype)

    @property
    def count(self) -> int:
        """C."""
        return int(self.places.size)

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return self.values.shape[0], self.k

    @property
    def label(self) -> str:
        """Short text for reports: "7 outlier columns"."""
        return columns_label(self.count)

    @property
    def stored_bytes(self) -> int:
        """Bytes of values and places."""
        return self.values.size * SCALE_BYTES[self.dtype] + self.count * INDEX_BYTES

    def dense(self, rows: slice) -> Float:
        """Some rows of the columns, among zeros."""
        taken = self.values[rows]
        made = np.zeros((taken.shape[0], self.k), np.float32)
        made[:, self.places] = taken
        return made


def columns_label(count: int) -> str:
    """Short text for so many of them: "7 outlier columns"."""
    return f"{count} outlier column{'' if count == 1 else 's'}"
