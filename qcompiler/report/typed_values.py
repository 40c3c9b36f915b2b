"""From what ``json`` reads back to the dataclasses that ``asdict`` and ``to_json`` made it of."""

import math
import types
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any, Union, get_args, get_origin, get_type_hints


def typed(kind: Any, value: Any) -> Any:
    """The value as ``kind``: a dataclass, tuple, list, dict with text as keys, enum, ``X | None``, float, int, str or bool, nested at will.

    Where a float is wanted, null is infinity: JSON has no word for it, and ``to_json`` writes null.

    Raises:
        ValueError: it is not one, as where a dataclass had other fields when it was written.
    """
    if kind is Any:
        return value
    if is_dataclass(kind):
        return _dataclass(kind, value)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        (present,) = (argument for argument in arguments if argument is not types.NoneType)
        return None if value is None else typed(present, value)
    if origin is dict:
        return {key: typed(arguments[1], item) for key, item in _require(dict, value).items()}
    if origin is list:
        return [typed(arguments[0], item) for item in _require(list, value)]
    if origin is tuple:
        items = _require(list, value)
        kinds = [arguments[0]] * len(items) if arguments[-1] is Ellipsis else arguments
        return tuple(typed(one, item) for one, item in zip(kinds, items, strict=True))
    if kind is float:
        return math.inf if value is None else float(value if type(value) is int else _require(float, value))
    if issubclass(kind, Enum):
        return kind(value)
    return _require(kind, value)


def _dataclass(kind: Any, value: Any) -> Any:
    content, names = _require(dict, value), [entry.name for entry in fields(kind)]
    if set(content) != set(names):
        raise ValueError(f"{kind.__name__}: has {', '.join(content)}, and not {', '.join(names)}")
    kinds = get_type_hints(kind)
    return kind(**{name: typed(kinds[name], content[name]) for name in names})


def _require(kind: type[Any], value: Any) -> Any:
    if type(value) is not kind:  # True is no 1 here
        raise ValueError(f"{value!r} is no {kind.__name__}")
    return value
