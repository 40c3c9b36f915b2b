"""What each weight costs, measured: the model runs from the weight's segment to its end with this weight alone rounded.

Other bits cost that, times the ratio of the layer's output errors at those bits and at the reference, by its Hessian on some of the rows.
For each weight and sample that is one run, of half the model on average.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.algorithms import Need
from qcompiler.algorithms.error import quantization_error
from qcompiler.calibration.collector import Collector, Statistics
from qcompiler.calibration.segments import Segment
from qcompiler.calibration.windows import Tap
from qcompiler.errors import CalibrationError
from qcompiler.graph.extract import Piece
from qcompiler.graph.weights import Role, WeightUse
from qcompiler.passes.measured_outputs import End, find_ends, loss_of, measure_of, require_kl
from qcompiler.passes.quantize_weights import CalibrationRun, Progress
from qcompiler.passes.sensitivity import (
    ON_GRID,
    Sensitivities,
    Sensitivity,
    anchors_of,
    even_rows,
    largest_rows,
    operand_of,
    reference_of,
    round_alone,
    rounded,
    row_errors,
    scheme_at,
    searched,
    sensitivity,
    uses_of,
)
from qcompiler.quant.statistics import GroupedStatistics, InputStatistics
from qcompiler.quant.tensor import QuantizedTensor
from qcompiler.recipe.mixed import MixedSettings
from qcompiler.recipe.planned_weight import PlannedWeight

Array = npt.NDArray[Any]
NOISE = 1e-9
"""A loss below this may be that of sums in another order: whether the weight is felt at all is then seen from the outputs' bits."""


def by_output(
    model: ir.Model,
    free: Sequence[PlannedWeight],
    settings: MixedSettings,
    run: CalibrationRun,
    progress: Progress,
) -> Sensitivities:
    """Round the free weights one at a time; the model is as before afterwards.

    Raises:
        CalibrationError: the model cannot be run on the data, or its output is not finite.
        RecipeError: max_kl is set, and the outputs turn out to be no distributions.
    """
    ends = find_ends(model)
    feeds = run.feeds[: settings.samples]
    collector = Collector(model, anchors_of(model), feeds, run.folder, run.border_limit)
    whole = Piece(model, list(model.graph), model.graph.inputs, [end.output for end in ends])
    wanted = [whole.run(collector.sample(index)) for index in range(len(feeds))]
    measured_is = measure_of(ends, [wanted[0][end.output].shape for end in ends])
    require_kl(settings.max_kl, measured_is)
    probe = _Probe(model, collector, ends, wanted)
    found: dict[PlannedWeight, Sensitivity] = {}

    def measure(
        segment: Segment,
        members: Sequence[PlannedWeight],
        observed: Mapping[Tap, Statistics | None],
    ) -> None:
        with probe.over(segment, members) as losses:
            for planned in members:
                progress(f"measuring {planned.weight.name}", len(found), len(free))
                rounding, alone = round_alone(planned, settings.bits)
                measured = losses(planned, alone)
                ratios = [1.0] * len(settings.bits)
                if not rounding.exact:
                    seen = observed.get(Tap(_input(planned)))
                    assert not isinstance(seen, GroupedStatistics)  # no convolution is free
                    ratios = _ratios(planned, settings.bits, rounding.bits, alone, seen)
                found[planned] = sensitivity(planned, rounding, measured, settings.bits, ratios)

    for planned in free:
        if any(
            use.role is Role.EMBEDDING for use in planned.weight.uses
        ):  # tied: felt from the first node on
            measure(collector.segments[0], [planned], {})
    by_node = {
        use.node: planned for planned in free for use in planned.weight.uses if use.role is not Role.EMBEDDING
    }
    for segment in collector.segments:
        here = [by_node[node] for node in segment.nodes if node in by_node]
        members = [planned for planned in dict.fromkeys(here) if planned not in found]
        if members:
            needs = frozenset({Need.HESSIAN})
            taps = {Tap(_input(planned)): (planned.weight.shape[1], needs) for planned in members}
            measure(segment, members, collector.observe(segment, taps))
        collector.advance(segment)
    names = tuple(end.output.name or "" for end in ends)
    return Sensitivities(measured_is, reference_of(settings.bits), names, found)


@dataclass(frozen=True)
class _Probe:
    """Runs the model with one weight rounded.

    Attributes:
        collector: its borders are those of the segment at hand.
        wanted: the float model's outputs, of each sample.
    """

    model: ir.Model
    collector: Collector
    ends: Sequence[End]
    wanted: Sequence[Mapping[ir.Value, Array]]

    @contextmanager
    def over(
        self, segment: Segment, members: Sequence[PlannedWeight]
    ) -> Iterator[Callable[[PlannedWeight, QuantizedTensor], float]]:
        """The loss with one of the members rounded, from the segment's first node to the end; meanwhile they are inputs of the graph."""
        probes = [(planned, use) for planned in members for use in uses_of(planned)]
        kept = [(use, use.node.inputs[use.input_index]) for _, use in probes]
        stand_ins = [ir.Value(name=f"{p.weight.name}.probe.{i}") for i, (p, _) in enumerate(probes)]
        for (_, use), stand_in in zip(probes, stand_ins, strict=True):
            use.node.replace_input_with(use.input_index, stand_in)
        try:
            nodes = list(self.model.graph)
            first = next(index for index, node in enumerate(nodes) if node is segment.nodes[0])
            given = [*self.collector.sample(0), *stand_ins]
            # An output that was made before does not change.
            ends = [end for end in self.ends if end.output.producer() in nodes[first:]]
            tail = Piece(self.model, nodes[first:], given, [end.output for end in ends]) if ends else None
            operands = {
                stand_in: _laid_out(planned, use, planned.weight.array())
                for (planned, use), stand_in in zip(probes, stand_ins, strict=True)
            }

            def run(replaced: Mapping[ir.Value, Array]) -> list[dict[ir.Value, Array]]:
                if tail is None:
                    return [{} for _ in self.wanted]
                samples = range(len(self.wanted))
                return [tail.run({**self.collector.sample(i), **operands, **replaced}) for i in samples]

            def loss(planned: PlannedWeight, rounded_to: QuantizedTensor) -> float:
                alone = rounded_to.dequantize()
                mine = {
                    stand_in: _laid_out(planned, use, alone)
                    for (owner, use), stand_in in zip(probes, stand_ins, strict=True)
                    if owner is planned
                }
                made = run(mine)
                losses = [
                    sum(loss_of(end, wanted[end.output], outputs[end.output]) for end in ends)
                    for wanted, outputs in zip(self.wanted, made, strict=True)
                ]
                if not np.isfinite(losses).all():
                    raise CalibrationError(
                        f"mixed: {planned.weight.name}: the model's output is not finite with it rounded to {rounded_to.scheme.bits} bits"
                    )
                mean = float(np.mean(losses))
                return 0.0 if mean < NOISE and _are_equal(made, run({})) else mean

            yield loss
        finally:
            for use, value in kept:
                use.node.replace_input_with(use.input_index, value)


def _are_equal(made: Sequence[Mapping[ir.Value, Array]], other: Sequence[Mapping[ir.Value, Array]]) -> bool:
    return all(
        np.array_equal(outputs[value], others[value])
        for outputs, others in zip(made, other, strict=True)
        for value in outputs
    )


def _ratios(
    planned: PlannedWeight,
    bits: Sequence[int],
    reference: int,
    alone: QuantizedTensor,
    statistics: InputStatistics | None,
) -> list[float]:
    """The layer's output error at each of ``bits``, with scales that are searched, over that of rounding to nearest at the reference.

    Args:
        alone: the whole weight so rounded, which is not exact.
    """
    values = planned.weight.array()
    at_reference = scheme_at(planned, reference)
    rows = values[even_rows(at_reference, len(values))]
    if quantization_error(rows, rounded(rows, at_reference), None).weight <= ON_GRID:  # others are not exact
        rows = values[largest_rows(at_reference, row_errors(values, alone))]
    base = quantization_error(rows, rounded(rows, at_reference), statistics).output
    if base <= 0:  # the rows read only channels that are 0
        statistics, base = None, quantization_error(rows, rounded(rows, at_reference), None).weight
    if base <= 0:  # a range of their own, which the whole weight's is not, holds them
        return [1.0] * len(bits)
    return [
        quantization_error(rows, searched(rows, statistics, scheme_at(planned, width)), statistics).output
        / base
        for width in bits
    ]


def _input(planned: PlannedWeight) -> ir.Value:
    """What the weight's first product multiplies it with."""
    use = next(use for use in uses_of(planned) if use.role is not Role.EMBEDDING)
    value = use.node.inputs[0]
    assert value is not None
    return value


def _laid_out(planned: PlannedWeight, use: WeightUse, values: Array) -> Array:
    """What the node reads of these values [N, K], in the type that it reads."""
    return np.ascontiguousarray(operand_of(planned, use, values), dtype=planned.weight.dtype.numpy())
