"""A recipe applied to a model: for every product of the graph, how it will be stored, or why it is left alone."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import onnx_ir as ir

from qcompiler.errors import CalibrationError, InputError, SchemeError
from qcompiler.graph.census import Census
from qcompiler.graph.stored_quantized import SCALE_NAMES
from qcompiler.graph.weights import Role, Weight, WeightUse
from qcompiler.quant.scheme import Granularity, QuantScheme, fit_group
from qcompiler.recipe.mixed import FISHER, MixedSettings
from qcompiler.recipe.planned_weight import PlannedWeight
from qcompiler.recipe.recipe import Recipe, Skip, WeightSettings

FIXED_BYTES = 300 << 20  # Python, torch, ONNX Runtime and the graph of a model of some thousand nodes

TURNED_COPIES = (
    2  # of a float weight that is read transposed: ONNX Runtime lays it out anew when the output is checked
)

TRANSFORM_BYTES = 128 << 20  # a block of a weight that is rotated, with its copies


@dataclass(frozen=True)
class SkippedProduct:
    """A product that stays as it is, and why; ``bytes`` of its weight, 0 where it has none."""

    name: str
    role: Role
    op: str
    shape: tuple[int, ...]
    reason: str
    bytes: int


@dataclass
class Plan:
    """Everything a compile will do to the weights, before it does it.

    Attributes:
        warnings: what of the recipe has no effect on this model, one line each.
        mixed: what bits are still to be given out, by what the model does on data; None: none.
        scored: samples that gradients of the weights are taken on, to give out bits; 0: none.
        transformed: whether weights are rewritten before they are quantized, those that stay float too.
        turned_bytes: of the weights that stay float and are read transposed.
        ranges_known: whether ranges of activations come from a file.
        corrects_biases: whether biases are corrected on data then, which nothing else may need.
    """

    quantized: list[PlannedWeight]
    skipped: list[SkippedProduct]
    warnings: list[str] = field(default_factory=list)
    mixed: MixedSettings | None = None
    transformed: bool = False
    turned_bytes: int = 0
    scored: int = 0
    ranges_known: bool = False
    corrects_biases: bool = False

    @property
    def float_bytes(self) -> int:
        """Bytes that the weights to be quantized take now."""
        return sum(planned.weight.float_bytes for planned in self.quantized)

    @property
    def stored_bytes(self) -> int:
        """Bytes that they will take."""
        return sum(planned.stored_bytes for planned in self.quantized)

    @property
    def needs_data(self) -> bool:
        """Whether anything wants to see the model run."""
        return (
            self.mixed is not None
            or self.corrects_biases
            or any(planned.needs or self._observes_range(planned) for planned in self.quantized)
        )

    def take_ranges(self, path: Path, correct: bool, alone: bool) -> None:
        """Ranges come from this file; with ``correct`` there are data all the same, and biases are corrected on them.

        Args:
            alone: whether the user gave the file where data are given: then weights whose quantizer wants statistics go without.
        Raises:
            CalibrationError: something cannot: bits to be given out, scales to be moved, weights to be tuned or kept beside their codes.
        """
        self.ranges_known = True
        self.corrects_biases = correct and self.has_static_convolutions
        if alone:
            self._go_without_statistics(path)
        if alone and self.needs_data:
            what, names = next(iter(self.users_of_data.items()), ("bits to be given out", ["mixed"]))
            raise CalibrationError(
                f"{path}: has ranges and no data, and {names[0]} ({what}) needs some; "
                f"give --calib DATA --set calib.ranges_from={path}, or algorithm: rtn for it"
            )

    def _go_without_statistics(self, path: Path) -> None:
        """Weights that are only rounded better with statistics than without are rounded without."""
        lacking = [
            planned
            for planned in self.quantized
            if planned.needs
            and not planned.settings.transforms
            and planned.settings.reconstruction is None
            and all(step.algorithm.beside is None for step in planned.settings.algorithm)
        ]
        for planned in lacking:
            planned.without_data = True
            planned.notes.append("there is no data: its scales come from the weight alone")
        if lacking:
            names = ", ".join(dict.fromkeys(planned.algorithm for planned in lacking))
            self.warnings.append(
                f"{path}: has ranges and no data, so that scales of {len(lacking)} weights ({names}) come from the weights alone; "
                f"--calib DATA --set calib.ranges_from={path} gives better ones"
            )

    def _observes_range(self, planned: PlannedWeight) -> bool:
        return planned.settings.activations == "static" and not self.ranges_known

    @property
    def has_static_convolutions(self) -> bool:
        """Whether there are any whose biases can be corrected."""
        return any(
            planned.settings.activations == "static" and use.role is Role.CONV and use.in_body is None
            for planned in self.quantized
            for use in planned.weight.uses
        )

    @property
    def users_of_data(self) -> dict[str, list[str]]:
        """By what weights need data for ("awq + mse", "static ranges"), their names."""
        users: dict[str, list[str]] = {}
        for planned in self.quantized:
            steps = [
                step.name for step in planned.settings.algorithm if step.algorithm.needs and planned.needs
            ]
            if self._observes_range(planned):
                steps.append("static ranges")
            if steps:
                users.setdefault(" + ".join(steps), []).append(planned.weight.name)
        return users

    def check(self, supports: Callable[[QuantScheme], str | None]) -> None:
        """Raises SchemeError for the first scheme that a target does not take."""
        for planned in self.quantized:
            refusal = supports(planned.scheme)
            if refusal is not None:
                raise SchemeError(f"{planned.weight.name}: {refusal}")

    def note(self, remark: Callable[[QuantScheme, bool, bool], list[str]]) -> None:
        """Adds what a target has to say of each weight's scheme, whether rows of it are gathered, and whether outliers stand beside it."""
        for planned in self.quantized:
            outliers = any(step.algorithm.outliers for step in planned.settings.algorithm)
            planned.notes += remark(planned.scheme, planned.weight.is_gathered, outliers)

    def forecast_peak_bytes(self) -> int:
        """Anonymous memory that the compile will need for the weights, one after the other, and the fixed cost."""
        work = max((planned.work_bytes(self.mixed is not None) for planned in self.quantized), default=0)
        if self.transformed:
            sizes = [planned.weight.size for planned in self.quantized]
            sizes += [math.prod(skipped.shape) for skipped in self.skipped if skipped.bytes]
            work = max(work, 4 * max(sizes, default=0) + TRANSFORM_BYTES)
        return FIXED_BYTES + max(work, TURNED_COPIES * self.turned_bytes)


def make_plan(census: Census, recipe: Recipe, may_be_empty: bool = False) -> Plan:
    """Ask the recipe about every product.

    Args:
        may_be_empty: there need be nothing to quantize.

    Raises:
        InputError: nothing is left to quantize.
        RecipeError: bits are to be given out, and neither a budget nor a max_kl says how many.
        SchemeError: a group that does not divide K where the recipe forbids to adjust it.
    """
    if recipe.mixed is not None:
        recipe.mixed.require_bound()
    plan = Plan([], [], _unused_rules(census, recipe), recipe.mixed, recipe.transform is not None)
    if recipe.mixed is not None and recipe.mixed.sensitivity == FISHER:
        plan.scored = recipe.mixed.samples
    for weight in census.weights:
        use = _deciding_use(weight)
        settings = recipe.settings_for(weight.name, weight.role.value, use.node.op_type, weight.aliases)
        tied = {use.role for use in weight.uses} >= {Role.EMBEDDING, Role.HEAD}
        if tied and recipe.embedding != recipe.head:
            line = settings.reason if isinstance(settings, Skip) else settings.decided_by
            plan.warnings.append(
                f"{weight.name}: embedding and head are one stored weight; "
                f"{line} holds for both, what the recipe says of the embedding does not"
            )
        if isinstance(settings, Skip):
            plan.turned_bytes += _turned_bytes(weight)
            plan.skipped.append(
                SkippedProduct(
                    weight.name,
                    weight.role,
                    use.node.op_type,
                    weight.shape,
                    settings.reason,
                    weight.float_bytes,
                )
            )
            continue
        scheme, note = fit_group(
            settings.scheme(SCALE_NAMES[weight.dtype]), weight.shape, settings.group_fallback, weight.name
        )
        if weight.kernel is not None:
            _check_convolution(weight, scheme, settings)
        settings, refused = _without_corrections(weight, settings)
        said = [
            step.algorithm.remark(step.options, *weight.shape)
            for step in settings.algorithm
            if step.algorithm.remark is not None
        ]
        planned = PlannedWeight(weight, scheme, settings, [line for line in (note, refused, *said) if line])
        if len({u.role for u in weight.uses}) > 1:
            planned.notes.append(
                f"tied: one stored weight for {' and '.join(sorted({u.role.value for u in weight.uses}))}"
            )
        if planned.needs and all(u.in_body is not None for u in weight.uses):
            planned.notes.append(
                f"inside {use.in_body}: its activations are not observed, so its scales come from the weight alone"
            )
        plan.quantized.append(planned)
    for alone in census.left_alone:
        plan.skipped.append(SkippedProduct(alone.name, alone.role, alone.node.op_type, (), alone.reason, 0))
    if not plan.quantized and not may_be_empty:
        raise InputError(_nothing_to_do(plan))
    plan.warnings += [*_grown(plan.quantized), *_not_float32(plan.quantized)]
    return plan


def _check_convolution(weight: Weight, scheme: QuantScheme, settings: WeightSettings) -> None:
    """Raises SchemeError where a convolution's kernel cannot be stored so."""
    plain = scheme.dtype == "int" and scheme.symmetric and scheme.bits == 8
    if not plain or scheme.granularity is Granularity.GROUP:
        raise SchemeError(
            f"{weight.name}: {settings.decided_by}: {scheme.label}: a convolution takes 8 bits, symmetric, a scale for each output "
            "or one for all; set bits: 8, symmetric: true and group_size: channel for it"
        )
    if settings.activations in ("token", "tensor"):
        raise SchemeError(
            f"{weight.name}: {settings.decided_by}: activations: {settings.activations} are for products with matrices; "
            "set activations: static or none for convolutions"
        )


def _not_float32(quantized: Sequence[PlannedWeight]) -> list[str]:
    """A line on the products whose activations no kernel rounds, for they are no float32."""
    names = [
        planned.weight.name
        for planned in quantized
        if planned.settings.activations in ("static", "tensor")
        and not planned.scheme.is_float8
        and planned.weight.dtype != ir.DataType.FLOAT
        and any(use.role is not Role.EMBEDDING for use in planned.weight.uses)
    ]
    if not names:
        return []
    dtype = next(planned.weight.dtype.name for planned in quantized if planned.weight.name == names[0])
    listed = ", ".join(names[:3]) + (", .." if names[3:] else "")
    return [
        f"activations of {len(names)} of {len(quantized)} products stay {dtype} ({listed}): integer kernels take float32; "
        "give the model exported in float32"
    ]


def _grown(quantized: Sequence[PlannedWeight]) -> list[str]:
    """A line on the weights that would take more bytes than they do now."""
    larger = [planned for planned in quantized if planned.stored_bytes > planned.weight.float_bytes]
    if not larger:
        return []
    worst = max(larger, key=lambda planned: planned.stored_bytes / planned.weight.float_bytes)
    times = worst.stored_bytes / worst.weight.float_bytes
    return [
        f"{len(larger)} of {len(quantized)} weights would take more bytes than they do now "
        f"({worst.weight.name}: {times:.1f} times as many); lower what stands beside their codes "
        "(rank of lorc, share of spqr), or leave them float"
    ]


def _without_corrections(weight: Weight, settings: WeightSettings) -> tuple[WeightSettings, str | None]:
    """The settings without refinements that need a product of matrices, for a convolution or a weight of which rows are gathered, and
    what to say of that.

    Raises:
        SchemeError: its quantizer is such a one.
    """
    unfit = [step for step in settings.algorithm if step.algorithm.beside is not None]
    gathered = any(use.role is Role.EMBEDDING for use in weight.uses)
    if not unfit or not (gathered or weight.kernel is not None):
        return settings, None
    what = "rows of the weight are gathered" if gathered else "it is a convolution"
    why = f"{what}, and what stands beside its codes can only be added to a product of matrices"
    if settings.quantizer in unfit:
        raise SchemeError(
            f"{weight.name}: {settings.quantizer.name}: {why}; give it another algorithm, such as mse"
        )
    kept = tuple(step for step in settings.algorithm if step not in unfit)
    return replace(settings, algorithm=kept), f"no {', '.join(step.name for step in unfit)}: {why}"


def _turned_bytes(weight: Weight) -> int:
    """Bytes of a weight [N, K] that a MatMul reads behind a Transpose."""
    turned = not weight.transposed and any(use.node.op_type == "MatMul" for use in weight.uses)
    return weight.float_bytes if turned else 0


def _deciding_use(weight: Weight) -> WeightUse:
    """The first that gives the weight its role; its operator is what a rule matches."""
    return next(use for use in weight.uses if use.role is weight.role)


def _unused_rules(census: Census, recipe: Recipe) -> list[str]:
    """A line for each rule that decides nothing; a product without a weight counts as decided."""
    products = [
        ((weight.name, *weight.aliases), weight.role.value, _deciding_use(weight).node.op_type)
        for weight in census.weights
    ]
    products += [((alone.name,), alone.role.value, alone.node.op_type) for alone in census.left_alone]
    deciding = {recipe.rule_for(names[0], role, op, names[1:]) for names, role, op in products}
    lines = []
    for index, rule in enumerate(recipe.rules):
        if index in deciding:
            continue
        matches = any(rule.match.holds(*product) for product in products)
        why = (
            "earlier rules decide all that it matches"
            if matches
            else "matched no weight; qcompile inspect lists the names"
        )
        lines.append(f"rule {index + 1} ({rule.label}): {why}")
    return lines


def _nothing_to_do(plan: Plan) -> str:
    if not plan.skipped:
        return "nothing to quantize: the model has no MatMul, Gemm, embedding or convolution"
    reasons: dict[str, int] = {}
    for skipped in plan.skipped:
        reasons[skipped.reason] = reasons.get(skipped.reason, 0) + 1
    listed = "; ".join(
        f"{count} x {reason}" for reason, count in sorted(reasons.items(), key=lambda item: -item[1])[:3]
    )
    return (
        f"nothing to quantize: all {len(plan.skipped)} products are left alone ({listed}); "
        "take another recipe (qcompile recipes), or say in rules what becomes of them"
    )
