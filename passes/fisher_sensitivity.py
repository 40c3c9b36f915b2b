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
from qcompiler.calibration.backpropagation import AtProduct, Backpropagation, Product
from qcompiler.calibration.segments import cut_segments
from qcompiler.errors import CalibrationError
from qcompiler.passes.measured_outputs import KL, End, find_ends, measure_of, require_kl
from qcompiler.passes.quantize_weights import CalibrationRun, Progress
from qcompiler.passes.sensitivity import (
    ON_GRID,
    Rounding,
    Sensitivities,
    anchors_of,
    largest_rows,
    operand_of,
    reference_of,
    round_alone,
    row_errors,
    scheme_at,
    searched,
    sensitivity,
    uses_of,
)
from qcompiler.quant.tensor import QuantizedTensor
from qcompiler.recipe.mixed import MixedSettings
from qcompiler.recipe.planned_weight import PlannedWeight

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
    ends = find_ends(model)
    feeds = run.feeds[: settings.samples]
    owner, through = _backpropagation(model, free, ends)
    start = _Start(ends, settings.max_kl, seed)
    scores: dict[Product, Array] = {}
    losses = {planned: np.zeros(1 + len(settings.bits)) for planned in free}
    roundings: dict[PlannedWeight, Rounding] = {}
    for index, found in through.run(feeds, run.folder, run.border_limit, start.gradient):
        for at in found:
            planned = owner[at.product]
            progress(f"scoring {planned.weight.name}", len(roundings), len(free))
            part = _scores(at, planned, len(feeds))
            if at.product in scores:
                scores[at.product] += part
            else:
                scores[at.product] = part
            if index == len(feeds) - 1:
                # A weight that is used twice costs what its uses do; that they add up or cancel is left out.
                rounding, alone = round_alone(planned, settings.bits)
                losses[planned] += _losses(planned, scores.pop(at.product), settings.bits, rounding, alone)
                roundings[planned] = rounding
    for planned in free:
        if planned not in roundings:  # no gradient passes by it: it lies behind all that is measured
            roundings[planned], _ = round_alone(planned, settings.bits)
    return Sensitivities(
        measure_of(ends, [start.shapes[end.output] for end in ends]),
        reference_of(settings.bits),
        tuple(end.output.name or "" for end in ends),
        {
            planned: sensitivity(
                planned,
                roundings[planned],
                measured,
                settings.bits,
                [loss / (measured or 1.0) for loss in at_bits],
            )
            for planned, (measured, *at_bits) in losses.items()
        },
    )


def refuse_what_has_no_gradient(model: ir.Model, free: Sequence[PlannedWeight]) -> None:
    """Raises what ``by_fisher`` would of the model alone, before there are data."""
    _backpropagation(model, free, find_ends(model))


def _backpropagation(
    model: ir.Model, free: Sequence[PlannedWeight], ends: Sequence[End]
) -> tuple[dict[Product, PlannedWeight], Backpropagation]:
    """The products of the free weights with their owners, and what goes back to them from the ends."""
    owner = {
        Product(use.node, use.input_index, partial(operand_of, planned, use)): planned
        for planned in free
        for use in uses_of(planned)
    }
    segments = cut_segments(model.graph, set(anchors_of(model)))
    return owner, Backpropagation(model, segments, list(owner), [end.output for end in ends], REMEDY)


class _Start:
    """The gradients that the backward runs start with: scaled so that the square of a weight's gradient is its score.

    What is drawn for one output is independent of what is drawn for another, so of several outputs the square of the sum is the sum of the
    scores, on average.

    Attributes:
        shapes: of the outputs so far.
    """

    def __init__(self, ends: Sequence[End], max_kl: float, seed: int) -> None:
        self._max_kl = max_kl
        self._ends = {end.output: (index, end) for index, end in enumerate(ends)}
        self._seed = seed
        self.shapes: dict[ir.Value, Sequence[int]] = {}

    def gradient(self, sample: int, value: ir.Value, output: "Tensor") -> "Tensor":
        """At one output of one sample.

        Raises:
            CalibrationError: NaN or infinity.
            RecipeError: a bound on the KL divergence is set, and this is no distribution.
        """
        import torch

        place, end = self._ends[value]
        self.shapes[value] = output.shape
        require_kl(self._max_kl, end.measure(output.shape))
        holds_classes = end.measure(output.shape) == KL
        # -inf is a class that is ruled out, not a number that went wrong.
        seen = torch.softmax(output, -1) if holds_classes else output
        if not bool(torch.isfinite(seen).all()):
            raise CalibrationError(
                f"{value.name}: NaN or infinity in the model's output; check the calibration data, or the model on it"
            )
        # Of its own for each sample and output, so that the order in which they are taken does not matter.
        generator = torch.Generator().manual_seed((place << 32) + self._seed + sample)
        if holds_classes:
            factor = 0.5 / (output.numel() // output.shape[-1])
            return fisher.drawn_score(output, generator).mul_(factor**0.5)
        factor = 1 / max(float(output.double().square().sum()), 1e-30)
        return fisher.random_signs(output, generator).mul_(factor**0.5)


def _scores(at: AtProduct, planned: PlannedWeight, samples: int) -> Array:
    """One sample's part of the scores of a weight, [N, K]: the squares of its gradient over the number of samples.

    Raises:
        CalibrationError: NaN or infinity.
    """
    gradient = fisher.gradient_of_weight(at.reads, at.gradient, planned.weight.shape)
    squares: Array = gradient.square_().div_(samples).numpy()
    if not np.isfinite(squares.sum(dtype=np.float64)):
        raise CalibrationError(
            f"mixed: {planned.weight.name}: its gradient is not finite on the calibration data; {REMEDY}"
        )
    return squares


def _losses(
    planned: PlannedWeight, scores: Array, bits: Sequence[int], rounding: Rounding, alone: QuantizedTensor
) -> npt.NDArray[np.float64]:
    """What a weight's scores [N, K] say of its errors.

    Args:
        rounding, alone: the weight rounded alone, and at which bits.
    Returns:
        [1 + number of bits]: with the weight rounded to nearest; and with scales that are searched, at each of ``bits``.
    """
    values: Array = planned.weight.array()
    errors = row_errors(values, alone, scores)
    measured = float(errors.sum())
    if rounding.exact or measured <= 0:
        return np.full(1 + len(bits), measured)
    at_reference = scheme_at(planned, rounding.bits)

    largest = largest_rows(at_reference, scores.sum(axis=1))
    if errors[largest].sum() <= ON_GRID * float((scores[largest] * np.square(values[largest])).sum()):
        largest = largest_rows(at_reference, errors)  # those lie on the grid; others do not
    base = float(errors[largest].sum())
    some, weighed = values[largest], scores[largest]

    def loss(quantized: QuantizedTensor) -> float:
        return float((weighed * np.square(quantized.dequantize() - some)).sum())

    at_bits = [loss(searched(some, None, scheme_at(planned, width))) for width in bits]
    return np.array([measured, *(measured * error / base for error in at_bits)])
