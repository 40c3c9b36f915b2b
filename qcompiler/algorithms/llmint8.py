"""Columns that meet outliers of activations kept in floats, the others rounded to nearest (LLM.int8(), Dettmers et al. 2022).

    y = sum_{h in O} x_h w_h^T  +  s_x s_w sum_{h not in O} Q(x_h) Q(w_h)^T,      O = {h : some |x_h| >= threshold}   (section 3.2, eq. 8)

with a scale s_x for each row of activation, and s_w for each output, both found without O. The paper finds O anew in every product; a graph
has to know it beforehand: a channel is in O where any activation of calibration reaches the threshold. Then the columns of O are stored in
floats, and their codes mean 0.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from qcompiler.algorithms import rtn
from qcompiler.errors import SchemeError
from qcompiler.quant.outlier_columns import OutlierColumns
from qcompiler.quant.scheme import QuantScheme
from qcompiler.quant.statistics import InputStatistics
from qcompiler.quant.tensor import CorrectedTensor, QuantizedTensor


@dataclass(frozen=True, slots=True)
class LlmInt8Options:
    """Which columns are kept.

    Attributes:
        threshold: what an activation has to reach for its channel to stay float, in the model's own units.
    Raises:
        SchemeError: it is not positive.
    """

    threshold: float = 6.0

    def __post_init__(self) -> None:
        if not self.threshold > 0:
            raise SchemeError(f"threshold: {self.threshold}; give a positive number, the paper's is 6")


def stored_bytes(options: LlmInt8Options, scheme: QuantScheme, n: int, k: int) -> int:
    """Of the columns beside an [N, K] weight: 0, since calibration finds how many there are."""
    return 0


def quantize(
    weight: npt.NDArray[Any],
    statistics: InputStatistics | None,
    scheme: QuantScheme,
    options: LlmInt8Options | None = None,
) -> QuantizedTensor:
    """Codes, and the columns that are kept beside them; where no activation reaches the threshold the codes alone.

    Args:
        weight: [N, K] of any floating point type.
        statistics: with ``max_abs``; without it no column is kept.
        scheme: how the codes will be stored.
        options: the threshold.
    Raises:
        SchemeError: the weight holds NaN or infinity, or the scheme has float zero points.
    """
    options = options or LlmInt8Options()
    if scheme.has_float_zero_points:
        raise SchemeError("llmint8: no code means 0 with a float zero point; set zero_point: int, or use rtn")
    reached = None if statistics is None or statistics.max_abs is None else statistics.max_abs
    places = np.flatnonzero([] if reached is None else reached >= options.threshold).astype(np.int64)
    if not places.size:
        return rtn.quantize(weight, None, scheme)
    values = np.array(weight, np.float32)
    if not np.isfinite(values).all():
        raise SchemeError("the weight holds NaN or infinity; it cannot be quantized")
    columns = OutlierColumns.of(values, places, scheme.scale_dtype)
    values[:, places] = 0  # exact whatever the scale
    return CorrectedTensor(rtn.quantize(values, None, scheme), columns=columns)
