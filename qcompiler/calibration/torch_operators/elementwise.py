"""Operators that work element by element, with ONNX's (NumPy's) broadcasting."""

import math
from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from qcompiler.calibration.torch_operators.call import Call


def _unary(function: Callable[[Tensor], Tensor]) -> Callable[[Call, Tensor], Tensor]:
    return lambda call, x: function(x)


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Call, Tensor, Tensor], Tensor]:
    return lambda call, a, b: function(a, b)


def _fold(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda call, *inputs: reduce(function, inputs)


def _divide(call: Call, a: Tensor, b: Tensor) -> Tensor:
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _modulo(call: Call, a: Tensor, b: Tensor) -> Tensor:
    return torch.fmod(a, b) if call.integer("fmod", 0) else torch.remainder(a, b)


def _power(call: Call, base: Tensor, exponent: Tensor) -> Tensor:
    """The type is the base's, whatever the exponent's."""
    if exponent.numel() == 1 and exponent.dim() <= base.dim() and not exponent.requires_grad:
        value = exponent.item()
        # With its gradient 0.4 to 0.8 of the time of torch.pow (512 x 576 numbers, one busy core of an x86-64 server).
        return base * base if value == 2 else torch.pow(base, value).to(base.dtype)
    return torch.pow(base, exponent).to(base.dtype)


def _clip(call: Call, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    """Attributes before opset 11, inputs since; the upper bound wins where they cross."""
    if call.has("min"):
        x = torch.clamp(x, min=call.number("min", -math.inf))
    if call.has("max"):
        x = torch.clamp(x, max=call.number("max", math.inf))
    if low is not None:
        x = torch.maximum(x, low)
    return x if high is None else torch.minimum(x, high)


def _gelu(call: Call, x: Tensor) -> Tensor:
    return functional.gelu(x, approximate=call.text("approximate", "none"))


def _fast_gelu(call: Call, x: Tensor, bias: Tensor | None = None) -> Tensor:
    return functional.gelu(x if bias is None else x + bias, approximate="tanh")


def _quick_gelu(call: Call, x: Tensor) -> Tensor:
    return x * torch.sigmoid(call.number("alpha", 1.702) * x)


def _leaky_relu(call: Call, x: Tensor) -> Tensor:
    return functional.leaky_relu(x, call.number("alpha", 0.01))


def _elu(call: Call, x: Tensor) -> Tensor:
    alpha = call.number("alpha", 1.0)
    return torch.where(x > 0, x, alpha * torch.expm1(torch.clamp(x, max=0.0)))


def _selu(call: Call, x: Tensor) -> Tensor:
    alpha, gamma = (
        call.number("alpha", 1.67326319217681884765625),
        call.number("gamma", 1.05070102214813232421875),
    )
    return gamma * torch.where(x > 0, x, alpha * torch.expm1(torch.clamp(x, max=0.0)))


def _hard_sigmoid(call: Call, x: Tensor) -> Tensor:
    return torch.clamp(call.number("alpha", 0.2) * x + call.number("beta", 0.5), 0, 1)


def _prelu(call: Call, x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, x * slope, x)


def _cast(call: Call, x: Tensor) -> Tensor:
    return _converted(x, call.type_of(call.integer("to", 0)))


def _cast_like(call: Call, x: Tensor, like: Tensor) -> Tensor:
    return _converted(x, like.dtype)


def _converted(x: Tensor, to: torch.dtype) -> Tensor:
    return x if x.dtype == to else x.to(to)


def _mean(call: Call, *inputs: Tensor) -> Tensor:
    return reduce(torch.add, inputs) / len(inputs)


def _where(call: Call, condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(condition, a, b)


def _identity(call: Call, x: Tensor) -> Tensor:
    return x


def _dropout(
    call: Call, x: Tensor, ratio: Tensor | None = None, training: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Outside training all of x, and a mask that says so (of x's type before opset 10)."""
    if training is not None and bool(training):
        raise call.refuse("training_mode")
    return x, torch.ones_like(x, dtype=torch.bool if call.version >= 10 else x.dtype)


OPERATORS: dict[str, Callable[..., Any]] = {
    "Abs": _unary(torch.abs),
    "Acos": _unary(torch.acos),
    "Asin": _unary(torch.asin),
    "Atan": _unary(torch.atan),
    "Ceil": _unary(torch.ceil),
    "Cos": _unary(torch.cos),
    "Erf": _unary(torch.erf),
    "Exp": _unary(torch.exp),
    "Floor": _unary(torch.floor),
    "HardSwish": _unary(functional.hardswish),
    "IsInf": _unary(torch.isinf),
    "IsNaN": _unary(torch.isnan),
    "Log": _unary(torch.log),
    "Neg": _unary(torch.neg),
    "Not": _unary(torch.logical_not),
    "Reciprocal": _unary(torch.reciprocal),
    "Relu": _unary(torch.relu),
    "Round": _unary(torch.round),
    "Sigmoid": _unary(torch.sigmoid),
    "Sign": _unary(torch.sign),
    "Sin": _unary(torch.sin),
    "Softplus": _unary(functional.softplus),
    "Softsign": _unary(functional.softsign),
    "Sqrt": _unary(torch.sqrt),
    "Tan": _unary(torch.tan),
    "Tanh": _unary(torch.tanh),
    "Add": _binary(torch.add),
    "And": _binary(torch.logical_and),
    "Equal": _binary(torch.eq),
    "Greater": _binary(torch.gt),
    "GreaterOrEqual": _binary(torch.ge),
    "Less": _binary(torch.lt),
    "LessOrEqual": _binary(torch.le),
    "Mul": _binary(torch.mul),
    "Or": _binary(torch.logical_or),
    "Sub": _binary(torch.sub),
    "Xor": _binary(torch.logical_xor),
    "Div": _divide,
    "Mod": _modulo,
    "Pow": _power,
    "Max": _fold(torch.maximum),
    "Min": _fold(torch.minimum),
    "Sum": _fold(torch.add),
    "Mean": _mean,
    "Clip": _clip,
    "Elu": _elu,
    "Gelu": _gelu,
    "HardSigmoid": _hard_sigmoid,
    "LeakyRelu": _leaky_relu,
    "PRelu": _prelu,
    "Selu": _selu,
    "Where": _where,
    "Cast": _cast,
    "CastLike": _cast_like,
    "Dropout": _dropout,
    "Identity": _identity,
    "com.microsoft::BiasGelu": lambda call, x, bias: functional.gelu(x + bias),
    "com.microsoft::FastGelu": _fast_gelu,
    "com.microsoft::Gelu": _unary(functional.gelu),
    "com.microsoft::QuickGelu": _quick_gelu,
}
