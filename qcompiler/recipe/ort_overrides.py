"""ONNX Runtime's ``TensorQuantOverrides`` as its own tools write it in JSON, read as a recipe's ``tensors:``.

    {"conv_3": [{"quant_type": "QUInt16", "rmin": 0.0, "rmax": 6.0}], "logits": [{"scale": 0.1, "zero_point": 128}]}

A tensor has a list with one entry. Of its keys ``quant_type`` (of 8 and 16 bits), ``symmetric``, ``rmin`` with ``rmax``, and ``scale`` with
``zero_point`` are taken. What else it may have there is refused by name: channels of weights (``axis``, more entries than one),
``reduce_range`` and ``convert``.
"""

import json
import re
from pathlib import Path
from typing import Any

from qcompiler.errors import RecipeError
from qcompiler.nearest import nearest

_TYPES = {"QUInt8": "uint8", "QInt8": "int8", "QUInt16": "uint16", "QInt16": "int16"}
_TAKEN = ("quant_type", "symmetric", "rmin", "rmax", "scale", "zero_point")
_REFUSED = {
    "axis": "a scale for each channel is for weights; rules say how these are stored (group_size: channel)",
    "reduce_range": "no range is reduced here; leave it out",
    "convert": "a tensor has one type for all its readers; leave it out, or give quant_type for the tensor itself",
}


def read_overrides(path: str) -> dict[str, Any]:
    """The section ``tensors:`` that says the same.

    Raises:
        RecipeError: no such file, not of this form, or a key that is not supported; names the tensor and the key.
    """
    try:
        body = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise RecipeError(f"tensors: {path}: cannot be read ({error.strerror}); check the path") from error
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError alike
        raise RecipeError(f"tensors: {path}: not JSON ({error})") from error
    if not isinstance(body, dict):
        raise RecipeError(
            f"tensors: {path}: expected a mapping from names to lists, as TensorQuantOverrides is"
        )
    found = {}
    for name, entries in body.items():
        settings = _settings(entries, f"tensors: {path}: {name}")
        if settings:
            found[_literal(name)] = settings
    return found


def _settings(entries: Any, where: str) -> dict[str, Any]:
    """Of one tensor; empty where nothing is said of it."""
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise RecipeError(f"{where}: expected a list with a mapping, as TensorQuantOverrides has")
    if not entries:
        return {}
    if len(entries) > 1:
        raise RecipeError(f"{where}: {len(entries)} entries: {_REFUSED['axis']}")
    (entry,) = entries
    for key in entry:
        if key in _REFUSED:
            raise RecipeError(f"{where}: {key} is not supported: {_REFUSED[key]}")
        if key not in _TAKEN:
            raise RecipeError(f"{where}: unknown key {key!r}; {nearest(str(key), _TAKEN)}")
    settings = {key: entry[key] for key in ("symmetric", "scale", "zero_point") if key in entry}
    if "quant_type" in entry:
        settings["type"] = _type(entry["quant_type"], where)
    if ("rmin" in entry) is not ("rmax" in entry):
        raise RecipeError(f"{where}: rmin and rmax go together; give both")
    if "rmin" in entry:
        settings["range"] = [entry["rmin"], entry["rmax"]]
    return settings


def _type(value: Any, where: str) -> str:
    name = str(value).removeprefix("QuantType.")
    if name not in _TYPES:
        raise RecipeError(
            f"{where}: quant_type {value!r} is not supported for activations; {nearest(name, _TYPES)}"
        )
    return _TYPES[name]


def _literal(name: str) -> str:
    """A name that is no pattern, whatever signs are in it."""
    return f"re:{re.escape(name)}" if name.startswith("re:") or any(mark in name for mark in "*?[") else name
