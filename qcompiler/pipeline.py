"""The order of passes: the one place that knows it, each entry with its reason."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir

from qcompiler.calibration.range_source import RangeSource
from qcompiler.errors import InputError
from qcompiler.graph.census import ALREADY_QUANTIZED, take_census
from qcompiler.graph.checkpoints import Checkpoints
from qcompiler.graph.weight_store import WeightStore
from qcompiler.pass_manager import NamedPass
from qcompiler.passes.activation_scales import Observe, float_tensors
from qcompiler.passes.assign_bits import AssignBits
from qcompiler.passes.balance_channels import BalanceChannels
from qcompiler.passes.correct_biases import CorrectBiases, Means, MeasureMeans
from qcompiler.passes.correct_biases_analytically import CorrectBiasesAnalytically
from qcompiler.passes.expand_gemm import ExpandGemm
from qcompiler.passes.fold_batch_norm import FoldBatchNorm
from qcompiler.passes.fold_constants import FoldConstants
from qcompiler.passes.fold_factors import FoldFactors
from qcompiler.passes.fold_pad import FoldPad
from qcompiler.passes.insert_qdq import InsertQdq
from qcompiler.passes.keep_float_products import KeepFloatProducts
from qcompiler.passes.mask_outlier_channels import MaskOutlierChannels
from qcompiler.passes.normalize import Normalize
from qcompiler.passes.note_products import NoteProducts
from qcompiler.passes.product_sensitivity import rank_products
from qcompiler.passes.quantize_weights import CalibrationRun, Progress, QuantizeWeights, check_tuning
from qcompiler.passes.raise_opset import RaiseOpset
from qcompiler.passes.rotate import Rotate
from qcompiler.passes.round_activations import RoundActivations
from qcompiler.passes.round_to_float8 import RoundToFloat8
from qcompiler.passes.split_experts import SplitExperts
from qcompiler.passes.widen_bfloat16 import WidenBfloat16
from qcompiler.quant.ranges import Range
from qcompiler.quant.scheme import QuantScheme
from qcompiler.recipe.calibration import CalibrationSettings
from qcompiler.recipe.mixed import MixedSettings
from qcompiler.recipe.plan import Plan, make_plan
from qcompiler.recipe.recipe import Recipe
from qcompiler.recipe.tensors import ActivationSettings
from qcompiler.recipe.transform import TransformSettings
from qcompiler.targets import Target

MIDDLE_OPSET = 21  # blockwise DequantizeLinear, int4
MIDDLE_OPSET_2_BIT = 25  # int2, where codes of one bit are too


def pass_names(recipe: Recipe, target: Target) -> list[str]:
    """Every pass of a compile, in order."""
    return [
        *(entry.name for entry in preparing_passes(recipe)),
        *(name for name, _, _ in _QUANTIZING),
        *(entry.name for entry in target.lowering(recipe)),
    ]


def preparing_passes(recipe: Recipe) -> list[NamedPass]:
    """Passes that bring any export into the form a plan is made on; they read no weight."""
    bits = {recipe.bits, *(rule.bits for rule in recipe.rules if rule.bits is not None)}
    bits |= {settings.bits for settings in (recipe.head, recipe.embedding) if settings is not None}
    bits |= set() if recipe.mixed is None else set(recipe.mixed.bits)
    opset = MIDDLE_OPSET_2_BIT if bits & {1, 2} else MIDDLE_OPSET
    folding = [
        NamedPass(
            "fold_constants",
            FoldConstants(),
            "before the next: it looks for biases and norms that are constants",
        ),
        NamedPass("fold_pad", FoldPad(), "before the convolution's input is rounded: no integer kernel pads"),
        NamedPass(
            "fold_batch_norm",
            FoldBatchNorm(),
            "before planning: kernels are rounded with what a BatchNormalization multiplies them by",
        ),
        NamedPass(
            "fold_factors",
            FoldFactors(),
            "before planning: what is multiplied and added beside convolutions would be floats between integers",
        ),
    ]
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
        *(folding if recipe.has_static_ranges else []),
    ]


def plan_weights(model: ir.Model, recipe: Recipe, allow_quantized: bool = False) -> Plan:
    """The plan for a prepared model; nothing is edited.

    Args:
        allow_quantized: products that are quantized already stay as they are, be they all or some; else they are an error.

    Raises:
        InputError: there is nothing to quantize, or some of it is quantized already.
    """
    census = take_census(model)
    done = [left.node for left in census.left_alone if left.reason == ALREADY_QUANTIZED]
    if done and not allow_quantized:
        what = f"nothing to quantize: its products ({len(done)})" if not census.weights else (
            f"{len(done)} of its products ({done[0].name or done[0].op_type} is one)"
        )  # fmt: skip
        raise InputError(
            f"{what} are already quantized; give the float model it was made from, "
            "or --allow-quantized to keep these as they are"
        )
    return make_plan(census, recipe, may_be_empty=bool(done))


@dataclass(frozen=True)
class Materials:
    """What the passes that carry out a plan are made from."""

    plan: Plan
    store: WeightStore
    calibration: CalibrationRun | None
    progress: Progress
    mixed: MixedSettings | None = None
    supports: Callable[[QuantScheme], str | None] = lambda scheme: None
    remark: Callable[[QuantScheme, bool, bool], list[str]] = lambda scheme, gathered, outliers: []
    checkpoints: Checkpoints | None = None
    transform: TransformSettings | None = None
    seed: int = 0
    ranges: CalibrationSettings = field(default_factory=CalibrationSettings)
    means: Means = field(default_factory=dict)
    range_source: RangeSource | None = None
    activations: ActivationSettings = field(default_factory=ActivationSettings)


def check_passes(model: ir.Model, recipe: Recipe, target: Target, allow_quantized: bool = False) -> None:
    """What passes would refuse of a prepared model once there are data, found before any is read: on a copy of its graph.

    Raises:
        QCompilerError: as the passes would.
    """
    trial = model.clone()  # its nodes; the weights' numbers are shared
    plan = plan_weights(trial, recipe, allow_quantized)
    settings = recipe.activation_settings
    float_tensors(trial, settings)
    RoundToFloat8(plan, settings, lambda *_: {}).check(trial)
    if recipe.mixed is None and all(planned.settings.reconstruction is None for planned in plan.quantized):
        return
    _as_matrices(trial, plan, recipe)
    AssignBits(plan, recipe.mixed, target.supports, None, lambda *_: None).check(trial)
    check_tuning(trial, plan)


def rank_by_loss(
    model: ir.Model, recipe: Recipe, allow_quantized: bool, run: CalibrationRun, progress: Progress
) -> list[tuple[str, float]]:
    """Names of the weights that the recipe quantizes in a prepared model, with what the model loses by each alone, the most felt first.

    Measured on a copy of its graph. Raises what ``rank_products`` does.
    """
    trial = model.clone()
    plan = plan_weights(trial, recipe, allow_quantized)
    _as_matrices(trial, plan, recipe)
    return rank_products(
        trial, plan, recipe.activation_settings, run.feeds, run.folder, run.border_limit, progress
    )


def _as_matrices(trial: ir.Model, plan: Plan, recipe: Recipe) -> None:
    """Its planned products as passes find them that probe one after the other."""
    SplitExperts([planned.weight for planned in plan.quantized])(trial)
    _gemms_expanded(plan, recipe.transform)(trial)


def quantizing_passes(materials: Materials, recipe: Recipe, target: Target) -> list[NamedPass]:
    """Passes from the plan to the target's operators."""
    ours = [NamedPass(name, make(materials), reason) for name, make, reason in _QUANTIZING]
    return [*ours, *target.lowering(recipe)]


def _expand_gemm(materials: Materials) -> ExpandGemm:
    return _gemms_expanded(materials.plan, materials.transform)


def _gemms_expanded(plan: Plan, transform: TransformSettings | None) -> ExpandGemm:
    uses = [use for planned in plan.quantized for use in planned.weight.uses]
    nodes = [use.node for use in uses if use.node.op_type == "Gemm"]
    return ExpandGemm(None if transform is not None else nodes, on_replaced(plan))


def _rotate(materials: Materials) -> Rotate:
    return Rotate(
        materials.plan,
        materials.transform,
        materials.seed,
        materials.store,
        materials.progress,
        materials.checkpoints,
    )


def _split_experts(materials: Materials) -> SplitExperts:
    return SplitExperts([planned.weight for planned in materials.plan.quantized])


def _quantize_weights(materials: Materials) -> QuantizeWeights:
    return QuantizeWeights(
        materials.plan,
        materials.store,
        materials.calibration,
        materials.progress,
        materials.checkpoints,
        materials.remark,
    )


def _mask_outlier_channels(materials: Materials) -> MaskOutlierChannels:
    return MaskOutlierChannels(materials.plan)


def _round_activations(materials: Materials) -> RoundActivations:
    return RoundActivations(materials.plan)


def _static_convolutions(plan: Plan) -> Callable[[], list[ir.Node]]:
    """Those whose ranges calibration finds, as the passes have left them."""
    return lambda: [
        use.node
        for planned in plan.quantized
        if planned.settings.activations == "static"
        for use in planned.weight.uses
        if use.node.op_type == "Conv" and use.in_body is None
    ]


def _balance_channels(materials: Materials) -> BalanceChannels:
    source = materials.range_source
    observe = (lambda *_: {}) if source is None else source.channel_sizes
    settings = materials.activations
    return BalanceChannels(
        _static_convolutions(materials.plan), observe, lambda name: settings.fixed(name) is not None
    )


def _measure_means(materials: Materials) -> MeasureMeans:
    run, plan = materials.calibration, materials.plan
    wanted = plan.corrects_biases if plan.ranges_known else materials.ranges.correct_biases == "measured"
    feeds = run.feeds if run is not None and wanted else None
    return MeasureMeans(_static_convolutions(materials.plan), feeds, materials.means)


def _correct_biases(materials: Materials) -> CorrectBiases:
    run = materials.calibration
    return CorrectBiases(
        _static_convolutions(materials.plan),
        materials.means,
        None if run is None else run.feeds,
        Path() if run is None else run.folder,
        0 if run is None else run.border_limit // 4,  # beside the sessions of pieces
        materials.progress,
    )


def _correct_biases_analytically(materials: Materials) -> CorrectBiasesAnalytically:
    return CorrectBiasesAnalytically(materials.plan, materials.ranges.correct_biases == "analytical")


def _observe(materials: Materials) -> Observe:
    def observe(
        model: ir.Model, values: Sequence[ir.Value], bits: int, symmetric: bool
    ) -> Mapping[str, Range]:
        assert materials.range_source is not None  # there is one wherever a plan has static ranges
        return materials.range_source.ranges(model, values, bits, symmetric)

    return observe


def _round_to_float8(materials: Materials) -> RoundToFloat8:
    return RoundToFloat8(materials.plan, materials.activations, _observe(materials))


def _insert_qdq(materials: Materials) -> InsertQdq:
    return InsertQdq(materials.plan, materials.activations, _observe(materials))


def _keep_float_products(materials: Materials) -> KeepFloatProducts:
    return KeepFloatProducts(any(p.settings.activations == "static" for p in materials.plan.quantized))


def _note_products(materials: Materials) -> NoteProducts:
    return NoteProducts(materials.plan)


def _assign_bits(materials: Materials) -> AssignBits:
    return AssignBits(
        materials.plan,
        materials.mixed,
        materials.supports,
        materials.calibration,
        materials.progress,
        materials.seed,
    )


_QUANTIZING: tuple[tuple[str, Callable[[Materials], ir.passes.InPlacePass], str], ...] = (
    ("split_experts", _split_experts, "after planning: experts that all stay float stay one product"),
    (
        "expand_gemm",
        _expand_gemm,
        "after planning: a Gemm that stays float stays a Gemm, unless the recipe rotates",
    ),
    ("rotate", _rotate, "before anything is measured or rounded: both see the rotated model"),
    ("assign_bits", _assign_bits, "before the first weight is rounded: it measures the float model"),
    (
        "balance_channels",
        _balance_channels,
        "before anything is measured of what it scales",
    ),
    (
        "measure_means",
        _measure_means,
        "before the first weight is rounded: biases are corrected towards the float model",
    ),
    (
        "quantize_weights",
        _quantize_weights,
        "calibration, scaling and rounding go segment by segment, so they are one pass",
    ),
    (
        "correct_biases_analytically",
        _correct_biases_analytically,
        "after the weights: it is about their rounding; before biases become integers, and before activations hide behind theirs",
    ),
    (
        "mask_outlier_channels",
        _mask_outlier_channels,
        "after the weights: which columns stay float is known then; before activations are rounded: it keeps those channels out",
    ),
    (
        "round_activations",
        _round_activations,
        "after the weights: scales move through the inputs of products, and would not pass their rounding",
    ),
    (
        "round_to_float8",
        _round_to_float8,
        "beside it: the same for 8-bit floats, with ranges that calibration finds",
    ),
    ("insert_qdq", _insert_qdq, "beside it: ranges are those of the model with its rounded weights"),
    (
        "keep_float_products",
        _keep_float_products,
        "after it: it is about what reads rounded values; before biases are corrected, which runs the model",
    ),
    ("correct_biases", _correct_biases, "after it: what it corrects is what all rounding together leaves"),
    ("note_products", _note_products, "after all that decide what stays float"),
)


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
