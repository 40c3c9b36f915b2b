"""Operators that move elements, and those that compute shapes, ranges and masks."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from qcompiler.calibration.torch_operators.call import Call, as_tensor


def _reshape(call: Call, x: Tensor, shape: Tensor) -> Tensor:
    wanted = [int(size) for size in shape.tolist()]
    if not call.integer("allowzero", 0):
        wanted = [x.shape[axis] if size == 0 else size for axis, size in enumerate(wanted)]
    return x.reshape(wanted)


def _flatten(call: Call, x: Tensor) -> Tensor:
    axis = call.integer("axis", 1)
    axis += x.dim() if axis < 0 else 0
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def _transpose(call: Call, x: Tensor) -> Tensor:
    return x.permute(call.integers("perm") or list(range(x.dim()))[::-1])


def _squeeze(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    given = call.axes(axes)
    return x.squeeze() if given is None else x.squeeze(given)


def _unsqueeze(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    given = call.axes(axes) or []
    rank = x.dim() + len(given)
    for axis in sorted(axis % rank for axis in given):
        x = x.unsqueeze(axis)
    return x


def _concat(call: Call, *inputs: Tensor) -> Tensor:
    return torch.cat(inputs, dim=call.integer("axis", 1))


def _split(call: Call, x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
    """Sizes from the input, the attribute (before opset 13), or equal parts of which the last may be smaller."""
    axis, parts = call.integer("axis", 0), len(call.node.outputs)
    given = call.integers("split") if sizes is None else [int(size) for size in sizes.tolist()]
    if given is None:
        each = -(-x.shape[axis] // parts)
        given = [each] * (parts - 1) + [x.shape[axis] - each * (parts - 1)]
    return torch.split(x, given, dim=axis)


def _slice(
    call: Call,
    x: Tensor,
    starts: Tensor | None = None,
    ends: Tensor | None = None,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    """Inputs since opset 10, attributes before; a negative step walks backwards."""
    first = call.integers("starts") or [] if starts is None else starts.tolist()
    last = call.integers("ends") or [] if ends is None else ends.tolist()
    along = call.axes(axes) or range(len(first))
    strides = [1] * len(first) if steps is None else steps.tolist()
    index = [slice(None)] * x.dim()
    for axis, start, end, step in zip(along, first, last, strides, strict=True):
        size = x.shape[axis]
        start = min(max(start + size if start < 0 else start, 0), size if step > 0 else size - 1)
        end = end + size if end < 0 else end
        if step > 0:
            index[axis] = slice(start, max(min(max(end, 0), size), start), step)
        else:
            chosen = range(start, max(end, -1), step)
            x = x.index_select(axis, torch.tensor(list(chosen), dtype=torch.int64, device=x.device))
    return x[tuple(index)]


def _expand(call: Call, x: Tensor, shape: Tensor) -> Tensor:
    """Both ways: a size of 1 in the wanted shape keeps the input's."""
    return x.expand(np.broadcast_shapes(x.shape, shape.tolist()))


def _tile(call: Call, x: Tensor, repeats: Tensor) -> Tensor:
    return x.repeat(repeats.tolist())


def _gather(call: Call, x: Tensor, indices: Tensor) -> Tensor:
    axis = call.integer("axis", 0) % x.dim()
    size = x.shape[axis]
    flat = indices.reshape(-1).to(torch.int64)
    flat = torch.where(flat < 0, flat + size, flat).to(x.device)
    taken = x.index_select(axis, flat)
    return taken.reshape((*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]))


def _gather_elements(call: Call, x: Tensor, indices: Tensor) -> Tensor:
    axis = call.integer("axis", 0)
    return torch.gather(x, axis, torch.where(indices < 0, indices + x.shape[axis], indices).to(torch.int64))


def _pad(
    call: Call, x: Tensor, pads: Tensor | None = None, value: Tensor | None = None, axes: Tensor | None = None
) -> Tensor:
    mode = call.text("mode", "constant")
    given = (call.integers("pads") or []) if pads is None else [int(pad) for pad in pads.tolist()]
    along = [axis % x.dim() for axis in axes.tolist()] if axes is not None else list(range(x.dim()))
    around = [(0, 0)] * x.dim()
    for index, axis in enumerate(along):
        around[axis] = (given[index], given[index + len(along)])
    if mode != "constant":
        if mode == "wrap":
            raise call.refuse("padding of mode wrap")
        for axis, (before, after) in enumerate(around):
            if (before, after) != (0, 0):
                x = x.index_select(axis, _mirrored(x.shape[axis], before, after, mode).to(x.device))
        return x
    filling = call.number("value", 0.0) if value is None else value.item()
    return functional.pad(x, [size for pair in reversed(around) for size in pair], value=filling)


def _mirrored(size: int, before: int, after: int, mode: str) -> Tensor:
    places = torch.arange(-before, size + after)
    if mode == "edge":
        return places.clamp(0, size - 1)
    period = max(2 * size - 2, 1)
    folded = places.remainder(period)
    return torch.where(folded >= size, period - folded, folded)


def _shape(call: Call, x: Tensor) -> Tensor:
    start, end = call.integer("start", 0), call.integer("end", x.dim())
    return torch.tensor(list(x.shape)[slice(start, end)], dtype=torch.int64)


def _size(call: Call, x: Tensor) -> Tensor:
    return torch.tensor(x.numel(), dtype=torch.int64)


def _range(call: Call, start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    count = max(math.ceil((limit.item() - start.item()) / delta.item()), 0)
    return start + torch.arange(count, dtype=start.dtype) * delta


def _constant_of_shape(call: Call, shape: Tensor) -> Tensor:
    wanted = [int(size) for size in shape.tolist()]
    if not call.has("value"):
        return torch.zeros(wanted, dtype=torch.float32)
    value = as_tensor(call.node.attributes["value"].as_tensor().numpy()).reshape(())
    return value.expand(wanted).clone()


def _constant(call: Call) -> Tensor:
    attributes = call.node.attributes
    if "value" in attributes:
        return as_tensor(attributes["value"].as_tensor().numpy())
    if "value_int" in attributes:
        return torch.tensor(attributes["value_int"].as_int(), dtype=torch.int64)
    if "value_ints" in attributes:
        return torch.tensor(list(attributes["value_ints"].as_ints()), dtype=torch.int64)
    if "value_float" in attributes:
        return torch.tensor(attributes["value_float"].as_float(), dtype=torch.float32)
    if "value_floats" in attributes:
        return torch.tensor(list(attributes["value_floats"].as_floats()), dtype=torch.float32)
    raise call.refuse("a constant that is text or sparse")


def _trilu(call: Call, x: Tensor, k: Tensor | None = None) -> Tensor:
    diagonal = 0 if k is None else int(k.item())
    return torch.triu(x, diagonal) if call.integer("upper", 1) else torch.tril(x, diagonal)


def _cumulative_sum(call: Call, x: Tensor, axis: Tensor) -> Tensor:
    along = int(axis.item())
    if call.integer("reverse", 0):
        x = x.flip(along)
    summed = torch.cumsum(x, along, dtype=x.dtype)
    if call.integer("exclusive", 0):
        summed = summed - x
    return summed.flip(along) if call.integer("reverse", 0) else summed


OPERATORS: dict[str, Callable[..., Any]] = {
    "Concat": _concat,
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "CumSum": _cumulative_sum,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "Pad": _pad,
    "Range": _range,
    "Reshape": _reshape,
    "Shape": _shape,
    "Size": _size,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Trilu": _trilu,
    "Unsqueeze": _unsqueeze,
}

HOST_INPUTS = {
    "ConstantOfShape": frozenset({0}),
    "CumSum": frozenset({1}),
    "Expand": frozenset({1}),
    "Pad": frozenset({1, 2, 3}),
    "Range": frozenset({0, 1, 2}),
    "Reshape": frozenset({1}),
    "Slice": frozenset({1, 2, 3, 4}),
    "Split": frozenset({1}),
    "Squeeze": frozenset({1}),
    "Tile": frozenset({1}),
    "Trilu": frozenset({1}),
    "Unsqueeze": frozenset({1}),
}
