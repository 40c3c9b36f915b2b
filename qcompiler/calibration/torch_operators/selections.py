"""Operators that pick elements by indices that are computed, or put elements where such indices say: routing to experts."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from qcompiler.calibration.torch_operators.call import Call


def _compress(call: Call, x: Tensor, condition: Tensor) -> Tensor:
    """Where the condition is shorter than the axis, the rest is left out."""
    places = condition.nonzero().reshape(-1)
    if not call.has("axis"):
        return x.reshape(-1).index_select(0, places)
    return x.index_select(call.integer("axis", 0), places)


def _gather_nd(call: Call, x: Tensor, indices: Tensor) -> Tensor:
    if call.integer("batch_dims", 0):
        raise call.refuse("batch_dims")
    return x[tuple(indices.to(torch.int64).unbind(-1))]


def _non_zero(call: Call, x: Tensor) -> Tensor:
    return x.nonzero().T


def _scatter_elements(call: Call, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    axis, how = call.integer("axis", 0), call.text("reduction", "none")
    places = torch.where(indices < 0, indices + x.shape[axis], indices).to(torch.int64)
    if how == "none":
        return torch.scatter(x, axis, places, updates)
    if how == "add":
        return torch.scatter_add(x, axis, places, updates)
    raise call.refuse(f"reduction {how}")


def _scatter_nd(call: Call, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    how = call.text("reduction", "none")
    if how not in ("none", "add"):
        raise call.refuse(f"reduction {how}")
    places = tuple(indices.to(torch.int64).unbind(-1))
    return x.index_put(places, updates, accumulate=how == "add")


def _top_k(call: Call, x: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    values, indices = torch.topk(
        x, int(k.item()), call.integer("axis", -1), bool(call.integer("largest", 1)), sorted=True
    )
    return values, indices


OPERATORS: dict[str, Callable[..., Any]] = {
    "Compress": _compress,
    "GatherND": _gather_nd,
    "NonZero": _non_zero,
    "ScatterElements": _scatter_elements,
    "ScatterND": _scatter_nd,
    "TopK": _top_k,
}

HOST_INPUTS = {"TopK": frozenset({1})}
