"""Matrix products, convolutions, pools, and weights that are stored as codes."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from qcompiler.calibration.torch_operators.call import Call


def _matmul(call: Call, a: Tensor, b: Tensor) -> Tensor:
    return torch.matmul(a, b)


def _fused_matmul(call: Call, a: Tensor, b: Tensor) -> Tensor:
    if call.integer("transBatchA", 0) or call.integer("transBatchB", 0):
        raise call.refuse("transBatchA or transBatchB")
    a = a.transpose(-1, -2) if call.integer("transA", 0) else a
    b = b.transpose(-1, -2) if call.integer("transB", 0) else b
    return call.number("alpha", 1.0) * torch.matmul(a, b)


def _gemm(call: Call, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    """alpha * A' * B' + beta * C."""
    product = (a.T if call.integer("transA", 0) else a) @ (b.T if call.integer("transB", 0) else b)
    alpha, beta = call.number("alpha", 1.0), call.number("beta", 1.0)
    product = product if alpha == 1 else alpha * product
    if c is None:
        return product
    return product + (c if beta == 1 else beta * c)


def _einsum(call: Call, *inputs: Tensor) -> Tensor:
    return torch.einsum(call.text("equation", "").replace(" ", ""), *inputs)


def _conv(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """1 to 3 axes of space; what is padded is 0."""
    window = _Window.of(call, x, call.integers("kernel_shape") or list(weight.shape[2:]))
    convolve = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}.get(x.dim() - 2)
    if convolve is None:
        raise call.refuse(f"a convolution over {x.dim() - 2} axes")
    groups = call.integer("group", 1)
    if window.before == window.after:
        return convolve(x, weight, bias, window.strides, window.before, window.dilations, groups)
    return convolve(window.padded(x, 0.0), weight, bias, window.strides, 0, window.dilations, groups)


def _max_pool(call: Call, x: Tensor) -> Tensor:
    if len(call.node.outputs) > 1:
        raise call.refuse("the second output, Indices,")
    window = _Window.of(call, x, call.integers("kernel_shape") or [])
    pool = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}.get(x.dim() - 2)
    if pool is None:
        raise call.refuse(f"a pool over {x.dim() - 2} axes")
    padded = window.padded(x, -math.inf, ceil=bool(call.integer("ceil_mode", 0)))
    result: Tensor = pool(padded, window.kernel, window.strides, 0, window.dilations)
    return result


def _average_pool(call: Call, x: Tensor) -> Tensor:
    """Sums over counts: padding counts where count_include_pad says so, what ceil_mode adds behind it never does."""
    window = _Window.of(call, x, call.integers("kernel_shape") or [])
    if any(step != 1 for step in window.dilations):
        raise call.refuse("a dilated AveragePool")
    pool: Callable[..., Tensor] | None
    pool = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}.get(x.dim() - 2)
    if pool is None:
        raise call.refuse(f"a pool over {x.dim() - 2} axes")
    ceil = bool(call.integer("ceil_mode", 0))
    ones = x.new_ones((1, 1, *x.shape[2:]))
    ones = window.padded(ones, float(call.integer("count_include_pad", 0)))
    extra = window.extra(x.shape[2:]) if ceil else [0] * len(window.kernel)
    ones = functional.pad(ones, _flat([0] * len(extra), extra))
    summed = pool(window.padded(x, 0.0, ceil=ceil), window.kernel, window.strides)
    return summed / pool(ones, window.kernel, window.strides)


class _Window:
    """How a kernel walks over the axes of space: sizes, strides, dilations and the padding before and after."""

    def __init__(
        self, kernel: list[int], strides: list[int], dilations: list[int], before: list[int], after: list[int]
    ) -> None:
        self.kernel, self.strides, self.dilations = kernel, strides, dilations
        self.before, self.after = before, after

    @classmethod
    def of(cls, call: Call, x: Tensor, kernel: list[int]) -> "_Window":
        axes = len(kernel)
        strides = call.integers("strides") or [1] * axes
        dilations = call.integers("dilations") or [1] * axes
        auto = call.text("auto_pad", "NOTSET")
        if auto in ("NOTSET", ""):
            pads = call.integers("pads") or [0] * (2 * axes)
            return cls(kernel, strides, dilations, pads[:axes], pads[axes:])
        if auto == "VALID":
            return cls(kernel, strides, dilations, [0] * axes, [0] * axes)
        before, after = [], []
        for size, k, stride, dilation in zip(x.shape[2:], kernel, strides, dilations, strict=True):
            total = max((-(-size // stride) - 1) * stride + dilation * (k - 1) + 1 - size, 0)
            less, more = total // 2, total - total // 2
            before.append(less if auto == "SAME_UPPER" else more)
            after.append(more if auto == "SAME_UPPER" else less)
        return cls(kernel, strides, dilations, before, after)

    def extra(self, sizes: Sequence[int]) -> list[int]:
        """What ceil_mode adds behind the padding: a last window that begins inside the input or the padding before it."""
        added = []
        for size, k, stride, dilation, before, after in zip(
            sizes, self.kernel, self.strides, self.dilations, self.before, self.after, strict=True
        ):
            free = size + before + after - (dilation * (k - 1) + 1)
            steps = -(-free // stride)
            if steps * stride >= size + before:
                steps -= 1
            added.append(max(steps * stride - free, 0))
        return added

    def padded(self, x: Tensor, value: float, ceil: bool = False) -> Tensor:
        """x with ``value`` around it."""
        extra = self.extra(x.shape[2:]) if ceil else [0] * len(self.kernel)
        after = [a + b for a, b in zip(self.after, extra, strict=True)]
        if not any(self.before) and not any(after):
            return x
        return functional.pad(x, _flat(self.before, after), value=value)


def _flat(before: Sequence[int], after: Sequence[int]) -> list[int]:
    """As torch takes padding: the last axis first."""
    return [size for pair in reversed(list(zip(before, after, strict=True))) for size in pair]


def _dequantize(call: Call, codes: Tensor, scale: Tensor, zero_point: Tensor | None = None) -> Tensor:
    """(codes - zero_point) * scale for a tensor, along an axis, or (opset 21) in blocks along it."""
    axis, block = call.integer("axis", 1), call.integer("block_size", 0)
    side = [scale] if zero_point is None else [scale, zero_point]
    if block:
        side = [s.repeat_interleave(block, dim=axis).narrow(axis, 0, codes.shape[axis]) for s in side]
    elif scale.dim() == 1 and codes.dim() > 0:
        shape = [1] * codes.dim()
        shape[axis] = -1
        side = [s.reshape(shape) for s in side]
    values = codes.to(scale.dtype)
    return (values if zero_point is None else values - side[1].to(scale.dtype)) * side[0]


OPERATORS: dict[str, Callable[..., Any]] = {
    "AveragePool": _average_pool,
    "Conv": _conv,
    "DequantizeLinear": _dequantize,
    "Einsum": _einsum,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "MaxPool": _max_pool,
    "com.microsoft::FusedMatMul": _fused_matmul,
}
