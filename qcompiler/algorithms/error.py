"""What a quantized weight costs at the layer's output: tr(E H E^T), E = W - Q(W), H = mean of x x^T; groups with their own H add up."""

import math
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
from array_api_compat import array_namespace

from qcompiler.algorithms.arrays import Device, place, row_blocks
from qcompiler.quant.affine import Array
from qcompiler.quant.statistics import GroupedStatistics, InputStatistics
from qcompiler.quant.tensor import QuantizedTensor


@dataclass(frozen=True, slots=True)
class QuantizationError:
    """The loss of one layer.

    Attributes:
        output: tr(E H E^T) / tr(W H W^T), the relative squared error of the layer's output; with only the
            mean squares of the channels, of an output whose channels were independent; without statistics the
            same as ``weight``.
        weight: sum E^2 / sum W^2.
        cosine: of the angle between W and what is stored for it.
    """

    output: float
    weight: float
    cosine: float

    @property
    def sqnr_db(self) -> float:
        """Signal to noise of the output in dB; infinity for a weight that is stored exactly."""
        return -10 * math.log10(self.output) if self.output > 0 else math.inf


def quantization_error(
    weight: npt.NDArray[Any],
    quantized: QuantizedTensor,
    statistics: InputStatistics | GroupedStatistics | None,
    device: Device = "cpu",
) -> QuantizationError:
    """Compare a weight [N, K] of any floating point type with what is stored for it, block by block (of groups: at once)."""
    metric = output_metric(statistics, device)
    xp = array_namespace(place(weight[:1], device))
    totals = [0.0] * 5
    blocks = [slice(None)] if isinstance(statistics, GroupedStatistics) else row_blocks(weight)
    for rows in blocks:
        w = place(weight[rows], device)
        e = place(quantized.dequantize(rows), device)
        e -= w
        parts = (
            output_energy(e, metric),
            output_energy(w, metric),
            output_energy(e, None),
            output_energy(w, None),
            float(xp.sum(e * w)),
        )
        totals = [total + part for total, part in zip(totals, parts, strict=True)]
    output_noise, output_signal, noise, signal, both = totals
    stored = noise + 2 * both + signal  # |W + E|^2
    cosine = (signal + both) / math.sqrt(signal * stored) if signal > 0 and stored > 0 else 1.0
    return QuantizationError(_ratio(output_noise, output_signal), _ratio(noise, signal), cosine)


def output_metric(statistics: InputStatistics | GroupedStatistics | None, device: Device) -> Array | None:
    """What weighs an error: the Hessian [K, K], or those of groups [G, K, K], else the mean squares [K], else None."""
    if statistics is None:
        return None
    if isinstance(statistics, GroupedStatistics):
        return place(statistics.hessian, device)
    known = statistics.hessian if statistics.hessian is not None else statistics.mean_square
    return None if known is None else place(known, device)


def output_energy(rows: Array, metric: Array | None) -> float:
    """tr(R H R^T) for rows [n, K] and the metric that output_metric gave; with that of groups, all rows."""
    xp = array_namespace(rows)
    if metric is None:
        return float(xp.sum(rows * rows))
    if metric.ndim == 1:
        return float(xp.sum(rows * rows * metric))
    if metric.ndim == 3:
        rows = xp.reshape(rows, (metric.shape[0], -1, metric.shape[2]))
    return float(xp.sum((rows @ metric) * rows))


def _ratio(noise: float, signal: float) -> float:
    if signal > 0.0:
        return max(noise, 0.0) / signal
    return 0.0 if noise <= 0.0 else math.inf
