"""Tune the quantized weights of a segment together (autoround), against what the float model computes.

The float model's border activations go along beside those of the quantized one, a segment at a time. Until they are tuned, the weights of a
segment lie in a file of their own beside the spill file, so that what is written there stays.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from qcompiler.algorithms import call, checked
from qcompiler.calibration.collector import Collector, Statistics
from qcompiler.calibration.executor import Executor
from qcompiler.calibration.segment_function import SegmentFunction, learnable_outputs
from qcompiler.calibration.segments import Segment
from qcompiler.errors import SchemeError
from qcompiler.graph.weight_store import WeightStore
from qcompiler.quant.affine_tensor import AffineTensor
from qcompiler.quant.tensor import CorrectedTensor, QuantizedTensor
from qcompiler.recipe.planned_weight import PlannedWeight
from qcompiler.recipe.steps import Step

FILE = "untuned.bin"


@dataclass(frozen=True, eq=False)
class Held:
    """A weight that waits for the others of its segment: its numbers so far, and what its input was."""

    planned: PlannedWeight
    quantized: QuantizedTensor
    statistics: Statistics | None


def refuse_what_has_no_gradient(
    model: ir.Model, segments: Sequence[Segment], members: Mapping[ir.Node, PlannedWeight]
) -> None:
    """What ``SegmentTuning`` would refuse of the model alone, before there are data; nothing is edited.

    Args:
        members: the products of the weights to be quantized.
    Raises:
        CalibrationError: an operator of a segment cannot be differentiated here; names it.
        ResourceError: torch is missing.
        SchemeError: the weights of a segment are to be tuned with different options.
    """
    last_reader = {value: segment.index for segment in segments for value in segment.inputs}
    for segment in segments:
        own = _tuned({node: members[node] for node in segment.nodes if node in members})
        weights = [_operand(planned) for planned in own if _makes_plain_codes(planned)]
        if weights:
            later = [value for value in segment.outputs if last_reader.get(value, -1) > segment.index]
            outputs = learnable_outputs(segment.nodes, weights, later, segment)
            Executor(model, segment.nodes, segment.inputs, outputs, replaced=weights)


class SegmentTuning:
    """One segment after the other: ``begin``, ``hold`` each of its weights once it is quantized, ``finish``.

    Args:
        floats: a collector over the same model, segments and data as the quantized stream's, which sees each segment before it is edited.
        folder: for the weights that are not tuned yet.
    """

    def __init__(self, model: ir.Model, floats: Collector, folder: Path) -> None:
        self.floats = floats
        self._model = model
        self._folder = folder
        self._store: WeightStore | None = None
        self._step: Step | None = None
        self._waits: set[PlannedWeight] = set()
        self._held: list[Held] = []
        self._outputs: list[ir.Value] = []

    def begin(self, segment: Segment, members: Mapping[ir.Node, PlannedWeight]) -> None:
        """Run the segment in float, before it is edited.

        Raises:
            SchemeError: its weights are to be tuned with different options.
        """
        tuned = _tuned(members)
        self._waits = set(tuned)
        self._step = tuned[0].settings.reconstruction if tuned else None
        weights = [_operand(planned) for planned in tuned]
        nodes, later = self.floats.nodes_of(segment), self.floats.read_later(segment)
        self._outputs = learnable_outputs(nodes, weights, later, segment)
        self.floats.advance(segment, self._outputs)

    def waits_for(self, planned: PlannedWeight, quantized: QuantizedTensor) -> bool:
        """Whether a weight is tuned before it is finished; one that is more than codes and plain scales is not, and its notes say so."""
        if planned in self._waits and not isinstance(quantized, AffineTensor):
            what = quantized.label if isinstance(quantized, CorrectedTensor) else planned.scheme.label
            planned.notes.append(f"not tuned: that is for codes with plain scales alone, and this is {what}")
            return False
        return planned in self._waits

    @property
    def store(self) -> WeightStore:
        """Where the weights of the segment lie until then."""
        if self._store is None:
            self._store = WeightStore(self._folder, FILE)
        return self._store

    def hold(self, held: Held) -> None:
        """Take in a weight of the segment, quantized, with its nodes in the graph."""
        self._held.append(held)

    def finish(
        self, collector: Collector, segment: Segment, stepped: Callable[[int, int], None]
    ) -> list[Held]:
        """The weights of the segment, tuned; the collector then has to run it from its inputs on.

        Args:
            collector: of the quantized stream.
            stepped: called with (steps done, of how many).
        Raises:
            CalibrationError: an operator of the segment cannot be differentiated here; names it.
        """
        held, step = self._held, self._step
        if not held or step is None:
            return []
        collector.begin_again(segment)
        weights: Sequence[npt.NDArray[Any]] = [each.planned.weight.array() for each in held]
        function = SegmentFunction(
            self._model,
            collector.nodes_of(segment),
            segment,
            [_operand(each.planned) for each in held],
            self._outputs,
            collector,
            self.floats,
            getattr(step.options, "device", "cpu"),
            stepped,
        )
        where = f"{held[0].planned.weight.name} and what is tuned with it"
        tuned = call(
            step.algorithm, where, weights, [each.quantized for each in held], function, step.options
        )
        said = f"{step.name}: relative error of the segment's output on held-out samples {tuned.before:.3g}"
        said += f", now {tuned.after:.3g}" if tuned.after < tuned.before else "; nothing better was found"
        finished = []
        for each, quantized in zip(held, tuned.weights, strict=True):
            planned = each.planned
            planned.notes.append(said)
            good = checked(
                quantized, planned.scheme, planned.weight.shape, f"{planned.weight.name}: {step.name}"
            )
            finished.append(Held(planned, good, each.statistics))
        self._held, self._waits = [], set()
        return finished

    def drop_untuned(self) -> None:
        """Remove the file of the segment; nothing in the graph reads it any more."""
        if self._store is not None:
            self._store.close()
            self._store.path.unlink(missing_ok=True)
            self._store = None


def _tuned(members: Mapping[ir.Node, PlannedWeight]) -> list[PlannedWeight]:
    """The weights of a segment that are tuned; those that cannot be get a note.

    Raises:
        SchemeError: they are to be tuned with different options.
    """
    tuned = list(dict.fromkeys(p for p in members.values() if p.settings.reconstruction is not None))
    for planned in [p for p in tuned if len(p.weight.uses) > 1]:
        planned.notes.append("not tuned: the weight is used more than once, and its inputs differ")
        tuned.remove(planned)
    for planned in tuned:
        if planned.settings.reconstruction != tuned[0].settings.reconstruction:
            raise SchemeError(
                f"{planned.weight.name}: is tuned together with {tuned[0].weight.name}, with other options; give both the same"
            )
    return tuned


def _makes_plain_codes(planned: PlannedWeight) -> bool:
    """Whether the weight will be codes with plain scales alone: others are not tuned."""
    beside = any(step.algorithm.beside is not None for step in planned.settings.algorithm)
    return not (beside or planned.scheme.is_codebook or planned.scheme.two_level)


def _operand(planned: PlannedWeight) -> ir.Value:
    """What the weight's one use reads as [K, N]."""
    use = planned.weight.uses[0]
    value = use.node.inputs[use.input_index]
    assert value is not None
    return value
