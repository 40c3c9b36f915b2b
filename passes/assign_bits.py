"""Give each weight its bits: those whose rounding the model feels most get more of them, under a budget.

*Given* a plan whose recipe has a ``mixed:`` section, and calibration feeds.
*Result* the plan with a scheme chosen for each weight; the model is not changed.

What a weight costs at b bits is predicted as  L_w e_w(b) / e_w(r).  L_w is the loss of the model's output when this weight alone is
rounded to nearest at r bits, measured by running the model from the weight's segment to its end; e_w is the layer's output
error at that many bits. The costs are taken to add up. Where the output comes from a head the loss is the mean over tokens of
KL(float || rounded), else the relative squared error of the first output.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.algorithms import Need, allocate, mse, rtn
from qcompiler.algorithms.error import quantization_error
from qcompiler.calibration.collector import Collector
from qcompiler.calibration.segments import Segment
from qcompiler.errors import CalibrationError, SchemeError
from qcompiler.graph.census import take_census
from qcompiler.graph.extract import Piece
from qcompiler.graph.stored_quantized import SCALE_NAMES
from qcompiler.graph.weights import Role
from qcompiler.passes.quantize_weights import CalibrationRun, Progress
from qcompiler.quant import metrics
from qcompiler.quant.scheme import QuantScheme, fit_group
from qcompiler.quant.statistics import InputStatistics
from qcompiler.recipe.mixed import MixedSettings
from qcompiler.recipe.plan import Plan, PlannedWeight

Array = npt.NDArray[Any]
ROWS = 256  # of a weight that the ratios of its errors are measured on
LEAST = 1e-12  # over the bits: where nothing is felt, more of them are still taken to be better


@dataclass(frozen=True)
class Sensitivity:
    """What one weight costs.

    Attributes:
        measured: the loss with this weight alone rounded, at the reference bits.
        losses, bytes: predicted loss and size for each of the bits on offer.
    """

    name: str
    measured: float
    losses: tuple[float, ...]
    bytes: tuple[int, ...]


@dataclass(frozen=True)
class MixedResult:
    """How the bits were given out.

    Attributes:
        measure: "kl" (nats a token) or "relative error".
        bits: what was on offer; ``chosen`` of each layer is one of them.
        bytes, loss: of all the weights, as chosen; the loss is predicted.
        trade: sizes and predicted losses of the best choices for other budgets.
    """

    measure: str
    reference_bits: int
    bits: tuple[int, ...]
    layers: tuple[Sensitivity, ...]
    chosen: tuple[int, ...]
    bytes: int
    loss: float
    trade: tuple[tuple[int, float], ...]


class AssignBits(ir.passes.InPlacePass):
    """The pass; ``result`` is filled, and the plan's schemes changed, when it has run.

    Args:
        supports: why the target cannot store a scheme, or None.
    """

    def __init__(
        self,
        plan: Plan,
        settings: MixedSettings | None,
        supports: Callable[[QuantScheme], str | None],
        calibration: CalibrationRun | None,
        progress: Progress,
    ) -> None:
        super().__init__()
        self._plan = plan
        self._settings = settings
        self._supports = supports
        self._calibration = calibration
        self._progress = progress
        self.result: MixedResult | None = None

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        if self._settings is None or self.result is not None:
            return ir.passes.PassResult(model, modified=False)
        if self._calibration is None:
            raise CalibrationError(
                "mixed: bits are given out by what the model does on data, and the recipe needs none"
            )
        free = [planned for planned in self._plan.quantized if _is_free(planned)]
        if not free:
            raise CalibrationError(
                "mixed: no weight's effect can be measured: rules decide all, or they are inside control flow"
            )
        for planned in free:
            for bits in self._settings.bits:
                refusal = self._supports(scheme_at(planned, bits))
                if refusal is not None:
                    raise SchemeError(f"mixed: {planned.weight.name}: {refusal}")
        measured = _Measured(model, self._plan, free, self._settings, self._calibration, self._progress)
        stored = sum(
            value.const_value.nbytes
            for value in model.graph.initializers.values()
            if value.const_value is not None
        )
        self._decide(measured, self._settings, stored - self._plan.float_bytes)
        return ir.passes.PassResult(model, modified=False)

    def _decide(self, measured: "_Measured", settings: MixedSettings, rest: int) -> None:
        layers = [measured.sensitivities[planned] for planned in measured.free]
        sizes, losses = [layer.bytes for layer in layers], [layer.losses for layer in layers]
        fixed = sum(p.stored_bytes for p in self._plan.quantized if p not in measured.sensitivities)
        weights = sum(p.weight.shape[0] * p.weight.shape[1] for p in self._plan.quantized)
        budget = settings.budget_bytes(weights, rest)
        chosen = allocate.at_most(settings.max_kl, sizes, losses) if settings.max_kl else None
        if budget is not None and (chosen is None or chosen.bytes + fixed > budget):
            chosen = allocate.within(budget - fixed, sizes, losses)
            if chosen.bytes + fixed > budget:
                self._plan.warnings.append(
                    f"mixed: a budget of {settings.budget} cannot be met; the least there is takes "
                    f"{(chosen.bytes + fixed) / 1e6:.1f} MB for the weights, {rest / 1e6:.1f} MB for the rest"
                )
        assert chosen is not None  # settings give one of the two
        if settings.max_kl and chosen.loss > settings.max_kl:
            self._plan.warnings.append(
                f"mixed: max_kl {settings.max_kl:g} cannot be met; the prediction is {chosen.loss:.3g}"
            )
        for planned, layer, index in zip(measured.free, layers, chosen.choice, strict=True):
            bits = settings.bits[index]
            told = f"mixed: {bits} bits; {layer.measured:.2g} {measured.measure} alone at {measured.reference} bits"
            planned.settings = replace(planned.settings, bits=bits, decided_by=told)
            planned.scheme = scheme_at(planned, bits)
        points = tuple((point.bytes + fixed, point.loss) for point in allocate.trade(sizes, losses))
        self.result = MixedResult(
            measured.measure, measured.reference, settings.bits, tuple(layers),
            tuple(settings.bits[index] for index in chosen.choice), chosen.bytes + fixed, chosen.loss, points,
        )  # fmt: skip


def _is_free(planned: PlannedWeight) -> bool:
    """Whether its bits are ours to choose: no rule has decided, and its effect can be measured."""
    used = any(use.role is not Role.EMBEDDING and use.in_body is None for use in planned.weight.uses)
    return used and not planned.settings.decided_by.startswith("rule ")


class _Measured:
    """The sensitivities of the free weights.

    Attributes:
        reference: bits at which each is rounded alone.
    """

    def __init__(
        self,
        model: ir.Model,
        plan: Plan,
        free: Sequence[PlannedWeight],
        settings: MixedSettings,
        run: CalibrationRun,
        progress: Progress,
    ) -> None:
        self.free = free
        self.sensitivities: dict[PlannedWeight, Sensitivity] = {}
        self._model = model
        self._bits = settings.bits
        self._progress = progress
        self.reference = min(settings.bits, key=lambda bits: abs(bits - 4))
        census = take_census(model)
        heads = [use for weight in census.weights for use in weight.uses if use.role is Role.HEAD]
        self._output = _output(model, heads[0].node if heads else None)
        anchors = [use.top_level for weight in census.weights for use in weight.uses]
        self._by_node = {
            use.node: planned
            for planned in free
            for use in planned.weight.uses
            if use.role is not Role.EMBEDDING
        }
        feeds = list(run.feeds)[: settings.samples]
        collector = Collector(model, anchors, feeds, run.folder, run.border_limit)
        self._samples = len(feeds)
        whole = Piece(model, list(model.graph), model.graph.inputs, [self._output])
        self._float = [whole.run(collector.sample(index))[self._output] for index in range(self._samples)]
        # Of one class alone the softmax is 1, whatever the logit.
        self.measure = "kl" if heads and self._float[0].shape[-1] > 1 else "relative error"
        for planned in free:
            if any(
                use.role is Role.EMBEDDING for use in planned.weight.uses
            ):  # tied: felt from the first node on
                self._measure(collector, collector.segments[0], [planned], {})
        for segment in collector.segments:
            members = dict.fromkeys(
                self._by_node[node] for node in segment.nodes
                if node in self._by_node and self._by_node[node] not in self.sensitivities
            )  # fmt: skip
            if members:
                taps = {}
                for planned in members:
                    value = _product(planned).inputs[0]
                    assert value is not None
                    taps[value] = (planned.weight.shape[1], frozenset({Need.HESSIAN}))
                self._measure(collector, segment, list(members), collector.observe(segment, taps))
            collector.advance(segment)

    def _measure(
        self,
        collector: Collector,
        segment: Segment,
        members: Sequence[PlannedWeight],
        observed: Mapping[ir.Value, InputStatistics | None],
    ) -> None:
        """The members' sensitivities, by running from the segment's first node to the end with one of them rounded at a time."""
        probes = [(planned, use) for planned in members for use in planned.weight.uses if use.in_body is None]
        kept = [(use, use.node.inputs[use.input_index]) for _, use in probes]
        stand_ins = [
            ir.Value(name=f"{planned.weight.name}.probe.{i}") for i, (planned, _) in enumerate(probes)
        ]
        for (_, use), stand_in in zip(probes, stand_ins, strict=True):
            use.node.replace_input_with(use.input_index, stand_in)
        try:
            nodes = list(self._model.graph)
            first = next(index for index, node in enumerate(nodes) if node is segment.nodes[0])
            given = list(collector.sample(0))
            tail = Piece(self._model, nodes[first:], [*given, *stand_ins], [self._output])
            operands = {
                stand_in: _operand(planned, planned.weight.array(), use.role)
                for (planned, use), stand_in in zip(probes, stand_ins, strict=True)
            }
            for planned in members:
                self._progress(f"measuring {planned.weight.name}", len(self.sensitivities), len(self.free))
                rounded = rtn.quantize(
                    planned.weight.array(), None, scheme_at(planned, self.reference)
                ).dequantize()
                mine = {
                    stand_in: _operand(planned, rounded, use.role)
                    for (owner, use), stand_in in zip(probes, stand_ins, strict=True)
                    if owner is planned
                }
                losses = [
                    self._loss(index, tail.run({**collector.sample(index), **operands, **mine})[self._output])
                    for index in range(self._samples)
                ]
                value = _product(planned).inputs[0]
                statistics = None if value is None else observed.get(value)
                if not np.isfinite(losses).all():
                    raise CalibrationError(
                        f"mixed: {planned.weight.name}: the model's output is not finite with it rounded to {self.reference} bits"
                    )
                self.sensitivities[planned] = self._predicted(planned, float(np.mean(losses)), statistics)
        finally:
            for use, value in kept:
                use.node.replace_input_with(use.input_index, value)

    def _loss(self, index: int, output: Array) -> float:
        wanted = self._float[index]
        if self.measure == "kl":
            return metrics.kl_divergence(wanted, output)
        noise = np.square(output.astype(np.float64) - wanted).sum()
        return float(noise / max(np.square(wanted.astype(np.float64)).sum(), 1e-30))

    def _predicted(
        self, planned: PlannedWeight, measured: float, statistics: InputStatistics | None
    ) -> Sensitivity:
        values = planned.weight.array()
        rows = values[np.linspace(0, len(values) - 1, min(ROWS, len(values))).astype(int)]
        at_reference = rtn.quantize(rows, None, scheme_at(planned, self.reference))
        reference = quantization_error(rows, at_reference, statistics).output
        losses, sizes = [], []
        for bits in self._bits:
            scheme = scheme_at(planned, bits)
            error = quantization_error(rows, mse.quantize(rows, statistics, scheme), statistics).output
            losses.append(max(measured * error / max(reference, 1e-30), LEAST / bits))
            sizes.append(planned.bytes_of(scheme))
        return Sensitivity(planned.weight.name, measured, tuple(losses), tuple(sizes))


def scheme_at(planned: PlannedWeight, bits: int) -> QuantScheme:
    """The weight's scheme with other bits."""
    settings = replace(planned.settings, bits=bits)
    scheme = settings.scheme(SCALE_NAMES[planned.weight.dtype])
    return fit_group(scheme, planned.weight.shape[1], settings.group_fallback, planned.weight.name)[0]


def _product(planned: PlannedWeight) -> ir.Node:
    return next(
        use.node for use in planned.weight.uses if use.role is not Role.EMBEDDING and use.in_body is None
    )


def _operand(planned: PlannedWeight, values: Array, role: Role) -> Array:
    """What the node reads, in the type that it reads: rows to gather from, or [K, N] to multiply with."""
    laid_out = values if role is Role.EMBEDDING else values.T
    return np.ascontiguousarray(laid_out, dtype=planned.weight.dtype.numpy())


def _output(model: ir.Model, head: ir.Node | None) -> ir.Value:
    """The logits, or the first output of floats."""
    reached: set[ir.Value] = set() if head is None else {head.outputs[0]}
    for node in model.graph:
        if any(value in reached for value in node.inputs if value is not None):
            reached.update(node.outputs)
    outputs = [v for v in model.graph.outputs if head is None or v in reached]
    floats = [v for v in outputs if v.dtype is None or v.dtype.is_floating_point()]
    if not floats:
        raise CalibrationError("mixed: the model has no output of floats to measure on")
    return floats[0]
