"""JSON that any reader takes: infinity and NaN, which JSON has no word for, become null."""

import json
import math
from typing import Any


def to_json(value: Any) -> str:
    """One document, indented, keys in the order given.

    Args:
        value: plain values: mappings, lists, tuples, text, numbers, booleans and None.
    """
    return json.dumps(_finite(value), indent=1, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
