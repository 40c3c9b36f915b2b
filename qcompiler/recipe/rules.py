"""Settings of a weight, and the rules that give them to the weights they match."""

import fnmatch
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import get_args

from qcompiler.errors import RecipeError, SchemeError
from qcompiler.quant.activations import Activations
from qcompiler.quant.scheme import FLOAT8, Dtype, Granularity, GroupAxis, QuantScheme, ScaleDtype, ZeroPoint
from qcompiler.recipe.steps import Step, make_steps
from qcompiler.recipe.yaml_text import check_bool, check_choice, check_int, check_text

ROLES = ("linear", "head", "embedding", "conv")
OPS = ("MatMul", "Gemm", "Gather", "Conv")
GroupSize = int | str  # a positive number, "channel" or "tensor"
SETTINGS = ("bits", "dtype", "group_size", "group_axis", "symmetric", "zero_point", "two_level", "algorithm")


@dataclass(frozen=True, slots=True)
class RoleSettings:
    """How the head or the embedding is stored where no rule says otherwise."""

    bits: int = 8
    dtype: Dtype = "int"
    group_size: GroupSize = 32
    symmetric: bool = True
    algorithm: tuple[Step, ...] = field(default_factory=lambda: make_steps("mse"))
    zero_point: ZeroPoint = "int"
    two_level: bool = False
    group_axis: GroupAxis = "input"
    activations: Activations = "none"

    def __post_init__(self) -> None:
        object.__setattr__(self, "algorithm", make_steps(self.algorithm))
        check_scheme(**{key: getattr(self, key) for key in SETTINGS})
        check_activations(self.activations, self.algorithm, self.dtype)


@dataclass(frozen=True, slots=True)
class Match:
    """Which weights a rule is for; everything given must hold.

    ``name`` is a glob, or a regular expression after ``re:``; either must match the whole name, case and all.
    """

    name: str | None = None
    role: str | None = None
    op: str | None = None

    def __post_init__(self) -> None:
        if self.name is None and self.role is None and self.op is None:
            raise RecipeError("match: give at least one of name, role, op; name: '*' matches everything")
        for key, choices in (("role", ROLES), ("op", OPS)):
            if getattr(self, key) is not None:
                check_choice(getattr(self, key), choices, f"match.{key}")
        if self.name is None:
            return
        check_text(self.name, "match.name")
        if self.name in ("", "re:"):
            raise RecipeError(f"match.name: expected a glob or re:EXPRESSION, got {self.name!r}")
        if self.name.startswith("re:"):
            try:
                re.compile(self.name[3:])
            except re.error as error:
                raise RecipeError(
                    f"match.name: {self.name!r} is not a regular expression: {error}"
                ) from error

    def holds(self, names: Iterable[str], role: str, op: str) -> bool:
        """Whether a weight with any of these names, this role and this op is meant."""
        if (self.role is not None and self.role != role) or (self.op is not None and self.op != op):
            return False
        return self.name is None or any(self._name_holds(name) for name in names)

    def _name_holds(self, name: str) -> bool:
        assert self.name is not None
        if self.name.startswith("re:"):
            return re.fullmatch(self.name[3:], name) is not None
        return fnmatch.fnmatchcase(name, self.name)


@dataclass(frozen=True, slots=True)
class Rule:
    """Settings for the weights that `match` names; what is left None comes from their role's settings."""

    match: Match
    bits: int | None = None
    dtype: Dtype | None = None
    group_size: GroupSize | None = None
    symmetric: bool | None = None
    zero_point: ZeroPoint | None = None
    two_level: bool | None = None
    group_axis: GroupAxis | None = None
    algorithm: tuple[Step, ...] | None = None
    activations: Activations | None = None
    quantize: bool | None = None
    reason: str | None = None

    def __post_init__(self) -> None:
        keys = (*SETTINGS, "activations")
        settings = {key: getattr(self, key) for key in keys if getattr(self, key) is not None}
        if self.algorithm is not None:
            object.__setattr__(self, "algorithm", make_steps(self.algorithm))
        if self.quantize is not None:
            check_bool(self.quantize, "quantize")
        if self.quantize is False and settings:
            raise RecipeError(
                f"quantize: false leaves the weight alone, so {', '.join(settings)} means nothing; drop one"
            )
        if self.quantize is None and not settings:
            raise RecipeError(f"a rule must say something: one of {', '.join(keys)} or quantize: false")
        if self.activations is not None:
            check_choice(self.activations, get_args(Activations), "activations")
        if self.reason is not None:
            check_text(self.reason, "reason")
        steps = self.algorithm or ()
        # What is left to the base is taken as it suits what is said; Recipe.settings_for checks both together.
        check_scheme(
            (8 if self.dtype in FLOAT8 else 4) if self.bits is None else self.bits,
            "int" if self.dtype is None else self.dtype,
            ("channel" if self.dtype in FLOAT8 else 32) if self.group_size is None else self.group_size,
            "input" if self.group_axis is None else self.group_axis,
            self.zero_point != "float" and self.bits != 1 if self.symmetric is None else self.symmetric,
            "int" if self.zero_point is None else self.zero_point,
            any(step.algorithm.two_level for step in steps) if self.two_level is None else self.two_level,
            steps,
        )

    @property
    def label(self) -> str:
        """``name=*.down_proj*, role=linear``."""
        given = ((key, getattr(self.match, key)) for key in ("name", "role", "op"))
        return ", ".join(f"{key}={value}" for key, value in given if value is not None)


def make_scheme(
    bits: int,
    dtype: Dtype,
    group_size: GroupSize,
    group_axis: GroupAxis,
    symmetric: bool,
    scale_dtype: ScaleDtype,
    double_quant: bool = False,
    zero_point: ZeroPoint = "int",
    two_level: bool = False,
) -> QuantScheme:
    """The scheme that these settings ask for. Raises SchemeError where none can be stored so."""
    granularity = Granularity.GROUP if isinstance(group_size, int) else Granularity(group_size)
    width = group_size if isinstance(group_size, int) else None
    return QuantScheme(
        bits,
        symmetric,
        granularity,
        width,
        scale_dtype,
        dtype,
        double_quant and dtype != "int",
        zero_point,
        two_level,
        group_axis,
    )


def check_activations(activations: Activations, algorithm: tuple[Step, ...], dtype: Dtype) -> None:
    """Raises RecipeError unless products with these weights can have activations rounded so, and the steps are for that."""
    check_choice(activations, get_args(Activations), "activations")
    if activations == "none":
        unfit = [step.name for step in algorithm if step.algorithm.activations]
        if unfit:
            raise RecipeError(
                f"algorithm: {unfit[0]} makes activations easier to round, and activations: none rounds none; "
                "set activations: token, or leave it out"
            )
    elif dtype in FLOAT8:
        if activations != "static":
            raise RecipeError(
                f"activations: {activations} rounds to integers, and dtype is {dtype}; "
                "set activations: static, whose ranges calibration finds, or none"
            )
    elif dtype != "int":
        raise RecipeError(
            f"activations: {activations} needs weights of integers, and dtype is {dtype}; set dtype: int, or activations: none"
        )


def check_scheme(
    bits: int,
    dtype: Dtype,
    group_size: GroupSize,
    group_axis: GroupAxis,
    symmetric: bool,
    zero_point: ZeroPoint,
    two_level: bool,
    algorithm: tuple[Step, ...],
) -> None:
    """Raises RecipeError unless these say a scheme that can be stored, and the steps can find its codes."""
    check_choice(dtype, get_args(Dtype), "dtype")
    check_int(bits, 1, 8, "bits")
    check_bool(symmetric, "symmetric")
    check_choice(zero_point, get_args(ZeroPoint), "zero_point")
    check_choice(group_axis, get_args(GroupAxis), "group_axis")
    check_bool(two_level, "two_level")
    whole = isinstance(group_size, int) and not isinstance(group_size, bool)
    if not whole and group_size not in ("channel", "tensor"):
        raise RecipeError(f"group_size: expected a number, channel or tensor, got {group_size!r}")
    try:
        scheme = make_scheme(
            bits, dtype, group_size, group_axis, symmetric, "float32", False, zero_point, two_level
        )
    except SchemeError as error:
        raise RecipeError(str(error)) from error
    unfit = [step.name for step in algorithm if scheme.is_codebook and not step.algorithm.codebooks]
    if unfit:
        raise RecipeError(
            f"algorithm: {unfit[0]} finds integers, not codes of a table; use rtn or mse with dtype: {dtype}"
        )
    unfit = [step.name for step in algorithm if scheme.is_float8 and not step.algorithm.float8]
    if unfit:
        raise RecipeError(
            f"algorithm: {unfit[0]} finds integers, not floats of 8 bits; use rtn with dtype: {dtype}"
        )
    for step in algorithm:
        if step.algorithm.whole_zero_points and zero_point == "float":
            raise RecipeError(
                f"algorithm: {step.name} needs a code that means 0, and zero_point: float promises none; "
                "set zero_point: int, or use gptq"
            )
        if step.algorithm.kind == "quantizer" and step.algorithm.two_level is not two_level:
            remedy = "use kquant" if two_level else "set two_level: true"
            raise RecipeError(
                f"algorithm: {step.name} finds {'one level' if two_level else 'two levels'} of scales, "
                f"and two_level is {str(two_level).lower()}; {remedy}"
            )
        if two_level and step.algorithm.kind != "quantizer" and not step.algorithm.codebooks:
            raise RecipeError(
                f"algorithm: {step.name} works on scales of one level; leave it out, or two_level: false"
            )
    bound = [step.name for step in algorithm if scheme.groups_rows and not step.algorithm.either_axis]
    if bound:
        raise RecipeError(
            f"algorithm: {bound[0]} works on groups of input channels, not of rows; use rtn, mse or hqq, or group_axis: input"
        )
