"""The order of passes: the one place that knows it, each entry with its reason."""

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from qcompiler.graph.census import take_census
from qcompiler.graph.weight_store import WeightStore
from qcompiler.pass_manager import NamedPass
from qcompiler.passes.expand_gemm import ExpandGemm
from qcompiler.passes.normalize import Normalize
from qcompiler.passes.quantize_weights import CalibrationRun, Progress, QuantizeWeights
from qcompiler.passes.raise_opset import RaiseOpset
from qcompiler.passes.widen_bfloat16 import WidenBfloat16
from qcompiler.recipe.plan import Plan, make_plan
from qcompiler.recipe.recipe import Recipe
from qcompiler.targets import Target

MIDDLE_OPSET = 21  # blockwise DequantizeLinear, int4
MIDDLE_OPSET_2_BIT = 25  # int2


EXPAND, QUANTIZE = "expand_gemm", "quantize_weights"


def pass_names(recipe: Recipe, target: Target) -> list[str]:
    """Every pass of a compile, in order."""
    ends = (*preparing_passes(recipe), None, *target.lowering(recipe))
    return [name for entry in ends for name in ((EXPAND, QUANTIZE) if entry is None else (entry.name,))]


def preparing_passes(recipe: Recipe) -> list[NamedPass]:
    """Passes that bring any export into the form a plan is made on; they read no weight."""
    bits = {recipe.bits, *(rule.bits for rule in recipe.rules if rule.bits is not None)}
    bits |= {settings.bits for settings in (recipe.head, recipe.embedding) if settings is not None}
    opset = MIDDLE_OPSET_2_BIT if 2 in bits else MIDDLE_OPSET
    return [
        NamedPass(
            "normalize", Normalize(), "first: the others find weights only in the main graph's initializers"
        ),
        NamedPass("raise_opset", RaiseOpset(opset), "before planning: the converter may replace nodes"),
        NamedPass(
            "widen_bfloat16",
            WidenBfloat16(),
            "after raising: the converter types new nodes like the old ones",
        ),
    ]


def plan_weights(model: ir.Model, recipe: Recipe) -> Plan:
    """The plan for a prepared model; nothing is edited."""
    return make_plan(take_census(model), recipe)


@dataclass(frozen=True)
class QuantizingPasses:
    """Passes from the plan to the target's operators; ``quantize`` holds the results of each weight."""

    passes: list[NamedPass]
    quantize: QuantizeWeights


def quantizing_passes(
    plan: Plan,
    recipe: Recipe,
    target: Target,
    store: WeightStore,
    calibration: CalibrationRun | None,
    progress: Progress,
) -> QuantizingPasses:
    """Passes that carry out a plan for a target."""
    gemms = [
        use.node for planned in plan.quantized for use in planned.weight.uses if use.node.op_type == "Gemm"
    ]
    expand = ExpandGemm(gemms, on_replaced(plan))
    quantize = QuantizeWeights(plan, store, calibration, progress)
    passes = [
        NamedPass(EXPAND, expand, "after planning: a Gemm that stays float stays a Gemm"),
        NamedPass(
            QUANTIZE,
            quantize,
            "calibration, scaling and rounding go segment by segment, so they are one pass",
        ),
        *target.lowering(recipe),
    ]
    return QuantizingPasses(passes, quantize)


def on_replaced(plan: Plan) -> Callable[[ir.Node, ir.Node], None]:
    """Keeps the plan's uses on the nodes that now do the work."""

    def move(old: ir.Node, new: ir.Node) -> None:
        for planned in plan.quantized:
            for use in planned.weight.uses:
                if use.node is old:
                    use.node = new
                if use.top_level is old:
                    use.top_level = new

    return move
