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
from qcompiler.calibration.collector import Collector
from qcompiler.calibration.segments import Segment
from qcompiler.errors import CalibrationError
from qcompiler.graph.extract import Piece
from qcompiler.graph.weights import Role, WeightUse
from qcompiler.passes.quantize_weights import CalibrationRun, Progress
from qcompiler.passes.sensitivity import (
    KL,
    ROWS,
    End,
    Sensitivities,
    Sensitivity,
    anchors_of,
    find_end,
    reference_of,
    rounded,
    scheme_at,
    searched,
    sensitivity,
    uses_of,
)
from qcompiler.quant import metrics
from qcompiler.quant.statistics import InputStatistics
from qcompiler.recipe.mixed import MixedSettings
from qcompiler.recipe.plan import PlannedWeight

Array = npt.NDArray[Any]


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
    """
    end, reference = find_end(model), reference_of(settings.bits)
    feeds = list(run.feeds)[: settings.samples]
    collector = Collector(model, anchors_of(model), feeds, run.folder, run.border_limit)
    whole = Piece(model, list(model.graph), model.graph.inputs, [end.output])
    wanted = [whole.run(collector.sample(index))[end.output] for index in range(len(feeds))]
    probe = _Probe(model, collector, end, wanted, reference)
    found: dict[PlannedWeight, Sensitivity] = {}

    def measure(
        segment: Segment,
        members: Sequence[PlannedWeight],
        observed: Mapping[ir.Value, InputStatistics | None],
    ) -> None:
        with probe.over(segment, members) as losses:
            for planned in members:
                progress(f"measuring {planned.weight.name}", len(found), len(free))
                measured = losses(planned)
                statistics = observed.get(_input(planned))
                ratios = _ratios(planned, settings.bits, reference, statistics)
                found[planned] = sensitivity(planned, measured, settings.bits, ratios)

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
            taps = {_input(planned): (planned.weight.shape[1], needs) for planned in members}
            measure(segment, members, collector.observe(segment, taps))
        collector.advance(segment)
    return Sensitivities(end.measure(wanted[0].shape), reference, found)


@dataclass(frozen=True)
class _Probe:
    """Runs the model with one weight rounded.

    Attributes:
        collector: its borders are those of the segment at hand.
        wanted: the float model's output, of each sample.
    """

    model: ir.Model
    collector: Collector
    end: End
    wanted: Sequence[Array]
    reference: int

    @contextmanager
    def over(
        self, segment: Segment, members: Sequence[PlannedWeight]
    ) -> Iterator[Callable[[PlannedWeight], float]]:
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
            tail = Piece(self.model, nodes[first:], given, [self.end.output])
            operands = {
                stand_in: _operand(planned, planned.weight.array(), use)
                for (planned, use), stand_in in zip(probes, stand_ins, strict=True)
            }

            def loss(planned: PlannedWeight) -> float:
                alone = rounded(planned.weight.array(), scheme_at(planned, self.reference)).dequantize()
                mine = {
                    stand_in: _operand(planned, alone, use)
                    for (owner, use), stand_in in zip(probes, stand_ins, strict=True)
                    if owner is planned
                }
                losses = [
                    self._loss(index, tail.run({**self.collector.sample(index), **operands, **mine}))
                    for index in range(len(self.wanted))
                ]
                if not np.isfinite(losses).all():
                    raise CalibrationError(
                        f"mixed: {planned.weight.name}: the model's output is not finite with it rounded to {self.reference} bits"
                    )
                return float(np.mean(losses))

            yield loss
        finally:
            for use, value in kept:
                use.node.replace_input_with(use.input_index, value)

    def _loss(self, index: int, made: Mapping[ir.Value, Array]) -> float:
        wanted, output = self.wanted[index], made[self.end.output]
        if self.end.measure(wanted.shape) == KL:
            return metrics.kl_divergence(wanted, output)
        noise = np.square(output.astype(np.float64) - wanted).sum()
        return float(noise / max(np.square(wanted.astype(np.float64)).sum(), 1e-30))


def _ratios(
    planned: PlannedWeight, bits: Sequence[int], reference: int, statistics: InputStatistics | None
) -> list[float]:
    """The layer's output error at each of ``bits``, with scales that are searched, over that of rounding to nearest at the reference."""
    values = planned.weight.array()
    rows = values[np.linspace(0, len(values) - 1, min(ROWS, len(values))).astype(int)]
    at_reference = rounded(rows, scheme_at(planned, reference))
    base = max(quantization_error(rows, at_reference, statistics).output, 1e-30)
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


def _operand(planned: PlannedWeight, values: Array, use: WeightUse) -> Array:
    """What the node reads, in the type that it reads: rows to gather from, or [K, N] to multiply with."""
    laid_out = values if use.role is Role.EMBEDDING else values.T
    return np.ascontiguousarray(laid_out, dtype=planned.weight.dtype.numpy())
