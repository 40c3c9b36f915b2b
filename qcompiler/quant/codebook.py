"""Codebook weights: w = table[code] * scale, one scale for each block of the row-major weight [N, K].

Blocks run on from row to row, as in bitsandbytes and com.microsoft::MatMulBnb4: where the block size does not divide K a block ends in the
next row, and only the last block of the weight may be short. So any K takes any block size, and B = ceil(N K / g).

Tables: ``nf4`` of QLoRA (Dettmers et al. 2023, appendix E), the quantiles of a normal distribution; ``fp4`` of bitsandbytes and
MatMulBnb4, e2m1 over 6 but for its subnormal, which is 1/192; ``e2m1`` of OCP's MX formats over 6, where it is 1/12.

Generic over NumPy arrays and torch tensors.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from array_api_compat import array_namespace, is_torch_array

from qcompiler.errors import SchemeError
from qcompiler.quant.affine import Array, store_scale
from qcompiler.quant.scheme import SCALE_BLOCK, Dtype, QuantScheme, ScaleDtype

_NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
_FP4 = (0.0, 1 / 192, 2 / 3, 1.0, 1 / 3, 1 / 2, 1 / 6, 1 / 4)
_E2M1 = (0.0, 1 / 12, 1 / 6, 1 / 4, 1 / 3, 1 / 2, 2 / 3, 1.0)

TABLES: dict[Dtype, npt.NDArray[np.float32]] = {
    "nf4": np.array(_NF4, np.float32),
    "fp4": np.array([*_FP4, *(-value for value in _FP4)], np.float32),
    "e2m1": np.array([*_E2M1, *(-value for value in _E2M1)], np.float32),
}
"""What each code means, [16], of magnitude at most 1; the sign of fp4 and e2m1 is the highest bit of the code."""


@dataclass(frozen=True, slots=True, eq=False)
class DoubleQuantized:
    """Scales in 8 bits (QLoRA, section 3): scale = code * step, a step for every SCALE_BLOCK blocks.

    Attributes:
        codes: uint8 [B], 1..255: a scale is positive.
        step: float32 [ceil(B / SCALE_BLOCK)].
    """

    codes: npt.NDArray[np.uint8]
    step: npt.NDArray[np.float32]

    def scales(self, dtype: ScaleDtype) -> npt.NDArray[np.float32]:
        """The scales [B], float32 values that ``dtype`` holds."""
        steps = np.repeat(self.step, SCALE_BLOCK)[: self.codes.size]
        held: npt.NDArray[np.float32] = store_scale(self.codes * steps, dtype)
        return held


@dataclass(frozen=True, slots=True, eq=False)
class CodebookTensor:
    """w = table[code] * scale.

    Attributes:
        codes: uint8 [N, K], 0..15.
        scale: float32 [B]; values that scheme.scale_dtype holds exactly.
        double: what ``scale`` is stored as, or None: as it is.
    Raises:
        SchemeError: types or shapes that disagree with the scheme.
    """

    scheme: QuantScheme
    codes: npt.NDArray[np.uint8]
    scale: npt.NDArray[np.float32]
    double: DoubleQuantized | None = None

    def __post_init__(self) -> None:
        if not self.scheme.is_codebook:
            raise SchemeError(f"{self.scheme.label}: has no codebook; make an AffineTensor")
        if self.codes.dtype != np.uint8 or self.codes.ndim != 2:
            raise SchemeError(f"codes: {self.codes.dtype}{self.codes.shape}; must be uint8 [N, K]")
        expected = (self.scheme.blocks(*self.codes.shape),)
        if self.scale.dtype != np.float32 or self.scale.shape != expected:
            raise SchemeError(f"scale: {self.scale.dtype}{self.scale.shape}; must be float32{expected}")
        if (self.double is not None) is not self.scheme.double_quant:
            raise SchemeError(
                f"double: {self.scheme.label} must {'' if self.scheme.double_quant else 'not '}have it"
            )
        if self.double is not None and not np.array_equal(
            self.double.scales(self.scheme.scale_dtype), self.scale
        ):
            raise SchemeError("scale: is not what its 8-bit codes mean")

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        n, k = self.codes.shape
        return n, k

    def dequantize(self, rows: slice | None = None) -> npt.NDArray[np.float32]:
        """The weights, float32 [N, K], or those of some rows (a slice without a step)."""
        n, k = self.shape
        start, stop, _ = (rows or slice(None)).indices(n)
        values = TABLES[self.scheme.dtype][self.codes[start:stop]]
        width = self.scheme.group_width(k)
        first, last = start * k // width, -(-stop * k // width)
        scales = np.repeat(self.scale[first:last], width)[start * k - first * width :][: values.size]
        values *= scales.reshape(values.shape)
        return values


def double_quantize(scale: npt.NDArray[np.float32]) -> DoubleQuantized:
    """8-bit codes of scales [B], rounded to nearest; the largest of each SCALE_BLOCK is kept."""
    count = -(-scale.size // SCALE_BLOCK)
    filled = np.zeros(count * SCALE_BLOCK, np.float32)
    filled[: scale.size] = scale
    blocks = filled.reshape(count, SCALE_BLOCK)
    step: npt.NDArray[np.float32] = store_scale(blocks.max(axis=1) / np.float32(255), "float32")
    codes = np.clip(np.rint(blocks / step[:, None]), 1, 255).astype(np.uint8)
    return DoubleQuantized(codes.reshape(-1)[: scale.size], step)


def block_scale(largest: Array, scheme: QuantScheme) -> Array:
    """The scales of blocks whose largest magnitude is ``largest``: that itself, as scheme.scale_dtype holds it.

    Raises:
        SchemeError: it is NaN or infinite, as it is where the weight is.
    """
    xp = array_namespace(largest)
    if not bool(xp.all(xp.isfinite(largest))):
        raise SchemeError("the weight holds NaN or infinity; it cannot be quantized")
    return store_scale(largest, scheme.scale_dtype)


def nearest_values(shares: Array, scheme: QuantScheme) -> Array:
    """The value of the table that is nearest to each of float32 ``shares`` = w / scale, of their shape."""
    return _pick(shares, _BOUNDS[scheme.dtype], 0)


def nearest_codes(shares: Array, scheme: QuantScheme) -> Array:
    """The codes of ``nearest_values``, uint8."""
    return _pick(shares, _BOUNDS[scheme.dtype], 1)


def to_blocks(rows: Array, scheme: QuantScheme) -> Array:
    """float32 [B, g] of rows [n, K] that begin with a block; a short last block is filled up with 0."""
    xp = array_namespace(rows)
    width = scheme.group_width(int(rows.shape[1]))
    flat = xp.reshape(xp.astype(rows, xp.float32, copy=False), (-1,))
    size = int(flat.shape[0])
    if size % width == 0:
        return xp.reshape(flat, (size // width, width))
    end = xp.zeros_like(flat[:1])
    filled = xp.concat([flat, xp.broadcast_to(end, (width - size % width,))])
    return xp.reshape(filled, (-1, width))


def from_blocks(blocks: Array, n: int, k: int) -> Array:
    """The rows [n, K] of blocks [B, g]; what filled up a short last block is dropped."""
    return blocks.reshape(-1)[: n * k].reshape(n, k)


def table_name(values: npt.NDArray[Any]) -> Dtype | None:
    """The table that holds these 16 values; None for one that is not known."""
    return next((name for name, table in TABLES.items() if np.array_equal(table, values)), None)


_CELLS = 256  # in 1: so many that no cell holds two of the bounds between neighbours (fp4's are 1/192 apart)


@dataclass(frozen=True, slots=True, eq=False)
class _Bounds:
    """For each of the 2 * _CELLS cells of -1..1: the one bound in it, and (value, code) below and above that.

    Three look-ups take 24 ns a weight on one core of an x86-64 server, a binary search in 15 bounds 76.
    """

    bound: npt.NDArray[np.float32]
    below: tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]
    above: tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]

    @classmethod
    def of(cls, table: npt.NDArray[np.float32]) -> "_Bounds":
        values, codes = np.unique(table, return_index=True)  # rising; of equal ones the least code
        bounds = (values[1:] + values[:-1]) / 2
        below = np.searchsorted(bounds, np.arange(2 * _CELLS) / _CELLS - 1)
        above = np.minimum(below + 1, values.size - 1)
        small = codes.astype(np.uint8)
        bound = np.append(bounds, np.float32(np.inf)).astype(np.float32)[below]
        return cls(bound, (values[below], small[below]), (values[above], small[above]))


_BOUNDS = {dtype: _Bounds.of(table) for dtype, table in TABLES.items()}


def _pick(shares: Array, bounds: _Bounds, which: int) -> Array:
    """Values (0) or codes (1) of the nearest entries."""
    xp = array_namespace(shares)
    flat = xp.reshape(shares, (-1,))
    cell = xp.astype(xp.clip((flat + 1) * _CELLS, 0, 2 * _CELLS - 1), xp.int32)
    below, above, bound = (
        xp.take(_like(flat, side), cell, axis=0)
        for side in (bounds.below[which], bounds.above[which], bounds.bound)
    )
    return xp.reshape(xp.where(flat > bound, above, below), shares.shape)


def _like(array: Array, values: npt.NDArray[Any]) -> Array:
    """NumPy values as an array of the same kind and on the same device."""
    if not is_torch_array(array):
        return values
    xp = array_namespace(array)
    return xp.asarray(values, device=array.device)
