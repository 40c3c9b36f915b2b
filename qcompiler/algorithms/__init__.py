"""The algorithms: one file each, one row each in the table below.

A quantizer turns (weight, statistics, scheme, options) into a QuantizedTensor; a transform finds a scale for
a layer's input channels. None of them knows a graph. Users add theirs as ``package.module:function`` or as an
entry point in the group ``qcompiler.algorithms``.
"""

import difflib
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from importlib.metadata import entry_points
from typing import Any, Literal

from qcompiler.algorithms import awq, mse, rtn
from qcompiler.errors import SchemeError

ENTRY_POINTS = "qcompiler.algorithms"


class Need(str, Enum):
    """What calibration has to gather for an algorithm."""

    HESSIAN = "hessian"
    """InputStatistics.hessian."""
    CHANNELS = "channels"
    """InputStatistics.mean_abs, max_abs and mean_square."""


@dataclass(frozen=True, slots=True)
class NoOptions:
    """The options of an algorithm that has none."""


@dataclass(frozen=True, slots=True)
class Algorithm:
    """One row of the table.

    Attributes:
        kind: "quantizer": run(weight, statistics, scheme, options) -> QuantizedTensor, statistics may be None
            where ``needs`` is empty or the data is missing; "transform": run(weights, statistics, schemes,
            options, tie).
        needs: the statistics that make it better than without.
        options: a frozen dataclass, every field with a default.
    """

    name: str
    kind: Literal["transform", "quantizer"]
    needs: frozenset[Need]
    options: type[Any]
    run: Callable[..., Any]


ALGORITHMS = (
    Algorithm("rtn", "quantizer", frozenset(), rtn.RtnOptions, rtn.quantize),
    Algorithm("mse", "quantizer", frozenset({Need.HESSIAN}), mse.MseOptions, mse.quantize),
    Algorithm("awq", "transform", frozenset({Need.HESSIAN, Need.CHANNELS}), awq.AwqOptions, awq.search_scale),
)


def find(name: str) -> Algorithm:
    """The algorithm of that name: ours, an installed entry point, or a user's ``package.module:function``.

    What a user's name leads to is an Algorithm, or a function that is taken for a quantizer which needs the
    Hessian and has no options.

    Raises:
        SchemeError: no such algorithm; the nearest names are given.
    """
    for algorithm in ALGORITHMS:
        if algorithm.name == name:
            return algorithm
    if ":" in name:
        return _as_algorithm(name, _import(name))
    installed = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    if name in installed:
        return _as_algorithm(name, _import(installed[name].value))
    known = [algorithm.name for algorithm in ALGORITHMS] + sorted(installed)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
    raise SchemeError(f"algorithm: {name!r} is not known; {hint} (your own: package.module:function)")


def _import(reference: str) -> Any:
    module_name, _, attribute = reference.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise SchemeError(
            f"algorithm: {reference}: no module {error.name}; is it installed or on PYTHONPATH?"
        ) from error
    found = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            near = difflib.get_close_matches(part, dir(found), n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise SchemeError(f"algorithm: {reference}: {module_name} has no {attribute}{hint}")
        found = getattr(found, part)
    return found


def _as_algorithm(name: str, found: Any) -> Algorithm:
    if isinstance(found, Algorithm):
        return found
    if not callable(found):
        raise SchemeError(
            f"algorithm: {name}: must be a function or an Algorithm, not {type(found).__name__}"
        )
    return Algorithm(name, "quantizer", frozenset({Need.HESSIAN}), NoOptions, found)
