"""YAML text to plain values and back, and checks of such values; what they mean is `recipe.py`'s business."""

import re
from collections.abc import Iterable, Mapping, Sequence

import yaml

from qcompiler.errors import RecipeError
from qcompiler.nearest import nearest


class _StrictLoader(yaml.SafeLoader):
    """Refuses a key given twice, and reads ``1e-3`` as a number (YAML 1.1 wants ``1.0e-3``)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[object, object]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode):
                if key_node.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"{key_node.value!r} is given twice", key_node.start_mark
                    )
                seen.add(key_node.value)
        return super().construct_mapping(node, deep)


_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def parse_yaml(text: str, where: str) -> object:
    """The plain value that `text` says.

    Raises:
        RecipeError: not YAML, or a key given twice; names the line, counted from 1.
    """
    try:
        value: object = yaml.load(text, _StrictLoader)
    except yaml.MarkedYAMLError as error:
        line = f" line {error.problem_mark.line + 1}:" if error.problem_mark else ""
        problem = " ".join(part for part in (error.context, error.problem) if part)
        raise RecipeError(f"{where}:{line} not readable YAML: {problem}") from error
    except yaml.YAMLError as error:  # an unprintable character: carries a position, but no line
        raise RecipeError(f"{where}: not readable YAML: {' '.join(str(error).split())}") from error
    except ValueError as error:  # a value that looks like a date but is none
        raise RecipeError(f"{where}: not readable YAML: {error}") from error
    return value


def format_yaml(mapping: Mapping[str, object]) -> str:
    """Keys in the order given; the innermost lists and mappings on one line."""
    text: str = yaml.safe_dump(
        dict(mapping), sort_keys=False, default_flow_style=None, width=100, allow_unicode=True
    )
    return text


def check_keys(value: object, allowed: Iterable[str], where: str) -> dict[str, object]:
    """`value` as a mapping that has only `allowed` keys.

    Raises:
        RecipeError: no mapping, or an unknown key; names the nearest known one.
    """
    if not isinstance(value, dict):
        raise RecipeError(f"{where}: expected keys and values, got {value!r}")
    known = list(allowed)
    for key in value:
        if key not in known:
            raise RecipeError(f"{where}: unknown key {str(key)!r}; {nearest(str(key), known)}")
    return value


def check_int(value: object, low: int, high: int | None, key: str) -> None:
    """Raises RecipeError unless `value` is a whole number in low..high."""
    if (
        isinstance(value, int)
        and not isinstance(value, bool)
        and low <= value
        and (high is None or value <= high)
    ):
        return
    bounds = f"of at least {low}" if high is None else f"from {low} to {high}"
    raise RecipeError(f"{key}: expected a whole number {bounds}, got {value!r}")


def check_bool(value: object, key: str) -> None:
    """Raises RecipeError unless `value` is true or false."""
    if not isinstance(value, bool):
        raise RecipeError(f"{key}: expected true or false, got {value!r}")


def check_text(value: object, key: str) -> None:
    """Raises RecipeError unless `value` is text."""
    if not isinstance(value, str):
        raise RecipeError(f"{key}: expected text, got {value!r}")


def check_choice(value: object, choices: Sequence[str], key: str) -> None:
    """Raises RecipeError unless `value` is one of `choices`; names the nearest."""
    if not isinstance(value, str):
        raise RecipeError(f"{key}: expected one of {', '.join(choices)}, got {value!r}")
    if value not in choices:
        raise RecipeError(f"{key}: {str(value)!r} is unknown; {nearest(value, choices)}")
