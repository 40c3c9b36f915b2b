"""QuantizedTensor: a weight as it will be stored, whatever the layout. The one home of what codes mean."""

from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from qcompiler.errors import SchemeError
from qcompiler.quant.affine_tensor import AffineTensor
from qcompiler.quant.codebook import CodebookTensor
from qcompiler.quant.float8 import Float8Tensor
from qcompiler.quant.low_rank import LowRank
from qcompiler.quant.outlier_columns import OutlierColumns
from qcompiler.quant.outliers import Outliers
from qcompiler.quant.scheme import QuantScheme
from qcompiler.quant.two_level import TwoLevelTensor

BaseTensor: TypeAlias = AffineTensor | CodebookTensor | TwoLevelTensor | Float8Tensor
"""A weight that is nothing but codes, scales and zero points."""
Correction: TypeAlias = LowRank | Outliers | OutlierColumns
"""What may stand beside it."""


@dataclass(frozen=True, slots=True, eq=False)
class CorrectedTensor:
    """w = base + what stands beside it. Change one part with ``dataclasses.replace``.

    Raises:
        SchemeError: a part of another shape, or none at all.
    """

    base: BaseTensor
    low_rank: LowRank | None = None
    outliers: Outliers | None = None
    columns: OutlierColumns | None = None

    def __post_init__(self) -> None:
        if not self.parts:
            raise SchemeError("a CorrectedTensor has a part beside its base; without one, use the base")
        for part in self.parts:
            if part.shape != self.shape:
                raise SchemeError(f"{part.label}: is for a weight of {part.shape}, not of {self.shape}")

    @property
    def parts(self) -> list[Correction]:
        """What stands beside the base."""
        return [part for part in (self.low_rank, self.outliers, self.columns) if part is not None]

    @property
    def scheme(self) -> QuantScheme:
        """Of the base."""
        return self.base.scheme

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return self.base.shape

    @property
    def label(self) -> str:
        """What stands beside the base, for reports: "rank 16 + 1 % outliers"."""
        return " + ".join(part.label for part in self.parts)

    @property
    def stored_bytes(self) -> int:
        """Bytes of all parts."""
        return self.scheme.stored_bytes(*self.shape) + sum(part.stored_bytes for part in self.parts)

    def without_low_rank(self) -> "QuantizedTensor":
        """The rest of it."""
        rest = self.outliers or self.columns
        return self.base if rest is None else replace(self, low_rank=None)

    def dequantize(self, rows: slice | None = None) -> npt.NDArray[np.float32]:
        """The weights, float32 [N, K], or those of some rows."""
        values = self.base.dequantize(rows)
        for part in self.parts:
            values += part.dense(slice(None) if rows is None else rows)
        return values


QuantizedTensor: TypeAlias = BaseTensor | CorrectedTensor
"""The closed union of stored weights."""


def base_of(quantized: QuantizedTensor) -> BaseTensor:
    """The codes of a weight without what stands beside them."""
    return quantized.base if isinstance(quantized, CorrectedTensor) else quantized
