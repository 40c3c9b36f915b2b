"""The kernel and bias of a convolution, where they are constants: what they are, and multiplying them."""

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.graph.weights import constant_values

Array = npt.NDArray[Any]


def kernel_of(node: ir.Node) -> ir.TensorProtocol:
    """The stored kernel, [outputs, inputs of a group, ..]."""
    kernel = node.inputs[1]
    assert kernel is not None and kernel.const_value is not None
    return kernel.const_value


def kernel_shape(node: ir.Node) -> tuple[int, ...]:
    """Of the kernel, which is stored or has a known shape."""
    kernel = node.inputs[1]
    assert kernel is not None and kernel.shape is not None
    return tuple(kernel.shape.numpy())


def bias_of(node: ir.Node) -> ir.Value | None:
    """The bias, where there is one."""
    return node.inputs[2] if len(node.inputs) > 2 else None


def is_depthwise(node: ir.Node) -> bool:
    """Whether each output is computed from the input channel of its own."""
    shape = kernel_shape(node)
    return node.attributes.get_int("group", 1) == shape[0] and shape[1] == 1


def owns_kernel(node: ir.Node) -> bool:
    """Whether the kernel is stored and nothing else reads it."""
    kernel = node.inputs[1]
    return (
        kernel is not None
        and kernel.is_initializer()
        and not kernel.is_graph_input()
        and not kernel.is_graph_output()
        and kernel.const_value is not None
        and len(kernel.uses()) == 1
    )


def has_scalable_outputs(node: ir.Node) -> bool:
    """Whether the outputs can be multiplied: by way of a kernel of its own and a constant bias."""
    bias = bias_of(node)
    return owns_kernel(node) and (bias is None or constant_values(bias) is not None)


def multiplied(
    kernel: ir.TensorProtocol, factors: npt.NDArray[np.float64], axis: int, name: str | None
) -> ir.LazyTensor:
    """The kernel times ``factors`` [its size along ``axis``], computed when it is read; of its own type."""

    def compute() -> ir.Tensor[Any]:
        numbers = kernel.numpy()
        shape = [1] * numbers.ndim
        shape[axis] = -1
        return ir.Tensor((numbers * factors.reshape(shape)).astype(numbers.dtype), kernel.dtype)

    return ir.LazyTensor(compute, kernel.dtype, ir.Shape(kernel.shape.numpy()), name=name)


def multiply_kernel(node: ir.Node, factors: npt.NDArray[np.float64], axis: int = 0) -> None:
    """Puts ``multiplied`` in place of a kernel that the node owns."""
    kernel = node.inputs[1]
    assert kernel is not None
    kernel.const_value = multiplied(kernel_of(node), factors, axis, kernel.name)


def channel_constant(value: ir.Value | None, channels: int, rank: int) -> Array | None:
    """The numbers of a constant of floats that is one number, or one for each channel of [batch, channels, ..] with ``rank`` axes: [1]
    or [channels]; else None.
    """
    found = constant_values(value)
    if found is None or not np.issubdtype(found.dtype, np.floating) or found.ndim > rank:
        return None
    whole = (1,) * (rank - found.ndim) + found.shape
    return found.reshape(-1) if found.size == 1 or whole == (1, channels, *[1] * (rank - 2)) else None
