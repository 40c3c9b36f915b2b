"""Two-level scales: a group's scale and minimum are whole numbers of few bits, times a float16 step that a super-block shares.

    w = code * scale - minimum,     scale = scale_code * scale_step,     minimum = min_code * min_step
    w = (code - middle) * scale     in a symmetric scheme, whose scales have a sign

as in llama.cpp's k-quants. A super-block is 16 groups of 16 weights or 8 larger ones. Groups run on from row to row of the row-major
weight, so any K has whole super-blocks but the last. Scale codes have 4 bits beside 2-bit codes and 6 beside others; signed ones are
stored plus their middle. Letters: N outputs, K reduction, G groups of a row, S super-blocks.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qcompiler.errors import SchemeError
from qcompiler.quant.affine import store_scale, store_values, to_groups
from qcompiler.quant.scheme import QuantScheme

Codes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Levels:
    """Numbers [N, G] in two levels: (code - bias) * step.

    Attributes:
        codes: uint8 [N, G].
        step: float32 [S], values that float16 holds.
        bias: what is taken off a code: 0, or the middle of signed ones.
    """

    codes: Codes
    step: Floats
    bias: int

    def values(self, scheme: QuantScheme) -> Floats:
        """float32 [N, G]."""
        steps = np.repeat(self.step, scheme.super_groups)[: self.codes.size].reshape(self.codes.shape)
        return (self.codes.astype(np.float32) - np.float32(self.bias)) * steps


@dataclass(frozen=True, slots=True, eq=False)
class TwoLevelTensor:
    """Codes with two-level scales, and minima where the scheme is not symmetric.

    Attributes:
        codes: uint8 [N, K], 0..2^bits - 1.
        scales: signed where the scheme is symmetric.
        minima: what is taken off; None in a symmetric scheme.
    Raises:
        SchemeError: types or shapes that disagree with the scheme.
    """

    scheme: QuantScheme
    codes: Codes
    scales: Levels
    minima: Levels | None

    def __post_init__(self) -> None:
        if not self.scheme.two_level:
            raise SchemeError(f"{self.scheme.label}: has no two-level scales; make an AffineTensor")
        if self.codes.dtype != np.uint8 or self.codes.ndim != 2:
            raise SchemeError(f"codes: {self.codes.dtype}{self.codes.shape}; must be uint8 [N, K]")
        if (self.minima is None) is not self.scheme.symmetric:
            raise SchemeError(f"minima: {self.scheme.label} must {'not ' * self.scheme.symmetric}have them")
        shape = self.scheme.scale_shape(*self.codes.shape)
        supers = (self.scheme.supers(*self.codes.shape),)
        for name, level in (("scales", self.scales), ("minima", self.minima)):
            if level is None:
                continue
            if level.codes.dtype != np.uint8 or level.codes.shape != shape:
                raise SchemeError(f"{name}: {level.codes.dtype}{level.codes.shape}; must be uint8{shape}")
            if level.step.dtype != np.float32 or level.step.shape != supers:
                raise SchemeError(
                    f"{name}: steps {level.step.dtype}{level.step.shape}; must be float32{supers}"
                )
            if int(level.codes.max(initial=0)) >= 1 << self.scheme.level_bits:
                raise SchemeError(f"{name}: a code above {(1 << self.scheme.level_bits) - 1}")

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        n, k = self.codes.shape
        return n, k

    @property
    def scale(self) -> Floats:
        """The scales of the groups, float32 [N, G], as scheme.scale_dtype holds them."""
        return scale_values(self.scales, self.scheme)

    @property
    def offset(self) -> Floats | None:
        """What is added to (code - middle) * scale, float32 [N, G], as scheme.scale_dtype holds it."""
        return None if self.minima is None else offset_values(self.scale, self.minima, self.scheme)

    def dequantize(self, rows: slice | None = None) -> Floats:
        """The weights, float32 [N, K], or those of some rows; the middle is that of the codes as they are stored."""
        rows = slice(None) if rows is None else rows
        codes, scheme = self.codes[rows], self.scheme
        values: Floats = to_groups(codes, scheme)
        values -= scheme.stored_middle if self.minima is not None else scheme.midpoint
        values *= self.scale[rows][..., None]
        offset = self.offset
        if offset is not None:
            values += offset[rows][..., None]
        n, groups, width = values.shape
        return values.reshape(n, groups * width)[:, : codes.shape[1]]


def scale_values(scales: Levels, scheme: QuantScheme) -> Floats:
    """Scales [N, G] as scheme.scale_dtype holds them."""
    held: Floats = store_values(scales.values(scheme), scheme.scale_dtype)
    return held


def offset_values(scale: Floats, minima: Levels, scheme: QuantScheme) -> Floats:
    """middle * scale - minimum [N, G] as scheme.scale_dtype holds it."""
    held: Floats = store_values(
        np.float32(scheme.stored_middle) * scale - minima.values(scheme), scheme.scale_dtype
    )
    return held


def to_levels(values: Floats, scheme: QuantScheme, signed: bool) -> Levels:
    """The nearest two-level numbers to float32 [N, G]; what is negative becomes 0 unless ``signed``."""
    bias = 1 << (scheme.level_bits - 1) if signed else 0
    most = bias - 1 if signed else (1 << scheme.level_bits) - 1
    count = -(-values.size // scheme.super_groups)
    filled = np.zeros(count * scheme.super_groups, np.float32)
    filled[: values.size] = values.reshape(-1) if signed else np.maximum(values.reshape(-1), 0)
    blocks = filled.reshape(count, scheme.super_groups)
    step: Floats = store_scale(np.abs(blocks).max(axis=1) / np.float32(most), "float16")
    codes = np.clip(np.rint(blocks / step[:, None]), -most if signed else 0, most) + bias
    return Levels(codes.astype(np.uint8).reshape(-1)[: values.size].reshape(values.shape), step, bias)
