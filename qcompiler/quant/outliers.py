"""A few numbers beside the codes of a weight, in floats: W ~ base + S, S [N, K] sparse.

They are added to what the codes mean. Letters: N outputs, K reduction, E numbers.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qcompiler.errors import SchemeError
from qcompiler.quant.affine import check_held, store_values
from qcompiler.quant.scheme import SCALE_BYTES, ScaleDtype

Float = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Outliers:
    """S, row after row.

    Attributes:
        values: float32 [E]; values that ``dtype`` holds exactly.
        columns: int32 [E], rising within a row, 0..K - 1.
        offsets: int32 [N + 1]: the numbers of row n are those from offsets[n] up to offsets[n + 1].
        k: K.
    Raises:
        SchemeError: types, shapes or values that are none of these.
    """

    values: Float
    columns: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int32]
    k: int
    dtype: ScaleDtype

    def __post_init__(self) -> None:
        for name, part, kind in (
            ("values", self.values, np.float32),
            ("columns", self.columns, np.int32),
            ("offsets", self.offsets, np.int32),
        ):
            if part.dtype != kind or part.ndim != 1:
                raise SchemeError(
                    f"{name}: {part.dtype}{part.shape}; must be {kind.__name__} of one dimension"
                )
        count = self.values.size
        ends = self.offsets[[0, -1]].tolist() if self.offsets.size > 1 else None
        if ends != [0, count] or (np.diff(self.offsets) < 0).any() or self.columns.size != count:
            raise SchemeError(
                f"offsets: do not divide {count} values and {self.columns.size} columns into rows"
            )
        steps = np.diff(self.columns.astype(np.int64) + self.k * self._rows())
        if count and (self.columns.min() < 0 or self.columns.max() >= self.k or (steps <= 0).any()):
            raise SchemeError(f"columns: must rise within each row, from 0 to {self.k - 1}")
        check_held(self.values, self.dtype, "values")

    @classmethod
    def at(cls, mask: npt.NDArray[np.bool_], values: Float, dtype: ScaleDtype) -> "Outliers":
        """Where ``mask`` [N, K] holds, the nearest numbers to those of ``values`` [N, K] that ``dtype`` holds."""
        rows, columns = np.nonzero(mask)
        offsets = np.searchsorted(rows, np.arange(mask.shape[0] + 1)).astype(np.int32)
        held = store_values(values[rows, columns], dtype)
        return cls(held, columns.astype(np.int32), offsets, mask.shape[1], dtype)

    @property
    def count(self) -> int:
        """E."""
        return int(self.values.size)

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return self.offsets.size - 1, self.k

    @property
    def label(self) -> str:
        """Short text for reports: "1 % outliers"."""
        n, k = self.shape
        return outliers_label(self.count, n * k)

    @property
    def stored_bytes(self) -> int:
        """Bytes of values, columns and offsets."""
        return outlier_bytes(self.count, *self.shape, self.dtype)

    def dense(self, rows: slice) -> Float:
        """Some rows of S."""
        n, k = self.shape
        start, stop, _ = rows.indices(n)
        made = np.zeros((max(stop - start, 0), k), np.float32)
        taken = slice(self.offsets[start], self.offsets[max(stop, start)])
        made[self._rows()[taken] - start, self.columns[taken]] = self.values[taken]
        return made

    def _rows(self) -> npt.NDArray[np.int64]:
        """The row of each number."""
        return np.repeat(np.arange(self.offsets.size - 1), np.diff(self.offsets))


def outliers_label(count: int, size: int) -> str:
    """Short text for so many of ``size`` weights: "1 % outliers"."""
    return f"{100 * count / size:.2g} % outliers"


def outlier_bytes(count: int, n: int, k: int, dtype: ScaleDtype) -> int:
    """Bytes of so many outliers of an [N, K] weight: value, column (2 bytes up to 65536 of them), and an offset a row."""
    return count * (SCALE_BYTES[dtype] + np.dtype(column_type(k)).itemsize) + 4 * (n + 1)


def column_type(k: int) -> type[np.uint16] | type[np.int32]:
    """What holds a column of K."""
    return np.uint16 if k <= 1 << 16 else np.int32
