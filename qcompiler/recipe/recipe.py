"""What the user wants: how each weight is to be stored and which algorithm finds its codes.

A recipe is a YAML file (``recipes/*.yaml`` are built in) or a `Recipe` built in Python; both are checked the
same way. Unknown keys are errors that name the nearest known one. `Recipe.settings_for` answers for one
weight, and says which line decided.
"""

import importlib.resources
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from qcompiler.errors import RecipeError
from qcompiler.nearest import nearest
from qcompiler.quant.activation_codes import ActivationType
from qcompiler.quant.activations import Activations
from qcompiler.quant.scheme import Dtype, GroupAxis, GroupFallback, QuantScheme, ScaleDtype, ZeroPoint
from qcompiler.recipe.calibration import CalibrationSettings
from qcompiler.recipe.mixed import MixedSettings
from qcompiler.recipe.plain_values import keys_of, plain_value, read_fields, with_setting
from qcompiler.recipe.rules import (
    SETTINGS,
    GroupSize,
    RoleSettings,
    Rule,
    check_activations,
    check_scheme,
    make_scheme,
)
from qcompiler.recipe.setting import Setting, as_setting
from qcompiler.recipe.steps import Step, make_steps
from qcompiler.recipe.tensors import ActivationSettings, Symmetry, TensorSettings
from qcompiler.recipe.transform import TransformSettings
from qcompiler.recipe.yaml_text import (
    check_bool,
    check_choice,
    check_int,
    check_text,
    format_yaml,
    parse_yaml,
)


@dataclass(frozen=True, slots=True)
class WeightSettings:
    """What one weight gets, and the line of the recipe that decided it."""

    bits: int
    dtype: Dtype
    group_size: GroupSize
    symmetric: bool
    zero_point: ZeroPoint
    two_level: bool
    group_axis: GroupAxis
    algorithm: tuple[Step, ...]
    activations: Activations
    scale_dtype: ScaleDtype | Literal["auto"]
    double_quant: bool
    group_fallback: GroupFallback
    decided_by: str

    @property
    def transforms(self) -> tuple[Step, ...]:
        """The steps that change the weight before it is quantized (awq)."""
        return tuple(step for step in self.algorithm if step.algorithm.kind == "transform")

    @property
    def quantizer(self) -> Step:
        """The step that chooses the codes."""
        return next(step for step in self.algorithm if step.algorithm.kind == "quantizer")

    @property
    def refinements(self) -> tuple[Step, ...]:
        """The steps that make a better weight of what the quantizer gave."""
        return tuple(step for step in self.algorithm if step.algorithm.kind == "refinement")

    @property
    def reconstruction(self) -> Step | None:
        """The step that tunes all weights of a segment together."""
        return next((step for step in self.algorithm if step.algorithm.kind == "reconstruction"), None)

    def scheme(self, model_float: ScaleDtype) -> QuantScheme:
        """What is asked for, before it is fitted to K; ``scale_dtype: auto`` is `model_float`."""
        double = self.double_quant and self.dtype != "int"
        # What 8 bits, or two levels, stand for has the type that the weight is computed in.
        computed = double or self.two_level
        scale_dtype = model_float if self.scale_dtype == "auto" or computed else self.scale_dtype
        return make_scheme(
            self.bits,
            self.dtype,
            self.group_size,
            self.group_axis,
            self.symmetric,
            scale_dtype,
            double,
            self.zero_point,
            self.two_level,
        )


@dataclass(frozen=True, slots=True)
class Skip:
    """A weight that stays as it is, and why."""

    reason: str


@dataclass(frozen=True, slots=True)
class Recipe:
    """A whole recipe; every field is a key of the YAML.

    A head or embedding of None is ``float`` there, a transform or mixed of None ``none``.

    Raises:
        RecipeError: a field holds what nothing can do; names it.
    """

    name: str
    description: str = ""
    bits: int = 4
    dtype: Dtype = "int"
    group_size: GroupSize = 32
    group_axis: GroupAxis = "input"
    symmetric: bool = True
    zero_point: ZeroPoint = "int"
    two_level: bool = False
    algorithm: tuple[Step, ...] = field(default_factory=lambda: make_steps("rtn"))
    activations: Activations = "none"
    group_fallback: GroupFallback = GroupFallback.ADJUST
    scale_dtype: ScaleDtype | Literal["auto"] = "auto"
    double_quant: bool = False
    head: RoleSettings | None = field(default_factory=RoleSettings)
    embedding: RoleSettings | None = field(default_factory=RoleSettings)
    accuracy_level: int = 4
    calibration: CalibrationSettings = field(default_factory=CalibrationSettings)
    transform: TransformSettings | None = None
    mixed: MixedSettings | None = None
    activation_type: ActivationType = "uint8"
    activation_symmetric: Symmetry = "auto"
    tensors: tuple[TensorSettings, ...] = ()
    rules: tuple[Rule, ...] = ()

    def __post_init__(self) -> None:
        for key in ("name", "description"):
            check_text(getattr(self, key), key)
        if not self.name or self.name.startswith(".") or re.search(r"[/\\\s]", self.name):
            raise RecipeError(
                f"name: {self.name!r} names the output folder, so it needs no space, slash or leading dot"
            )
        object.__setattr__(self, "algorithm", make_steps(self.algorithm))
        object.__setattr__(self, "rules", tuple(self.rules))
        check_choice(self.group_fallback, [member.value for member in GroupFallback], "group_fallback")
        object.__setattr__(self, "group_fallback", GroupFallback(self.group_fallback))
        check_choice(self.scale_dtype, ("auto", *get_args(ScaleDtype)), "scale_dtype")
        check_int(self.accuracy_level, 0, 4, "accuracy_level")
        check_bool(self.double_quant, "double_quant")
        check_scheme(**{key: getattr(self, key) for key in SETTINGS})
        check_activations(self.activations, self.algorithm, self.dtype)
        self._check_codes()
        if self.mixed is not None:
            self._check_mixed(self.mixed)
        if self.embedding is not None:
            _check_embedding(self.embedding.algorithm, "embedding.algorithm")
        for number, rule in enumerate(self.rules, 1):
            if rule.match.role == "embedding" and rule.algorithm is not None:
                _check_embedding(rule.algorithm, f"rule {number}: algorithm")

    def _check_codes(self) -> None:
        """What is said of the codes of activations means something."""
        check_choice(self.activation_type, get_args(ActivationType), "activation_type")
        if self.activation_symmetric != "auto":
            check_bool(self.activation_symmetric, "activation_symmetric")
        plain = ActivationSettings()
        said = {
            f"activation_type: {self.activation_type}": self.activation_type != plain.kind,
            f"activation_symmetric: {self.activation_symmetric}": self.activation_symmetric
            != plain.symmetric,
            "tensors": bool(self.tensors),
        }
        for settings in self.tensors:
            settings.codes(self.activation_type)
        idle = [what for what, given in said.items() if given]
        if idle and not self.has_static_ranges:
            raise RecipeError(
                f"{idle[0]} is for activations: static, which nothing in the recipe asks for; drop one"
            )

    def _check_mixed(self, mixed: MixedSettings) -> None:
        """Every width that may be given out goes with the settings that it is given to."""
        for role, base in (("", self), ("head: ", self.head)):
            if base is None:
                continue
            if base.dtype != "int":
                raise RecipeError(
                    f"mixed: chooses among widths of integers; leave it out, or {role}dtype: {base.dtype}"
                )
            refused: dict[int, RecipeError] = {}
            for bits in mixed.bits:
                try:
                    check_scheme(**{key: getattr(base, key) for key in SETTINGS} | {"bits": bits})
                except RecipeError as error:
                    refused[bits] = error
            if refused:
                fit = [bits for bits in mixed.bits if bits not in refused]
                remedy = f"write mixed.bits: {fit}" if len(fit) > 1 else "leave mixed out"
                first = next(iter(refused.values()))
                raise RecipeError(f"mixed.bits: {list(mixed.bits)}: {remedy}; {role}{first}") from first

    @classmethod
    def load(cls, name_or_path: str | os.PathLike[str]) -> "Recipe":
        """The built-in recipe of that name, or the one in a ``.yaml`` file.

        Raises:
            RecipeError: no such recipe (names the nearest), no such file, or not a recipe (names the line).
        """
        text = os.fspath(name_or_path)
        if not (isinstance(name_or_path, os.PathLike) or text.endswith((".yaml", ".yml")) or os.sep in text):
            names = [file.stem for file in _builtin_files()]
            if text not in names:
                # w4a16-x is no misspelt w4a16-y: names must be very alike
                hint = nearest(text, names, alike=0.8)
                raise RecipeError(f"recipe {text!r}: not built in; {hint} (your own: FILE.yaml)")
            return cls.from_text(_builtin_text(text), where=f"recipe {text}", name=text)
        try:
            content = Path(text).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            cause = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
            raise RecipeError(
                f"{text}: cannot be read as a recipe: {cause}; qcompile recipes lists the built-in ones"
            ) from error
        return cls.from_text(content, where=text, name=Path(text).stem)

    @classmethod
    def from_text(cls, text: str, where: str, name: str) -> "Recipe":
        """A recipe from YAML; `name` where the YAML gives none."""
        value = parse_yaml(text, where)
        if value is None:
            raise RecipeError(f"{where}: empty; qcompile recipes NAME prints one to start from")
        return cls.from_mapping(value, where, name)

    @classmethod
    def from_mapping(cls, value: object, where: str, name: str = "recipe") -> "Recipe":
        """A recipe from the plain values of YAML.

        Raises:
            RecipeError: an unknown key or a bad value; starts with `where`.
        """
        fields = {"name": name} | read_fields(value, keys_of(cls), where)
        try:
            return cls(**fields)  # type: ignore[arg-type]  # each is checked by __post_init__
        except RecipeError as error:
            raise RecipeError(f"{where}: {error}") from error

    def to_mapping(self) -> dict[str, object]:
        """Plain values for YAML, everything said: no default is left out."""
        return {key: plain_value(getattr(self, key), key) for key in keys_of(type(self))}

    def to_yaml(self, named: bool = True) -> str:
        """The resolved recipe; loading it gives this recipe again, and the same text.

        Without its name it is a start for another recipe, which its file then names.
        """
        mapping = self.to_mapping()
        if not named:
            del mapping["name"]
        return format_yaml(mapping)

    def with_settings(self, settings: Iterable[str | Setting]) -> "Recipe":
        """This recipe after ``KEY=VALUE`` lines: ``group_size=64``, ``calib.samples=8``, ``head=float``.

        They apply in order, and what they come to together is checked; values are YAML. ``calib`` is short for ``calibration``,
        SmoothQuant's ``level=o1`` (o2, o3) for ``activations=token`` (tensor, static); ``head.bits=4`` on a float head starts from the
        default head.

        Raises:
            RecipeError: no ``=`` or an unknown key (names the setting and the nearest key), or values that do not fit (names all settings).
        """
        given, mapping = [as_setting(setting) for setting in settings], self.to_mapping()
        for setting in given:
            mapping = with_setting(mapping, setting)
        said = " ".join(dict.fromkeys(setting.said for setting in given))
        return type(self).from_mapping(mapping, said) if given else self

    @property
    def has_static_ranges(self) -> bool:
        """Whether any activations are rounded with ranges that calibration finds."""
        given = (self, self.head, *self.rules)
        return any(settings is not None and settings.activations == "static" for settings in given)

    @property
    def activation_settings(self) -> ActivationSettings:
        """How ranges of activations become codes."""
        return ActivationSettings(self.activation_type, self.activation_symmetric, self.tensors)

    def rule_for(self, name: str, role: str, op: str, aliases: Sequence[str] = ()) -> int | None:
        """Index in `rules` of the first that matches; its pattern may match `name` or any of `aliases`."""
        for index, rule in enumerate(self.rules):
            if rule.match.holds((name, *aliases), role, op):
                return index
        return None

    def settings_for(
        self, name: str, role: str, op: str, aliases: Sequence[str] = ()
    ) -> WeightSettings | Skip:
        """What the weight gets, or why it is left alone.

        Args:
            name: of the node or the weight.
            role: linear, head, embedding or conv.
            op: type of the node that uses the weight.
            aliases: its other names (weight, scope): a rule's pattern may match any of them.

        Raises:
            RecipeError: a rule gives an embedding an algorithm with transforms, or does not go with what it leaves as it is.
        """
        index = self.rule_for(name, role, op, aliases)
        if index is None:
            return self._role_settings(role)
        rule = self.rules[index]
        line = f"rule {index + 1} ({rule.label})" + (f": {rule.reason}" if rule.reason else "")
        if rule.quantize is False:
            return Skip(line if rule.reason else f"{line}: quantize: false")
        base: Recipe | RoleSettings = {"head": self.head, "embedding": self.embedding}.get(
            role, self
        ) or RoleSettings()
        chosen = {key: getattr(base if getattr(rule, key) is None else rule, key) for key in SETTINGS}
        if rule.zero_point is None and (chosen["symmetric"] or chosen["dtype"] != "int"):
            chosen["zero_point"] = (
                "int"  # the rule takes away the zero points of which its base says what they are
            )
        if role == "embedding":
            _check_embedding(chosen["algorithm"], f"{name}: {line}: algorithm")
        activations = base.activations if rule.activations is None else rule.activations
        try:
            check_scheme(**chosen)
            check_activations(activations, chosen["algorithm"], chosen["dtype"])
        except RecipeError as error:  # the rule and what it leaves to others do not go together
            raise RecipeError(f"{name}: {line}: {error}") from error
        return WeightSettings(
            **chosen,
            activations=activations,
            scale_dtype=self.scale_dtype,
            double_quant=self.double_quant,
            group_fallback=self.group_fallback,
            decided_by=line,
        )

    def _role_settings(self, role: str) -> WeightSettings | Skip:
        if role == "conv" and self.activations != "static":
            return Skip(
                "a convolution: no weight-only kernel takes one; activations: static does, or a rule for its size"
            )
        if role == "conv" and self.dtype != "int":
            return Skip(f"a convolution: its integer kernels take integers, and dtype is {self.dtype}")
        base: Recipe | RoleSettings | None = {"head": self.head, "embedding": self.embedding}.get(role, self)
        if base is None:
            return Skip(f"{role}: float in recipe {self.name}")
        return WeightSettings(
            **{key: getattr(base, key) for key in SETTINGS},
            activations=base.activations,
            scale_dtype=self.scale_dtype,
            double_quant=self.double_quant,
            group_fallback=self.group_fallback,
            decided_by=f"{role} of recipe {self.name}" if base is not self else f"recipe {self.name}",
        )


def builtin_recipes() -> list[tuple[str, str]]:
    """(name, description) of each built-in recipe, by name."""
    return [(file.stem, Recipe.load(file.stem).description) for file in _builtin_files()]


def _builtin_files() -> list[Path]:
    folder = importlib.resources.files("qcompiler") / "recipes"
    return sorted(Path(entry.name) for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def _builtin_text(name: str) -> str:
    return (importlib.resources.files("qcompiler") / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")


def _check_embedding(steps: tuple[Step, ...], where: str) -> None:
    names = ", ".join(step.name for step in steps if step.algorithm.kind == "transform")
    if names:
        raise RecipeError(
            f"{where}: {names} works on a linear's inputs, an embedding has none; give a quantizer alone"
        )
