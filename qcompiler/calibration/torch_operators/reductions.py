"""Operators that reduce along axes, and the normalizations and softmax built on them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from qcompiler.calibration.torch_operators.call import Call

Reduction = Callable[[Tensor, list[int], bool], Tensor]


def _reduce(function: Reduction) -> Callable[..., Tensor]:
    """Axes as an attribute (before opset 18, ReduceSum 13) or an input; none means all, or with noop_with_empty_axes nothing."""

    def run(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
        along = call.axes(axes)
        if not along:
            if call.integer("noop_with_empty_axes", 0):
                return x
            along = list(range(x.dim()))
        return function(x, along, bool(call.integer("keepdims", 1)))

    return run


def _sum(x: Tensor, along: list[int], keep: bool) -> Tensor:
    return x.sum(along, keepdim=keep, dtype=x.dtype)


def _mean(x: Tensor, along: list[int], keep: bool) -> Tensor:
    if x.is_floating_point():
        return x.mean(along, keepdim=keep)
    total = x.sum(along, keepdim=keep)
    return torch.div(total, x.numel() // max(total.numel(), 1), rounding_mode="trunc").to(x.dtype)


def _product(x: Tensor, along: list[int], keep: bool) -> Tensor:
    for axis in sorted((axis % x.dim() for axis in along), reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


def _log_sum_exp(x: Tensor, along: list[int], keep: bool) -> Tensor:
    return torch.logsumexp(x, along, keepdim=keep)


def _arg(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The first of equal ones, or the last."""

    def run(call: Call, x: Tensor) -> Tensor:
        axis, keep = call.integer("axis", 0), bool(call.integer("keepdims", 1))
        if not call.integer("select_last_index", 0):
            return function(x, dim=axis, keepdim=keep)
        return x.shape[axis] - 1 - function(x.flip(axis), dim=axis, keepdim=keep)

    return run


def _softmax(function: Callable[..., Tensor]) -> Callable[[Call, Tensor], Tensor]:
    """Before opset 13 over all axes from ``axis`` on together."""

    def run(call: Call, x: Tensor) -> Tensor:
        if call.version >= 13:
            return function(x, dim=call.integer("axis", -1))
        axis = call.integer("axis", 1)
        axis += x.dim() if axis < 0 else 0
        return function(x.reshape(*x.shape[:axis], -1), dim=-1).reshape(x.shape)

    return run


def _layer_normalization(
    call: Call, x: Tensor, scale: Tensor, bias: Tensor | None = None
) -> Tensor | tuple[Tensor, ...]:
    axis = call.integer("axis", -1)
    axis += x.dim() if axis < 0 else 0
    along = list(range(axis, x.dim()))
    epsilon = call.number("epsilon", 1e-5)
    if (
        len(call.node.outputs) == 1
        and scale.shape == x.shape[axis:]
        and (bias is None or bias.shape == scale.shape)
    ):
        return functional.layer_norm(x, x.shape[axis:], scale, bias, epsilon)
    mean = x.mean(along, keepdim=True)
    centred = x - mean
    inverse = torch.rsqrt((centred * centred).mean(along, keepdim=True) + epsilon)
    y = centred * inverse * scale
    return (y if bias is None else y + bias), mean, inverse


def _rms_normalization(call: Call, x: Tensor, scale: Tensor) -> Tensor | tuple[Tensor, ...]:
    """RMSNormalization (opset 23) and ONNX Runtime's SimplifiedLayerNormalization, whose second output is the inverse."""
    axis = call.integer("axis", -1)
    axis += x.dim() if axis < 0 else 0
    mean = (x * x).mean(list(range(axis, x.dim())), keepdim=True)
    inverse = torch.rsqrt(mean + call.number("epsilon", 1e-5))
    y = x * inverse * scale
    return y if len(call.node.outputs) == 1 else (y, inverse)


def _skip_normalization(
    call: Call, x: Tensor, skip: Tensor, gamma: Tensor, *rest: Tensor | None
) -> tuple[Any, ...]:
    """com.microsoft's SkipLayerNormalization (beta, bias) and SkipSimplifiedLayerNormalization (bias); the fourth output is the sum."""
    simple = call.node.op_type.startswith("SkipSimplified")
    beta, bias = (None, *rest, None)[:2] if simple else (*rest, None, None)[:2]
    total = x + skip if bias is None else x + skip + bias
    epsilon = call.number("epsilon", 1e-12)
    if simple:
        y = total * torch.rsqrt((total * total).mean(-1, keepdim=True) + epsilon) * gamma
    else:
        y = functional.layer_norm(total, total.shape[-1:], gamma, beta, epsilon)
    return y, None, None, total


def _instance_normalization(call: Call, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return functional.instance_norm(x, weight=scale, bias=bias, eps=call.number("epsilon", 1e-5))


def _group_normalization(call: Call, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Scale and bias a channel since opset 21, a group before."""
    groups = call.integer("num_groups", 1)
    if call.version < 21:
        each = x.shape[1] // groups
        scale, bias = scale.repeat_interleave(each), bias.repeat_interleave(each)
    return functional.group_norm(x, groups, scale, bias, call.number("epsilon", 1e-5))


def _batch_normalization(
    call: Call, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor
) -> Tensor:
    if call.integer("training_mode", 0):
        raise call.refuse("training_mode")
    return functional.batch_norm(x, mean, variance, scale, bias, eps=call.number("epsilon", 1e-5))


def _global_pool(function: Reduction) -> Callable[[Call, Tensor], Tensor]:
    return lambda call, x: function(x, list(range(2, x.dim())), True)


_largest: Reduction = lambda x, along, keep: torch.amax(x, along, keepdim=keep)  # noqa: E731  a row of the table
_smallest: Reduction = lambda x, along, keep: torch.amin(x, along, keepdim=keep)  # noqa: E731

_REDUCTIONS: dict[str, Reduction] = {
    "ReduceL1": lambda x, along, keep: _sum(x.abs(), along, keep),
    "ReduceL2": lambda x, along, keep: torch.linalg.vector_norm(x, dim=along, keepdim=keep),
    "ReduceLogSum": lambda x, along, keep: torch.log(_sum(x, along, keep)),
    "ReduceLogSumExp": _log_sum_exp,
    "ReduceMax": _largest,
    "ReduceMean": _mean,
    "ReduceMin": _smallest,
    "ReduceProd": _product,
    "ReduceSum": _sum,
    "ReduceSumSquare": lambda x, along, keep: _sum(x * x, along, keep),
}

OPERATORS: dict[str, Callable[..., Any]] = {
    **{name: _reduce(function) for name, function in _REDUCTIONS.items()},
    "ArgMax": _arg(torch.argmax),
    "ArgMin": _arg(torch.argmin),
    "BatchNormalization": _batch_normalization,
    "GlobalAveragePool": _global_pool(_mean),
    "GlobalMaxPool": _global_pool(_largest),
    "GroupNormalization": _group_normalization,
    "InstanceNormalization": _instance_normalization,
    "LayerNormalization": _layer_normalization,
    "LogSoftmax": _softmax(torch.log_softmax),
    "RMSNormalization": _rms_normalization,
    "SimplifiedLayerNormalization": _rms_normalization,  # ONNX Runtime's, in ONNX's own domain
    "Softmax": _softmax(torch.softmax),
    "com.microsoft::SimplifiedLayerNormalization": _rms_normalization,
    "com.microsoft::SkipLayerNormalization": _skip_normalization,
    "com.microsoft::SkipSimplifiedLayerNormalization": _skip_normalization,
}

HOST_INPUTS = {name: frozenset({1}) for name in _REDUCTIONS}
