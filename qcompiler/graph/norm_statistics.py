"""What a BatchNormalization says of the values that it makes: channel by channel the mean beta and the deviation |gamma|, of training.

Once it is folded into the convolution before it, the statistics stand beside the convolution's output (``ir.Value.meta``, which is in no
file), and whatever multiplies that output has to ``move_statistics``.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.graph.weights import constant_values

Float = npt.NDArray[np.float64]
_KEY = "qcompiler.norm_statistics"


@dataclass(frozen=True)
class NormStatistics:
    """Of the channels of one value: mean and deviation [channels]."""

    mean: Float
    deviation: Float


def norm_statistics(value: ir.Value) -> NormStatistics | None:
    """Of what a BatchNormalization with constants makes, be it folded or not; None of other values."""
    kept = value.meta.get(_KEY)
    if kept is not None:
        assert isinstance(kept, NormStatistics)
        return kept
    node = value.producer()
    if (
        node is None
        or node.op_type != "BatchNormalization"
        or node.domain != ""
        or node.outputs[0] is not value
    ):
        return None
    gamma, beta = constant_values(node.inputs[1]), constant_values(node.inputs[2])
    if gamma is None or beta is None or node.attributes.get_int("training_mode", 0) != 0:
        return None
    return NormStatistics(beta.astype(np.float64), np.abs(gamma.astype(np.float64)))


def keep_statistics(value: ir.Value, found: NormStatistics | None) -> None:
    """Puts them beside a value; None: nothing is known of it."""
    if found is not None:
        value.meta[_KEY] = found


def move_statistics(value: ir.Value, factor: Float, term: Float | float = 0.0) -> None:
    """For values that have become factor * value + term, [channels] or [1] each."""
    found = norm_statistics(value)
    if found is not None:
        keep_statistics(value, NormStatistics(found.mean * factor + term, found.deviation * np.abs(factor)))
