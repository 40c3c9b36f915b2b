"""Quantize every planned weight, segment by segment, each seeing what the quantized segments before it compute.

*Given* a model whose products are MatMul and Gather (see ``expand_gemm``), a plan, and calibration feeds where an algorithm wants them.
*Result* the middle form: each weight is one DequantizeLinear (opset 21, blockwise) of constants in the spill file, read by all its
uses; one of a codebook is a chain of nodes (see ``codebook_form``). Names, inputs and outputs stay.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.algorithms import call, checked
from qcompiler.algorithms.arrays import row_blocks
from qcompiler.algorithms.error import quantization_error
from qcompiler.calibration.collector import Collector, Statistics
from qcompiler.calibration.saved_borders import SavedBorders
from qcompiler.calibration.segments import Segment, cut_segments
from qcompiler.errors import SchemeError
from qcompiler.graph.census import take_census
from qcompiler.graph.checkpoints import Checkpoints
from qcompiler.graph.correction_form import add_corrections
from qcompiler.graph.edits import Names
from qcompiler.graph.stored_corrections import StoredCorrections, store_corrections
from qcompiler.graph.weight_form import emit_weight
from qcompiler.graph.weight_store import WeightStore
from qcompiler.graph.weights import Expert, Role
from qcompiler.passes.finished_parts import FinishedPart, FinishedParts
from qcompiler.passes.layer_result import LayerResult
from qcompiler.passes.migrate_scales import ScaleMigration
from qcompiler.passes.place_weight import WeightPlacement
from qcompiler.passes.segment_stages import by_input, stages, taps
from qcompiler.passes.tune_segment import Held, SegmentTuning, refuse_what_has_no_gradient
from qcompiler.quant.scheme import QuantScheme
from qcompiler.quant.statistics import GroupedStatistics
from qcompiler.quant.tensor import CorrectedTensor, QuantizedTensor, base_of
from qcompiler.recipe.plan import Plan
from qcompiler.recipe.planned_weight import PlannedWeight

UNREACHED = "calibration never reached it: its scales come from the weight alone"
FEW_ROWS = "damping alone makes the Hessian definite; give more data"

Feeds = Sequence[Mapping[str, npt.NDArray[Any]]]
Progress = Callable[[str, int, int], None]
"""(what is at hand, weights done, weights in all)."""


@dataclass(frozen=True)
class CalibrationRun:
    """Feeds and the place and memory for border activations."""

    feeds: Feeds
    folder: Path
    border_limit: int  # bytes


class QuantizeWeights(ir.passes.InPlacePass):
    """The pass; its ``results`` are filled as it goes.

    Args:
        checkpoints: over the same store. What an earlier run had finished is taken from there, and every finished segment
            (and weight outside segments) added. None: none are kept.
        remark: what a target has to say of a scheme, whether rows of the weight are gathered, and whether outliers stand beside it.
    """

    def __init__(
        self,
        plan: Plan,
        store: WeightStore,
        calibration: CalibrationRun | None,
        progress: Progress,
        checkpoints: Checkpoints | None = None,
        remark: Callable[[QuantScheme, bool, bool], list[str]] = lambda scheme, gathered, outliers: [],
    ) -> None:
        super().__init__()
        self._plan = plan
        self._store = store
        self._calibration = calibration
        self._progress = progress
        self._parts = FinishedParts(plan, store, checkpoints)
        self._remark = remark
        self._done: set[PlannedWeight] = set()
        self._tuning: SegmentTuning | None = None
        self.results: list[LayerResult] = []

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        if len(self._done) == len(self._plan.quantized):
            return ir.passes.PassResult(model, modified=False)
        self._model = model
        self._names = Names(model)
        positions = {node: index for index, node in enumerate(model.graph)}
        self._placement = WeightPlacement(model.graph, self._names, positions)
        self._by_output = {node.outputs[0].name or "": node for node in model.graph if node.outputs}
        if self._calibration is not None and any(planned.needs for planned in self._plan.quantized):
            for planned in self._plan.quantized:
                if all(use.role is Role.EMBEDDING for use in planned.weight.uses):
                    self._quantize_alone(planned)  # what they hand on is what every segment sees
            self._quantize_by_segment(self._calibration)
        for planned in self._plan.quantized:
            if planned not in self._done:
                self._quantize_alone(planned)
        order = {planned.weight.name: index for index, planned in enumerate(self._plan.quantized)}
        self.results.sort(key=lambda result: order[result.name])
        few = [result.name for result in self.results if any(FEW_ROWS in note for note in result.notes)]
        if few:
            self._plan.warnings.append(
                f"{len(few)} of the weights have more channels than calibration has rows ({few[0]}): "
                f"{FEW_ROWS}, or set calib.samples and calib.length"
            )
        self._plan.warnings += [*_unreached(self._plan.quantized), *_grown(self.results)]
        return ir.passes.PassResult(model, modified=True)

    def notes_of(self, name: str) -> list[str]:
        """What is to be said of a weight, also by the passes behind this one."""
        return next(planned.notes for planned in self._plan.quantized if planned.weight.name == name)

    def _quantize_by_segment(self, run: CalibrationRun) -> None:
        by_node, anchors = _products(self._plan), _anchors(self._model, self._plan)
        feeds = run.feeds
        collector = Collector(self._model, anchors, feeds, run.folder, run.border_limit)
        borders, float_borders = SavedBorders(run.folder), SavedBorders(run.folder, "float")
        if any(planned.settings.reconstruction is not None for planned in self._plan.quantized):
            floats = Collector(self._model, anchors, feeds, run.folder, run.border_limit)
            self._tuning = SegmentTuning(self._model, floats, run.folder)
        for segment in collector.segments:
            part = f"segment {segment.index}"
            saved = self._taken(part)
            if saved is not None:
                if not self._parts.more:  # the borders of earlier ones are gone
                    collector.go_on_after(segment, borders.load(saved.borders))
                    if self._tuning is not None:
                        self._tuning.floats.go_on_after(segment, float_borders.load(saved.float_borders))
                continue
            members = {
                node: by_node[node]
                for node in segment.nodes
                if node in by_node and by_node[node] not in self._done
            }
            if self._tuning is not None:
                self._tuning.begin(segment, members)
            if members:
                self._quantize_segment(collector, segment, members)
            collector.advance(segment)
            if self._parts.are_kept:
                saved_floats = None
                if self._tuning is not None:
                    saved_floats = float_borders.save(segment.index, self._tuning.floats.handed_on(segment))
                handed_on = collector.handed_on(segment)
                self._parts.save(part, borders.save(segment.index, handed_on), saved_floats)
                borders.drop_old()
                float_borders.drop_old()

    def _quantize_alone(self, planned: PlannedWeight) -> None:
        """A weight outside segments, from the weight alone."""
        part = f"weight {self._plan.quantized.index(planned)}"
        if self._taken(part) is None:
            self._quantize(planned, None)
            self._parts.save(part, None)

    def _quantize_segment(
        self, collector: Collector, segment: Segment, members: Mapping[ir.Node, PlannedWeight]
    ) -> None:
        """Scales first, over the whole segment in float; then its weights, those first that see no other of them."""
        first = next(iter(members.values())).weight.name
        self._progress(f"observing {first}", len(self._done), len(self._plan.quantized))
        for planned in members.values():
            _require_finite(planned)  # before its NaN is found in what it computes
        known = self._migrate(collector, segment, members)
        for readers in stages(collector.nodes_of(segment), members):
            unknown = {
                tap: nodes for tap, nodes in readers.items() if not known.keys() >= set(nodes.values())
            }
            observed = collector.observe_stage(segment, taps(unknown))
            statistics: dict[PlannedWeight, Statistics | None] = {}
            for tap, nodes in readers.items():
                for planned in nodes.values():
                    statistics.setdefault(planned, known[planned] if planned in known else observed.get(tap))
            for planned, seen in statistics.items():
                if planned in self._done:
                    continue
                if planned.needs and seen is None:
                    planned.notes.append(UNREACHED)
                elif seen is not None and _rows_lack(planned, seen):
                    planned.notes.append(
                        f"{seen.rows} rows of calibration for {planned.weight.shape[1]} channels: {FEW_ROWS}"
                    )
                self._quantize(planned, seen)
        if self._tuning is not None:
            done, total = len(self._done), len(self._plan.quantized)
            self._progress(f"tuning {first}", done, total)

            def stepped(step: int, steps: int) -> None:
                self._progress(f"tuning {first}, step {step} of {steps}", done, total)

            for tuned in self._tuning.finish(collector, segment, stepped):
                self._store_weight(tuned.planned, tuned.quantized, tuned.statistics)
            self._tuning.drop_untuned()

    def _migrate(
        self, collector: Collector, segment: Segment, members: Mapping[ir.Node, PlannedWeight]
    ) -> dict[PlannedWeight, Statistics | None]:
        """Move scales between the segment's weights.

        Returns:
            statistics of the weights that want no others: those that no weight of the segment feeds, and those whose quantizer
            makes up for no error, so that the errors before it are nothing to it.
        """
        if not any(planned.settings.transforms for planned in members.values()):
            return {}
        read = by_input(members)
        observed = collector.observe(segment, taps(read))
        migration = ScaleMigration(
            self._model,
            collector.nodes_of(segment),
            segment.inputs,
            collector.sample(0),
            members,
            self._names,
        )
        after = {tap: migration.apply(tap, nodes, observed.pop(tap, None)) for tap, nodes in read.items()}
        self._parts.add_scales(migration.applied)
        unfed = {
            p for nodes in stages(collector.nodes_of(segment), members)[0].values() for p in nodes.values()
        }
        return {
            planned: after[tap]
            for tap, nodes in read.items()
            for planned in nodes.values()
            if planned in unfed or not planned.settings.quantizer.algorithm.spreads
        }

    def _quantize(self, planned: PlannedWeight, statistics: Statistics | None) -> None:
        weight = planned.weight
        self._progress(weight.name, len(self._done), len(self._plan.quantized))
        values = weight.array()
        quantizer = partial(_quantized, planned, statistics)
        quantized = quantizer(values)
        for step in planned.settings.refinements:
            again = (quantizer,) if step.algorithm.requantizes else ()
            refined = call(step.algorithm, weight.name, values, quantized, statistics, step.options, *again)
            quantized = checked(refined, planned.scheme, weight.shape, f"{weight.name}: {step.name}")
        if self._tuning is not None and self._tuning.waits_for(planned, quantized):
            store, base = self._tuning.store, base_of(quantized)
            self._tuning.hold(Held(planned, quantized, statistics))
            self._placement.put(
                planned,
                lambda layout, name: emit_weight(store, base, layout, name, weight.dtype),
                word="untuned",
            )
        else:
            self._store_weight(planned, quantized, statistics)

    def _store_weight(
        self, planned: PlannedWeight, quantized: QuantizedTensor, statistics: Statistics | None
    ) -> None:
        weight = planned.weight
        corrected = quantized if isinstance(quantized, CorrectedTensor) else None
        if corrected is not None and corrected.outliers is not None:
            said = self._remark(planned.scheme, weight.is_gathered, True)  # the plan knows what is announced
            planned.notes += [line for line in said if line not in planned.notes]
        loss = quantization_error(weight.array(), quantized, statistics)
        result = LayerResult(
            weight.name, weight.role.value, "/".join(dict.fromkeys(use.node.op_type for use in weight.uses)), weight.shape,
            planned.scheme.label, planned.algorithm, planned.settings.decided_by, weight.float_bytes,
            planned.stored_bytes if corrected is None else corrected.stored_bytes,
            loss.output, loss.weight, loss.sqnr_db, loss.cosine, tuple(planned.notes),
            "" if corrected is None else corrected.label,
        )  # fmt: skip
        node = self._placement.put(
            planned,
            lambda layout, name: emit_weight(self._store, base_of(quantized), layout, name, weight.dtype),
            result,
        )
        stored = None if corrected is None else store_corrections(self._store, corrected, weight.name)
        self._finish(planned, result, stored)
        self._parts.add_weight(planned, result, node, stored)

    def _finish(
        self, planned: PlannedWeight, result: LayerResult, corrections: StoredCorrections | None
    ) -> None:
        if corrections is not None:
            uses = planned.weight.uses
            products = add_corrections(
                self._model, [use.node for use in uses], corrections, planned.weight.name, self._names
            )
            for use, product in zip(uses, products, strict=True):
                use.node = product
        self._done.add(planned)
        self.results.append(result)

    def _taken(self, part: str) -> FinishedPart | None:
        """A part that an earlier run had finished, its edits made again; None where it is still to be done."""
        found = self._parts.take(part)
        if found is None:
            return None
        for applied in found.scales:
            applied.apply_again(self._model, self._by_output, self._names)
        for each in found.weights:
            each.planned.notes[:] = each.result.notes
            self._placement.put(each.planned, each.make, each.result)
            self._finish(each.planned, each.result, each.corrections)
        self._progress(f"{part} was finished", len(self._done), len(self._plan.quantized))
        return found


def check_tuning(model: ir.Model, plan: Plan) -> None:
    """What tuning would refuse of the model that the pass will see, before there are data.

    Raises:
        CalibrationError: an operator cannot be differentiated.
        ResourceError: torch is missing.
        SchemeError: weights that are tuned together have other options.
    """
    if any(planned.settings.reconstruction is not None for planned in plan.quantized):
        segments = cut_segments(model.graph, set(_anchors(model, plan)))
        refuse_what_has_no_gradient(model, segments, _products(plan))


def _products(plan: Plan) -> dict[ir.Node, PlannedWeight]:
    """The products of the weights that are quantized segment by segment."""
    return {
        use.node: planned
        for planned in plan.quantized
        for use in planned.weight.uses
        if use.role is not Role.EMBEDDING and use.in_body is None
    }


def _anchors(model: ir.Model, plan: Plan) -> list[ir.Node]:
    """The nodes that segments are cut around."""
    anchors = [use.top_level for planned in plan.quantized for use in planned.weight.uses]
    # A float embedding starts the trunk too, else the first block is cut between its own linears.
    weights = take_census(model).weights
    return anchors + [use.top_level for w in weights for use in w.uses if use.role is Role.EMBEDDING]


def _quantized(
    planned: PlannedWeight, statistics: Statistics | None, values: npt.NDArray[Any]
) -> QuantizedTensor:
    """What the weight's quantizer makes of values [N, K]."""
    step, name = planned.settings.quantizer, planned.weight.name
    if isinstance(statistics, GroupedStatistics) and not step.algorithm.in_groups:
        statistics = None
    found = call(step.algorithm, name, values, statistics, planned.scheme, step.options)
    return checked(found, planned.scheme, planned.weight.shape, f"{name}: {step.name}")


def _unreached(quantized: Sequence[PlannedWeight]) -> list[str]:
    """A line for each stack of experts of which calibration reached some and others not."""
    missed: dict[str, list[Expert]] = {}
    for planned in quantized:
        if planned.weight.expert is not None and UNREACHED in planned.notes:
            missed.setdefault(planned.weight.expert.stack, []).append(planned.weight.expert)
    return [
        f"{stack}: calibration never reached {len(experts)} of {experts[0].count} experts "
        f"({', '.join(str(expert.index) for expert in experts)}): scales come from the weights alone; give more data"
        for stack, experts in missed.items()
    ]


def _grown(results: Sequence[LayerResult]) -> list[str]:
    """A line on weights beside which calibration has found more to keep than their codes save."""
    larger = [
        result
        for result in results
        if result.algorithm == "llmint8" and result.stored_bytes > result.float_bytes
    ]
    if not larger:
        return []
    worst = max(larger, key=lambda result: result.stored_bytes / result.float_bytes)
    return [
        f"{len(larger)} of {len(results)} weights take more bytes than they did ({worst.name}: {worst.beside} of {worst.shape[1]}); "
        "raise the threshold of llmint8"
    ]


def _rows_lack(planned: PlannedWeight, statistics: Statistics) -> bool:
    return planned.settings.quantizer.algorithm.spreads and statistics.rows < planned.weight.shape[1]


def _require_finite(planned: PlannedWeight) -> None:
    values = planned.weight.array()
    if not all(np.isfinite(values[rows]).all() for rows in row_blocks(values)):
        raise SchemeError(f"{planned.weight.name}: the weight holds NaN or infinity; it cannot be quantized")
