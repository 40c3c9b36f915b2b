"""The ``algorithm:`` line of a recipe: steps with typed options, each looked up in the algorithms' table."""

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from qcompiler import algorithms
from qcompiler.errors import RecipeError, SchemeError
from qcompiler.recipe.transform import TRANSFORMS
from qcompiler.recipe.yaml_text import check_keys


@dataclass(frozen=True, slots=True)
class Step:
    """One algorithm with its typed options; ``name`` is what `algorithms.find` found it by."""

    name: str
    options: object
    algorithm: algorithms.Algorithm


def make_steps(value: object, where: str = "algorithm") -> tuple[Step, ...]:
    """Steps from ``mse``, ``{name: mse, steps: 40}`` or a list of these.

    Raises:
        RecipeError: unknown algorithm or option, an option of the wrong type, another order than transforms,
            exactly one quantizer, refinements, a reconstruction, or more than one of the last.
    """
    items = value if isinstance(value, (list, tuple)) else [value]
    steps = tuple(item if isinstance(item, Step) else _make_step(item, where) for item in items)
    kinds = [step.algorithm.kind for step in steps]
    order = [typing.get_args(algorithms.Kind).index(kind) for kind in kinds]
    if kinds.count("quantizer") != 1 or order != sorted(order) or kinds.count("reconstruction") > 1:
        given = ", ".join(f"{step.name} ({kind})" for step, kind in zip(steps, kinds, strict=True)) or "none"
        quantizer = next((step.name for step in reversed(steps) if step.algorithm.kind == "quantizer"), "mse")
        names = [
            *(step.name for step in steps if step.algorithm.kind == "transform"),
            quantizer,
            *(step.name for step in steps if step.algorithm.kind == "refinement"),
            *[step.name for step in steps if step.algorithm.kind == "reconstruction"][:1],
        ]
        raise RecipeError(
            f"{where}: needs transforms first, then exactly one quantizer, then refinements, then at most one reconstruction, "
            f"got {given}; write [{','.join(names)}]"
        )
    return steps


def steps_with(name: str, used: Sequence[str]) -> list[str] | None:
    """Names of the steps of an algorithm once `name` is one of them, in the order that ``make_steps`` wants.

    A quantizer or reconstruction takes the place of the other; None where no algorithm of ours has that name.

    Args:
        used: names of the steps; one that is not ours is taken to be a quantizer, and no code of its is loaded.
    """
    if name in used:
        return list(used)
    kinds: dict[str, algorithms.Kind] = {
        algorithm.name: algorithm.kind for algorithm in algorithms.ALGORITHMS
    }
    if name not in kinds:
        return None
    single = kinds[name] in ("quantizer", "reconstruction")
    kept = [step for step in used if not (single and kinds.get(step, "quantizer") == kinds[name])]
    order = typing.get_args(algorithms.Kind)
    return sorted([*kept, name], key=lambda step: order.index(kinds.get(step, "quantizer")))


def plain_steps(steps: tuple[Step, ...]) -> object:
    """The steps as YAML says them, every option spelled out: ``rtn`` or ``[awq, {name: mse, steps: 40}]``."""
    plain = [_plain_step(step) for step in steps]
    return plain[0] if len(plain) == 1 else plain


def _plain_step(step: Step) -> object:
    names = [entry.name for entry in dataclasses.fields(type(step.options))]  # type: ignore[arg-type]  # find() checks
    options = {name: _plain_option(getattr(step.options, name)) for name in names}
    return {"name": step.name} | options if options else step.name


def _plain_option(value: object) -> object:
    if isinstance(value, Enum):
        return value.value
    return list(value) if isinstance(value, tuple) else value


def _make_step(value: object, where: str) -> Step:
    name = value.get("name") if isinstance(value, dict) else value
    if not isinstance(name, str):
        raise RecipeError(
            f"{where}: expected the name of an algorithm or {{name: NAME, option: value}}, got {value!r}"
        )
    if name in TRANSFORMS:
        raise RecipeError(
            f"{where}: {name} is done to the whole model, not to one weight; write transform: {name}"
        )
    try:
        algorithm = algorithms.find(name)
    except SchemeError as error:
        raise RecipeError(f"{where}: {str(error).removeprefix('algorithm: ')}") from error
    given = {key: option for key, option in value.items() if key != "name"} if isinstance(value, dict) else {}
    return Step(name, make_options(algorithm.options, given, f"{where}: {name}"), algorithm)


def make_options(kind: type, given: Mapping[str, object], where: str) -> object:
    """An instance of the options dataclass `kind`; each value checked against its field's type.

    Raises:
        RecipeError: an unknown option (names the nearest), a wrong type, or a value that `kind` refuses.
    """
    if not dataclasses.is_dataclass(kind):
        raise RecipeError(f"{where}: its options must be a dataclass, not {kind!r}")
    hints = typing.get_type_hints(kind)
    known = [entry.name for entry in dataclasses.fields(kind)]
    if given and not known:
        raise RecipeError(f"{where}: takes no options, got {', '.join(given)}")
    values = {
        key: _typed(value, hints[key], f"{where}.{key}")
        for key, value in check_keys(dict(given), known, where).items()
    }
    try:
        return kind(**values)
    except (SchemeError, RecipeError, ValueError, TypeError) as error:
        raise RecipeError(f"{where}: {error}") from error


def _typed(value: object, hint: object, where: str) -> object:
    """`value` as `hint` says: a class, an Enum by value, a Literal, a tuple[X, ...] or a union of these."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        for choice in typing.get_args(hint):
            try:
                return _typed(value, choice, where)
            except RecipeError:
                continue  # the next member of the union may take it
    elif typing.get_origin(hint) is typing.Literal:
        if any(value == choice and type(value) is type(choice) for choice in typing.get_args(hint)):
            return value
    elif typing.get_origin(hint) is tuple and isinstance(value, (list, tuple)):
        return tuple(_typed(item, typing.get_args(hint)[0], where) for item in value)
    elif hint is None or hint is type(None):
        if value is None:
            return None
    elif hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    elif isinstance(hint, type) and issubclass(hint, Enum):
        if isinstance(value, hint) or value in [member.value for member in hint]:
            return hint(value)
    elif (
        isinstance(hint, type)
        and isinstance(value, hint)
        and not (isinstance(value, bool) and hint is not bool)
    ):
        return value
    raise RecipeError(f"{where}: expected {_described(hint)}, got {value!r}")


def _described(hint: object) -> str:
    """``int``, ``float or None``, ``one of a, b``."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(_described(choice) for choice in typing.get_args(hint))
    if typing.get_origin(hint) is typing.Literal:
        return f"one of {', '.join(map(str, typing.get_args(hint)))}"
    if hint is type(None):
        return "null"
    if isinstance(hint, type) and issubclass(hint, Enum):
        return f"one of {', '.join(str(member.value) for member in hint)}"
    return hint.__name__ if isinstance(hint, type) else str(hint)
