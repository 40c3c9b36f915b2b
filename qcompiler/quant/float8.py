"""Weights and activations in 8-bit floats: w = float8(code) * scale (Micikevicius et al. 2022, "FP8 Formats for Deep Learning", table 1).

    e4m3: 4 bits of exponent, 3 of mantissa, up to 448, no infinity (ONNX's FLOAT8E4M3FN)
    e5m2: 5 and 2, up to 57344 (FLOAT8E5M2)

A scale brings the largest magnitude of what shares it to the largest number of the format: scale = max |w| / 448. Letters: N outputs, K
reduction.
"""

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from qcompiler.errors import SchemeError
from qcompiler.quant.affine import check_held, store_scale
from qcompiler.quant.scheme import Dtype, Granularity, QuantScheme, ScaleDtype

Float = npt.NDArray[np.float32]

TYPES: dict[Dtype, np.dtype[Any]] = {
    "e4m3": np.dtype(ml_dtypes.float8_e4m3fn),
    "e5m2": np.dtype(ml_dtypes.float8_e5m2),
}
LARGEST: dict[Dtype, float] = {"e4m3": 448.0, "e5m2": 57344.0}


@dataclass(frozen=True, slots=True, eq=False)
class Float8Tensor:
    """w = float8(code) * scale, a scale for each output or for all.

    Attributes:
        codes: uint8 [N, K], the bits of the numbers.
        scale: float32 [N, 1] ([1, 1] tensor), positive; values that scheme.scale_dtype holds exactly.
    Raises:
        SchemeError: types, shapes or numbers that disagree with the scheme.
    """

    scheme: QuantScheme
    codes: npt.NDArray[np.uint8]
    scale: Float

    def __post_init__(self) -> None:
        if not self.scheme.is_float8:
            raise SchemeError(f"{self.scheme.label}: its codes are no 8-bit floats; make an AffineTensor")
        if self.codes.dtype != np.uint8 or self.codes.ndim != 2:
            raise SchemeError(f"codes: {self.codes.dtype}{self.codes.shape}; must be uint8 [N, K]")
        expected = self.scheme.scale_shape(*self.codes.shape)
        if self.scale.dtype != np.float32 or self.scale.shape != expected:
            raise SchemeError(f"scale: {self.scale.dtype}{self.scale.shape}; must be float32{expected}")
        check_held(self.scale, self.scheme.scale_dtype, "scale")

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        n, k = self.codes.shape
        return n, k

    def dequantize(self, rows: slice | None = None) -> Float:
        """The weights, float32 [N, K], or those of some rows."""
        rows = slice(None) if rows is None else rows
        whole = self.scheme.granularity is Granularity.TENSOR
        values = self.codes[rows].view(TYPES[self.scheme.dtype]).astype(np.float32)
        values *= self.scale if whole else self.scale[rows]
        return values


def scale_of(largest: npt.NDArray[np.floating], dtype: Dtype, scale_dtype: ScaleDtype) -> Float:
    """The scales under which magnitudes up to ``largest`` fill the format; of nothing but 0 the smallest scale."""
    found: Float = store_scale(np.asarray(largest, np.float32) / np.float32(LARGEST[dtype]), scale_dtype)
    return found


def nearest_codes(shares: npt.NDArray[Any], dtype: Dtype) -> npt.NDArray[np.uint8]:
    """The codes nearest to ``shares`` = w / scale, half to even; what is larger than all numbers of the format becomes the largest."""
    largest = LARGEST[dtype]
    codes: npt.NDArray[np.uint8] = np.clip(shares, -largest, largest).astype(TYPES[dtype]).view(np.uint8)
    return codes
