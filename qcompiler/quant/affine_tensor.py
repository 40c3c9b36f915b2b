"""A weight as affine codes, as it will be stored: w = (codes - zero_point) * scale."""

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from qcompiler.errors import SchemeError
from qcompiler.quant.affine import dequantize_codes
from qcompiler.quant.scheme import Granularity, QuantScheme

ZeroPoints: TypeAlias = npt.NDArray[np.uint8] | npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class AffineTensor:
    """w = (codes - zero_point) * scale, a scale for each group of a row, or of rows (``QuantScheme.group_axis``).

    Attributes:
        codes: uint8 [N, K], 0..2^bits - 1.
        scale: float32 [N, G] ([N, 1] channel, [1, 1] tensor, [G, K] groups of rows); values that scheme.scale_dtype holds exactly.
        zero_point: uint8 of scale's shape (float32, values that scheme.scale_dtype holds exactly, for float ones), or None: the
            midpoint 2^(bits - 1) (a symmetric scheme).
    Raises:
        SchemeError: types or shapes that disagree with the scheme.
    """

    scheme: QuantScheme
    codes: npt.NDArray[np.uint8]
    scale: npt.NDArray[np.float32]
    zero_point: ZeroPoints | None

    def __post_init__(self) -> None:
        if self.scheme.is_codebook:
            raise SchemeError(f"{self.scheme.label}: its codes are indices of a table; make a CodebookTensor")
        if self.scheme.is_float8:
            raise SchemeError(f"{self.scheme.label}: its codes are 8-bit floats; make a Float8Tensor")
        if self.scheme.two_level:
            raise SchemeError(f"{self.scheme.label}: its scales are of two levels; make a TwoLevelTensor")
        if self.codes.dtype != np.uint8 or self.codes.ndim != 2:
            raise SchemeError(f"codes: {self.codes.dtype}{self.codes.shape}; must be uint8 [N, K]")
        expected = self.scheme.scale_shape(*self.codes.shape)
        if self.scale.dtype != np.float32 or self.scale.shape != expected:
            raise SchemeError(f"scale: {self.scale.dtype}{self.scale.shape}; must be float32{expected}")
        if (self.zero_point is None) is not self.scheme.symmetric:
            raise SchemeError(
                f"zero_point: {self.scheme.label} must {'not ' * self.scheme.symmetric}have one"
            )
        kind = np.dtype(np.float32 if self.scheme.has_float_zero_points else np.uint8)
        if self.zero_point is not None and (
            self.zero_point.dtype != kind or self.zero_point.shape != expected
        ):
            raise SchemeError(
                f"zero_point: {self.zero_point.dtype}{self.zero_point.shape}; must be {kind}{expected}"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        n, k = self.codes.shape
        return n, k

    @property
    def code_zero_point(self) -> npt.NDArray[np.uint8] | None:
        """The codes that mean 0, uint8; None where that is the middle, or no code is certain to."""
        if self.zero_point is None or self.scheme.has_float_zero_points:
            return None
        return self.zero_point.astype(np.uint8, copy=False)

    def dequantize(self, rows: slice | None = None) -> npt.NDArray[np.float32]:
        """The weights, float32 [N, K], or those of some rows."""
        rows = slice(None) if rows is None else rows
        if self.scheme.groups_rows:
            return self._of_groups(rows)
        scale_rows = slice(None) if self.scheme.granularity is Granularity.TENSOR else rows
        zero_point = None if self.zero_point is None else self.zero_point[scale_rows]
        result: npt.NDArray[Any] = dequantize_codes(
            self.codes[rows], self.scale[scale_rows], zero_point, self.scheme
        )
        return result

    @property
    def turned(self) -> "AffineTensor":
        """The transpose [K, N]: the same numbers, with groups along its other axis."""
        zero_point = None if self.zero_point is None else self.zero_point.T
        return AffineTensor(self.scheme.turned, self.codes.T, self.scale.T, zero_point)

    def _of_groups(self, rows: slice) -> npt.NDArray[np.float32]:
        """Some rows, by way of the whole groups that hold them."""
        first, last, _ = rows.indices(self.shape[0])
        width = self.scheme.group_width(self.shape[0])
        groups = slice(first // width, -(-last // width))
        zero_point = None if self.zero_point is None else self.zero_point[groups]
        codes = self.codes[groups.start * width : groups.stop * width]
        whole = AffineTensor(self.scheme, codes, self.scale[groups], zero_point).turned
        start = groups.start * width
        return np.ascontiguousarray(whole.dequantize()[:, first - start : last - start].T)
