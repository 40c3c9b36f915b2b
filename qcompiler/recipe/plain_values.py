"""A recipe's fields from the plain values of YAML, the same values back from its fields, and ``KEY=VALUE`` on them."""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import cast

from qcompiler.errors import RecipeError
from qcompiler.quant.activations import Activations
from qcompiler.quant.scheme import GroupFallback
from qcompiler.recipe.calibration import CalibrationSettings
from qcompiler.recipe.mixed import MixedSettings
from qcompiler.recipe.rules import Match, RoleSettings, Rule
from qcompiler.recipe.setting import Setting
from qcompiler.recipe.steps import Step, plain_steps, steps_with
from qcompiler.recipe.tensors import TensorSettings, make_tensors, plain_tensors
from qcompiler.recipe.transform import TransformSettings
from qcompiler.recipe.yaml_text import check_keys, parse_yaml


@dataclass(frozen=True, slots=True)
class _Section:
    """A key of a recipe that has keys inside.

    Attributes:
        kind: what they are given to.
        off: the word for going without it; "" where nothing does.
        short: the key inside that a bare word is short for; "" where none is.
    """

    kind: type[RoleSettings] | type[CalibrationSettings] | type[MixedSettings] | type[TransformSettings]
    off: str = ""
    short: str = ""

    def opened(self, value: object) -> object:
        """The value with a bare word written out, and with nothing said inside where it is off."""
        if not isinstance(value, str):
            return value
        if value == self.off:
            return {}
        return {self.short: value} if self.short else value


_SECTIONS = {
    "head": _Section(RoleSettings, off="float"),
    "embedding": _Section(RoleSettings, off="float"),
    "calibration": _Section(CalibrationSettings),
    "transform": _Section(TransformSettings, off="none", short="name"),
    "mixed": _Section(MixedSettings, off="none"),
}


def keys_of(kind: type) -> list[str]:
    """The fields of a dataclass."""
    return [entry.name for entry in dataclasses.fields(kind)]


def read_fields(value: object, known: Iterable[str], where: str) -> dict[str, object]:
    """The fields that plain values give; what a key may hold is for the recipe itself to check.

    Raises:
        RecipeError: no mapping, an unknown key, or a section or rule that makes no sense; starts with `where`.
    """
    fields = dict(check_keys(value, known, where))
    try:
        for key, section in _SECTIONS.items():
            if key in fields:
                off = section.off != "" and fields[key] == section.off
                fields[key] = None if off else _nested(section, fields[key], key)
        if "rules" in fields:
            fields["rules"] = _make_rules(fields["rules"])
        if "tensors" in fields:
            fields["tensors"] = make_tensors(fields["tensors"])
    except RecipeError as error:
        raise RecipeError(f"{where}: {error}") from error
    return fields


def plain_value(value: object, key: str) -> object:
    """`value` as YAML says it: sections as mappings, None keys of a rule left out."""
    if value is None and key in _SECTIONS:
        return _SECTIONS[key].off
    if isinstance(value, GroupFallback):
        return value.value
    if key == "tensors":
        return plain_tensors(cast(tuple[TensorSettings, ...], value))
    if key == "algorithm":
        return plain_steps(cast(tuple[Step, ...], value))
    if isinstance(value, tuple):
        return [plain_value(item, "") for item in value]
    if isinstance(value, (RoleSettings, CalibrationSettings, MixedSettings, TransformSettings, Match, Rule)):
        entries = ((entry, getattr(value, entry)) for entry in keys_of(type(value)))
        return {entry: plain_value(content, entry) for entry, content in entries if content is not None}
    return value


def with_setting(mapping: Mapping[str, object], setting: Setting) -> dict[str, object]:
    """The plain values of a recipe, all its keys among them, after one ``KEY=VALUE``; the value is not checked yet.

    Raises:
        RecipeError: no ``=``, an unknown key (names the nearest), or no YAML.
    """
    where = setting.said
    key, equals, text = setting.line.partition("=")
    if not equals:
        raise RecipeError(f"{where}: expected KEY=VALUE")
    outer, dot, inner = key.strip().partition(".")
    outer = "calibration" if outer == "calib" else outer
    if outer == "level" and not dot:
        outer, text = "activations", _of_level(text.strip(), where)
    used = _step_names(mapping["algorithm"])
    steps = steps_with(outer, used) if dot and outer not in mapping else None
    if steps is not None:
        why = (
            "options go beside the algorithm's name" if outer in used else f"the recipe does not use {outer}"
        )
        said = [f"{{name: {step}, {inner}: {text}}}" if step == outer else step for step in steps]
        raise RecipeError(f"{where}: {why}; write --set 'algorithm=[{', '.join(said)}]'")
    check_keys({outer: None}, mapping, where)
    value = parse_yaml(text, where)
    if not dot:
        return {**mapping, outer: value}
    inside = _SECTIONS[outer].opened(mapping[outer]) if outer in _SECTIONS else None
    if not isinstance(inside, dict):
        raise RecipeError(f"{where}: {outer} has no keys inside; set it whole, {outer}=VALUE")
    check_keys({inner: None}, keys_of(_SECTIONS[outer].kind), where)
    return {**mapping, outer: {**inside, inner: value}}


_LEVELS: dict[str, Activations] = {"o1": "token", "o2": "tensor", "o3": "static"}
"""What SmoothQuant's levels do with activations (Xiao et al. 2022, table 2)."""


def _of_level(level: str, where: str) -> Activations:
    if level.lower() not in _LEVELS:
        known = ", ".join(f"{name} (activations: {value})" for name, value in _LEVELS.items())
        raise RecipeError(f"{where}: level: expected one of {known}, got {level!r}")
    return _LEVELS[level.lower()]


def _step_names(algorithm: object) -> list[str]:
    steps = algorithm if isinstance(algorithm, list) else [algorithm]
    return [str(step.get("name") if isinstance(step, dict) else step) for step in steps]


def _nested(section: _Section, value: object, where: str) -> object:
    known = keys_of(section.kind)
    value = section.opened(value)
    if section.kind is RoleSettings and not isinstance(value, dict):
        raise RecipeError(f"{where}: expected float or a mapping of {', '.join(known)}, got {value!r}")
    try:
        return section.kind(**check_keys(value, known, where))  # type: ignore[arg-type]  # checked by __post_init__
    except RecipeError as error:
        raise error if str(error).startswith(f"{where}:") else RecipeError(f"{where}: {error}") from error


def _make_rules(value: object) -> tuple[Rule, ...]:
    if not isinstance(value, list):
        raise RecipeError(f"rules: expected a list of rules, got {value!r}")
    return tuple(_make_rule(item, number) for number, item in enumerate(value, 1))


def _make_rule(value: object, number: int) -> Rule:
    """A rule from YAML; ``match: GLOB`` is short for ``match: {name: GLOB}``."""
    try:
        fields = check_keys(value, keys_of(Rule), "rule")
        if "match" not in fields:
            raise RecipeError("match: missing; give at least one of name, role, op")
        match = fields["match"] if isinstance(fields["match"], dict) else {"name": fields["match"]}
        conditions = Match(**check_keys(match, keys_of(Match), "match"))  # type: ignore[arg-type]  # checked inside
        return Rule(**{**fields, "match": conditions})  # type: ignore[arg-type]  # checked by __post_init__
    except RecipeError as error:
        raise RecipeError(f"rule {number}: {error}") from error
