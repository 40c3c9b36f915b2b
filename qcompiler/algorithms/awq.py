"""Activation-aware scales for input channels (AWQ, Lin et al. 2023, section 3.2).

    s* = argmin_s sum_i tr((W_i - Q(W_i s) / s) H (W_i - Q(W_i s) / s)^T),      H = mean of x x^T

A channel that carries much of the activation is scaled up before the weight is rounded, and the activation is divided
by the same factor: the function stays, the rounding error moves to where it matters less. Nothing is kept in float.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from qcompiler.algorithms.arrays import Device
from qcompiler.errors import CalibrationError
from qcompiler.quant.scheme import QuantScheme
from qcompiler.quant.statistics import InputStatistics


@dataclass(frozen=True, slots=True)
class AwqOptions:
    """How the scale is searched.

    Attributes:
        steps: exponents alpha tried in 0..1.
    """

    steps: int = 20
    device: Device = "cpu"


@dataclass(frozen=True, slots=True, eq=False)
class ScaleChoice:
    """A scale for the K input channels, and what it buys.

    Attributes:
        scale: float32 [K], positive; multiply the weights' columns by it, divide the activation by it.
        loss, plain_loss: squared output error per row of activation with this scale and with none; loss <= plain_loss.
    """

    scale: npt.NDArray[np.float32]
    loss: float
    plain_loss: float


def search_scale(
    weights: Sequence[npt.NDArray[Any]],
    statistics: InputStatistics,
    schemes: Sequence[QuantScheme],
    options: AwqOptions | None = None,
    tie: npt.NDArray[np.integer[Any]] | None = None,
) -> ScaleChoice:
    """One scale for all the weights that read the same input (query, key and value together).

    Args:
        weights: each [N_i, K], any floating point type.
        statistics: with the Hessian.
        schemes: how each weight will be stored.
        tie: whole numbers [K]; channels with the same number get the same scale.
    Raises:
        CalibrationError: no Hessian, or one that is not finite.
    """
    if statistics.hessian is None:
        raise CalibrationError("awq needs the Hessian of the layer's input; calibrate with it")
    raise NotImplementedError
