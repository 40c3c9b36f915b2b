"""What each weight costs by Fisher scores: one forward and one backward run of the float model, for all weights and all bits together.

    L_w(b)  ~  1/2 sum_ij F_ij (W - Q_b(W))_ij^2            (``algorithms.fisher``)

That sum, with W rounded to nearest at the reference bits, is the weight's loss there. Other bits cost that, times the ratio of the sum at
those bits, with scales that are searched, to the sum at the reference; both on the rows of largest score.
"""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.algorithms import fisher
from qcompiler.algorithms.arrays import row_blocks
from qcompiler.calibration.backpropagation import AtProduct, Backpropagation, Product
from qcompiler.calibration.segments import cut_segments
from qcompiler.errors import CalibrationError
from qcompiler.graph.weights import Role, WeightUse
from qcompiler.passes.quantize_weights import CalibrationRun, Progress
from qcompiler.passes.sensitivity import (
    KL,
    RELATIVE_ERROR,
    ROWS,
    End,
    Sensitivities,
    anchors_of,
    find_end,
    reference_of,
    rounded,
    scheme_at,
    searched,
    sensitivity,
    uses_of,
)
from qcompiler.quant.tensor import QuantizedTensor
from qcompiler.recipe.mixed import MixedSettings
from qcompiler.recipe.plan import PlannedWeight

if TYPE_CHECKING:
    from torch import Tensor

Array = npt.NDArray[Any]
REMEDY = "set mixed.sensitivity: output, which runs the model instead"


def by_fisher(
    model: ir.Model,
    free: Sequence[PlannedWeight],
    settings: MixedSettings,
    run: CalibrationRun,
    progress: Progress,
    seed: int,
) -> Sensitivities:
    """Score the free weights; the model is not changed.

    Args:
        seed: of the labels that are drawn.
    Raises:
        CalibrationError: an operator cannot be differentiated (named, before anything runs), or something is not finite.
        ResourceError: torch is missing.
    """
    end, reference = find_end(model), reference_of(settings.bits)
    feeds = list(run.feeds)[: settings.samples]
    owner = {
        Product(use.node, use.input_index, partial(_operand, planned, use)): planned
        for planned in free
        for use in uses_of(planned)
    }
    segments = cut_segments(model.graph, set(anchors_of(model)))
    through = Backpropagation(model, segments, list(owner), end.output, REMEDY)
    start = _Start(end, seed)
    scores: dict[Product, Array] = {}
    losses = {planned: np.zeros(1 + len(settings.bits)) for planned in free}
    done: set[PlannedWeight] = set()
    for index, found in through.run(feeds, run.folder, run.border_limit, start.gradient):
        for at in found:
            planned = owner[at.product]
            progress(f"scoring {planned.weight.name}", len(done), len(free))
            part = _scores(at, planned, start.factors[index] / len(feeds))
            if at.product in scores:
                scores[at.product] += part
            else:
                scores[at.product] = part
            if index == len(feeds) - 1:
                # A weight that is used twice costs what its uses do; that they add up or cancel is left out.
                losses[planned] += _losses(planned, scores.pop(at.product), settings.bits, reference)
                done.add(planned)
    return Sensitivities(
        start.measure,
        reference,
        {
            planned: sensitivity(
                planned, measured, settings.bits, [loss / (measured or 1.0) for loss in at_bits]
            )
            for planned, (measured, *at_bits) in losses.items()
        },
    )


class _Start:
    """The gradients that the backward runs start with.

    Attributes:
        measure: of the loss.
        factors: what turns the square of a gradient into a score, of each sample so far.
    """

    def __init__(self, end: End, seed: int) -> None:
        self._end = end
        self._seed = seed
        self.measure = RELATIVE_ERROR
        self.factors: dict[int, float] = {}

    def gradient(self, index: int, output: "Tensor") -> "Tensor":
        """At the output of one sample.

        Raises:
            CalibrationError: NaN or infinity.
        """
        import torch

        self.measure = self._end.measure(output.shape)
        # -inf is a class that is ruled out, not a number that went wrong.
        seen = torch.softmax(output, -1) if self.measure == KL else output
        if not bool(torch.isfinite(seen).all()):
            raise CalibrationError(
                f"{self._end.output.name}: NaN or infinity in the model's output; check the calibration data, or the model on it"
            )
        # Of its own for each sample, so that the order in which they are taken does not matter.
        generator = torch.Generator().manual_seed(self._seed + index)
        if self.measure == KL:
            self.factors[index] = 0.5 / (output.numel() // output.shape[-1])
            return fisher.drawn_score(output, generator)
        self.factors[index] = 1 / max(float(output.double().square().sum()), 1e-30)
        return fisher.random_signs(output, generator)


def _scores(at: AtProduct, planned: PlannedWeight, factor: float) -> Array:
    """One sample's part of the scores of a weight, [N, K]: the squares of its gradient, times ``factor``.

    Raises:
        CalibrationError: NaN or infinity.
    """
    gradient = fisher.gradient_of_weight(at.reads, at.gradient, planned.weight.shape)
    squares: Array = gradient.square_().mul_(factor).numpy()
    if not np.isfinite(squares.sum(dtype=np.float64)):
        raise CalibrationError(
            f"mixed: {planned.weight.name}: its gradient is not finite on the calibration data; {REMEDY}"
        )
    return squares


def _losses(planned: PlannedWeight, scores: Array, bits: Sequence[int], reference: int) -> Array:
    """With the weight rounded to nearest at the reference bits; and with scales that are searched, at each of ``bits``."""
    values: Array = planned.weight.array()
    at_reference = rounded(values, scheme_at(planned, reference))
    measured = sum(
        float((scores[rows] * np.square(at_reference.dequantize(rows) - values[rows])).sum())
        for rows in row_blocks(values)
    )
    largest = np.sort(np.argsort(scores.sum(axis=1))[-ROWS:])
    some, weighed = values[largest], scores[largest]

    def loss(quantized: QuantizedTensor) -> float:
        return float((weighed * np.square(quantized.dequantize() - some)).sum())

    base = loss(rounded(some, scheme_at(planned, reference)))
    errors = [loss(searched(some, None, scheme_at(planned, width))) for width in bits]
    return np.array([measured, *(measured * error / max(base, 1e-30) for error in errors)])


def _operand(planned: PlannedWeight, use: WeightUse) -> Array:
    """What the node reads: rows to gather from, or [K, N] to multiply with."""
    values: Array = planned.weight.array()
    return values if use.role is Role.EMBEDDING else values.T
