"""Channels shifted to their middle and scaled down to a threshold (Outlier Suppression+, Wei et al. 2023, sections 3.1 and 3.2).

    z_j = (max X_j + min X_j) / 2,      s_j = max(1, (max X_j - z_j) / t),      Y = ((X - z) / s) (s W^T) + z W^T

One scale for a whole tensor has to cover all channels: those that lie to one side of 0 by their distance from it, and outliers by their
size. The shift takes the first away, the scale the second, for the channels that reach beyond the threshold t alone. t is the one of a grid
with the least error of the output over a sample of rows, both sides rounded as they will be; with the shift and without.

Moving a norm's weight past its rounding (gamma migration of Outlier Suppression, Wei et al. 2022, section 4.1) is contained in s.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from qcompiler.algorithms.awq import ScaleChoice, sampled_rows
from qcompiler.algorithms.limits import check_at_least
from qcompiler.algorithms.rtn import quantize as round_to_nearest
from qcompiler.errors import CalibrationError
from qcompiler.quant.activations import Activations, rounded_rows, rounded_tensor
from qcompiler.quant.scheme import QuantScheme
from qcompiler.quant.statistics import InputStatistics

Float = npt.NDArray[np.float32]
LEAST = 1 / 64  # of the widest channel: the smallest threshold that is tried


@dataclass(frozen=True, slots=True)
class OutlierSuppressionOptions:
    """How the threshold is found.

    Attributes:
        steps: thresholds that are tried, from the widest channel's reach down to 1/64 of it.
        shift: whether shifts are tried; auto: where ranges are found in every run. With static ones every shifted channel fills the range
            that calibration saw, so that more of what it did not see is clipped.
        rows: rows of each weight that the search looks at, evenly spaced.
    Raises:
        SchemeError: a number below what it can be.
    """

    steps: int = 20
    shift: bool | Literal["auto"] = "auto"
    rows: int = 512

    def __post_init__(self) -> None:
        check_at_least(self, steps=2, rows=1)


def search(
    weights: Sequence[npt.NDArray[Any]],
    statistics: InputStatistics,
    schemes: Sequence[QuantScheme],
    options: OutlierSuppressionOptions | None = None,
    tie: npt.NDArray[np.integer[Any]] | None = None,
    activations: Activations = "token",
) -> ScaleChoice:
    """One shift and scale for all the weights that read the same input.

    Args:
        weights: each [N_i, K], any floating point type.
        statistics: with ``lowest``, ``highest`` and ``sample``.
        schemes: how each weight will be stored.
        options: which thresholds, and whether to shift.
        tie: whole numbers [K]; channels with the same number get the same scale.
        activations: how the input will be rounded.
    Returns:
        the scale, with a shift where that errs less; its losses are squared output errors per row, over the sampled rows.
    Raises:
        CalibrationError: no statistics of channels, or no rows.
        SchemeError: a weight holds NaN or infinity.
    """
    options = options or OutlierSuppressionOptions()
    lowest, highest, sample = statistics.lowest, statistics.highest, statistics.sample
    if lowest is None or highest is None or sample is None or not len(sample):
        raise CalibrationError(
            "outlier-suppression needs the ranges of channels, and rows; calibrate with them"
        )
    parts = [np.asarray(sampled_rows(weight, options.rows), np.float32) for weight in weights]
    shares = [weight.shape[0] / part.shape[0] for weight, part in zip(weights, parts, strict=True)]

    def loss_of(shift: Float, scale: Float) -> float:
        moved = sample - shift
        x = _rounded(moved / scale, (lowest - shift) / scale, (highest - shift) / scale, activations)
        loss = 0.0
        for part, share, scheme in zip(parts, shares, schemes, strict=True):
            error = x @ round_to_nearest(part * scale, None, scheme).dequantize().T - moved @ part.T
            loss += share * float(np.square(error, dtype=np.float64).sum()) / len(x)
        return loss

    none: Float = np.zeros(lowest.shape, np.float32)
    one: Float = np.ones(lowest.shape, np.float32)
    plain = loss_of(none, one)
    best = ScaleChoice(one, plain, plain)
    middle: Float = (lowest + highest) * np.float32(0.5)
    tried = activations != "static" if options.shift == "auto" else options.shift
    for shift in (none, middle) if tried and middle.any() else (none,):
        reach: Float = _tied(np.maximum(highest - shift, shift - lowest), tie)
        for share in np.geomspace(1.0, LEAST, options.steps):
            threshold = np.float32(share * reach.max())
            scale = np.maximum(reach / threshold, one) if threshold > 0 else one
            loss = loss_of(shift, scale)
            if loss < best.loss:
                best = ScaleChoice(scale, loss, plain, None if shift is none else shift)
    return best


def _rounded(x: Float, lowest: Float, highest: Float, activations: Activations) -> Float:
    if activations == "token":
        return rounded_rows(x)
    # The rows that are widest may not be among the sampled ones.
    return rounded_tensor(x, float(lowest.min()), float(highest.max()))


def _tied(values: Float, tie: npt.NDArray[np.integer[Any]] | None) -> Float:
    """The largest of the channels that share a scale."""
    if tie is None:
        return values
    _, group = np.unique(tie, return_inverse=True)
    largest = np.zeros(int(group.max()) + 1, np.float32)
    np.maximum.at(largest, group, values)
    shared: Float = largest[group]
    return shared
