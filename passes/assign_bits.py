"""Give each weight its bits: those whose rounding the model feels most get more of them, under a budget.

*Given* a plan whose recipe has a ``mixed:`` section, and calibration feeds.
*Result* the plan with a scheme chosen for each weight; the model is not changed.

What a weight costs is measured (``output_sensitivity``) or comes from gradients (``fisher_sensitivity``); the costs are taken to add up.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import onnx_ir as ir

from qcompiler.algorithms import allocate
from qcompiler.errors import CalibrationError, SchemeError
from qcompiler.graph.weights import Role
from qcompiler.passes.fisher_sensitivity import by_fisher, refuse_what_has_no_gradient
from qcompiler.passes.measured_outputs import find_ends, measure_of, require_kl
from qcompiler.passes.output_sensitivity import by_output
from qcompiler.passes.quantize_weights import CalibrationRun, Progress
from qcompiler.passes.sensitivity import Sensitivities, Sensitivity, scheme_at
from qcompiler.passes.unfelt_weights import settle
from qcompiler.quant.scheme import QuantScheme
from qcompiler.recipe.mixed import FISHER, MixedSettings
from qcompiler.recipe.plan import Plan
from qcompiler.recipe.planned_weight import PlannedWeight


@dataclass(frozen=True)
class MixedResult:
    """How the bits were given out.

    Attributes:
        sensitivity: how each weight's part was found: "output" or "fisher".
        measure: "kl" (nats a token), "relative error", or their sum.
        bits: what was on offer; ``chosen`` of each layer is one of them.
        bytes, loss: of all the weights, as chosen; the loss is predicted.
        trade: sizes and predicted losses of the best choices for other budgets.
    """

    sensitivity: str
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
        seed: of what Fisher scores are sampled with.
    """

    def __init__(
        self,
        plan: Plan,
        settings: MixedSettings | None,
        supports: Callable[[QuantScheme], str | None],
        calibration: CalibrationRun | None,
        progress: Progress,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self._plan = plan
        self._settings = settings
        self._supports = supports
        self._calibration = calibration
        self._progress = progress
        self._seed = seed
        self.result: MixedResult | None = None

    def check(self, model: ir.Model) -> None:
        """What can be refused before there are data, on the model that ``call`` would see.

        Raises:
            CalibrationError: nothing can be measured, or an operator cannot be differentiated.
            RecipeError: a bound on the KL divergence of a model that has no distribution as output.
            ResourceError: torch is missing, and the sensitivity is fisher.
            SchemeError: the target cannot store a weight in bits on offer.
        """
        if self._settings is None:
            return
        free = self._free(self._settings)
        ends = find_ends(model)
        require_kl(self._settings.max_kl, measure_of(ends, [[end.classes] for end in ends]))
        if self._settings.sensitivity == FISHER:
            refuse_what_has_no_gradient(model, free)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        if self._settings is None or self.result is not None:
            return ir.passes.PassResult(model, modified=False)
        if self._calibration is None:
            raise CalibrationError(
                "mixed: bits are given out by what the model does on data, and the recipe needs none"
            )
        free = self._free(self._settings)
        if self._settings.sensitivity == FISHER:
            found = by_fisher(model, free, self._settings, self._calibration, self._progress, self._seed)
        else:
            found = by_output(model, free, self._settings, self._calibration, self._progress)
        stored = sum(
            value.const_value.nbytes
            for value in model.graph.initializers.values()
            if value.const_value is not None
        )
        self._decide(found, self._settings, stored - self._plan.float_bytes)
        return ir.passes.PassResult(model, modified=False)

    def _free(self, settings: MixedSettings) -> list[PlannedWeight]:
        """The weights whose bits are to be chosen; any of the bits on offer can be stored of each."""
        free = [planned for planned in self._plan.quantized if is_free(planned)]
        if not free:
            raise CalibrationError(
                "mixed: no weight's effect can be measured: rules decide all, or they are inside control flow"
            )
        for planned in free:
            for bits in settings.bits:
                refusal = self._supports(scheme_at(planned, bits))
                if refusal is not None:
                    raise SchemeError(f"mixed: {planned.weight.name}: {refusal}")
        return free

    def _decide(self, found: Sensitivities, settings: MixedSettings, rest: int) -> None:
        free = [planned for planned in self._plan.quantized if planned in found.of]
        settled = settle(found, settings.bits)
        self._plan.warnings += settled.warnings
        layers = [settled.of[planned] for planned in free]
        offered = [settled.offered[planned] for planned in free]
        sizes = [[layer.bytes[i] for i in places] for layer, places in zip(layers, offered, strict=True)]
        losses = [[layer.losses[i] for i in places] for layer, places in zip(layers, offered, strict=True)]
        fixed = sum(p.stored_bytes for p in self._plan.quantized if p not in found.of)
        weights = sum(p.weight.shape[0] * p.weight.shape[1] for p in self._plan.quantized)
        budget = settings.budget_bytes(weights, rest)
        chosen = allocate.at_most(settings.max_kl, sizes, losses) if settings.max_kl else None
        if budget is not None and (chosen is None or chosen.bytes + fixed > budget):
            chosen = allocate.within(budget - fixed, sizes, losses)
            shortfall = settings.shortfall(chosen.bytes + fixed, weights, rest)
            if shortfall is not None:
                self._plan.warnings.append(shortfall)
        assert chosen is not None  # the plan has asked for one of the two
        if settings.max_kl and chosen.loss > settings.max_kl:
            self._plan.warnings.append(
                f"mixed: max_kl {settings.max_kl:g} cannot be met; the prediction is {chosen.loss:.3g}"
            )
        widths = [settings.bits[places[index]] for places, index in zip(offered, chosen.choice, strict=True)]
        by = " by Fisher scores" if settings.sensitivity == FISHER else ""
        for planned, layer, bits in zip(free, layers, widths, strict=True):
            if planned in settled.averaged:
                why = "not felt on these data; by the mean of the experts beside"
            elif planned in settled.unfelt:
                why = "no output that is measured shows it"
            elif layer.rounding.exact:
                why = f"rounding to {layer.rounding.bits} bits does not change it"
            else:
                why = f"{layer.measured:.2g} {found.measure} alone at {layer.rounding.bits} bits{by}"
            told = f"mixed: {bits} bits; {why}"
            planned.settings = replace(planned.settings, bits=bits, decided_by=told)
            planned.scheme = scheme_at(planned, bits)
        points = tuple((point.bytes + fixed, point.loss) for point in allocate.trade(sizes, losses))
        self.result = MixedResult(
            settings.sensitivity, found.measure, found.reference, settings.bits, tuple(layers),
            tuple(widths), chosen.bytes + fixed, chosen.loss, points,
        )  # fmt: skip


def is_free(planned: PlannedWeight) -> bool:
    """Whether its bits are ours to choose: no rule has decided, convolutions take 8 alone, and its effect can be measured."""
    used = any(use.role is not Role.EMBEDDING and use.in_body is None for use in planned.weight.uses)
    return used and planned.weight.kernel is None and not planned.settings.decided_by.startswith("rule ")
