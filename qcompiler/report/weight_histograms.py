"""How the numbers of a weight lie before and after it was quantized."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.errors import InputError
from qcompiler.graph.weights import Weight
from qcompiler.report.alignment import without_marks
from qcompiler.report.quantized_products import StoredWeight
from qcompiler.report.stored_values import sampled, stored_values

BINS = 96


@dataclass(frozen=True)
class HistogramPair:
    """Two histograms on the same bins.

    Attributes:
        edges: BINS + 1 of them, of equal width.
        before, after: how many numbers lie in each bin; ``before`` is empty where the float numbers are not known.
        note: what a reader should know; empty when nothing.
    """

    name: str
    edges: list[float]
    before: list[int]
    after: list[int]
    note: str = ""


def weight_histogram(
    model: ir.Model, weight: StoredWeight, floats: Mapping[str, Weight]
) -> HistogramPair | str:
    """Of one weight of a normalized model, or why there is none.

    Args:
        floats: weights of the float model by name, without the marks of quantizers.
    """
    try:
        after = stored_values(model, weight)
    except InputError as error:
        return str(error)
    known = floats.get(without_marks(weight.name))
    before = None
    if known is not None and known.size == weight.size:
        before = sampled(known.array()).values if len(after.rows) == known.shape[0] else None
        if before is None:
            before = known.array()[np.ix_(after.rows, after.channels)].astype(np.float32)
    return histogram_pair(weight.name, before, after.values)


def histogram_pair(
    name: str, before: npt.NDArray[np.float32] | None, after: npt.NDArray[np.float32]
) -> HistogramPair:
    """Of the finite numbers of two arrays of any shape; ``before`` may be None."""
    both = [array[np.isfinite(array)] for array in ([after] if before is None else [before, after])]
    left_out = sum(array.size for array in (before, after) if array is not None) - sum(a.size for a in both)
    known = [array for array in both if array.size] or [np.zeros(1, np.float32)]
    low, high = min(float(array.min()) for array in known), max(float(array.max()) for array in known)
    if not low < high:
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, BINS + 1)
    counts = [np.histogram(array, edges)[0].tolist() for array in both]
    note = f"{left_out} NaN or infinite numbers are not drawn" if left_out else ""
    return HistogramPair(name, edges.tolist(), counts[0] if before is not None else [], counts[-1], note)
