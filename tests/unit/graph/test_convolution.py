"""Kernels and biases of convolutions: which are their own, multiplied ones, and constants of one number a channel."""

import numpy as np
import onnx_ir as ir
import pytest

from qcompiler.graph.convolution import (
    channel_constant,
    has_scalable_outputs,
    is_depthwise,
    multiplied,
    owns_kernel,
)
from tests.small_models import make_model, weight

SIGNATURE = "g (float[B,4,8,8] x) => (float[B,N,H,W] y)"


def _convolution(body: str, signature: str = SIGNATURE) -> ir.Node:
    constants = {"k": weight(6, 4, 3, 3), "d": weight(4, 1, 3, 3), "b": weight(6)}
    graph = ir.from_proto(make_model(f"{signature} {{ {body} }}", constants)).graph
    return next(node for node in graph if node.op_type == "Conv")


def test_depthwise_is_a_group_for_each_channel() -> None:
    assert is_depthwise(_convolution("y = Conv<group=4>(x, d)"))
    assert not is_depthwise(_convolution("y = Conv(x, k)"))


def test_a_kernel_that_another_reads_is_not_its_own() -> None:
    assert owns_kernel(_convolution("y = Conv(x, k, b)"))
    assert not owns_kernel(_convolution("c = Conv(x, k) e = Conv(x, k) y = Add(c, e)"))


def test_a_computed_bias_cannot_be_multiplied() -> None:
    assert has_scalable_outputs(_convolution("y = Conv(x, k, b)"))
    assert not has_scalable_outputs(_convolution("c = Identity(b) y = Conv(x, k, c)"))


@pytest.mark.parametrize("axis", [0, 1])
def test_a_multiplied_kernel_keeps_its_type(axis: int) -> None:
    kernel = ir.Tensor(weight(6, 4, 3, 3).astype(np.float16))
    factors = np.arange(1.0, (6, 4)[axis] + 1)
    shape = (-1, 1, 1, 1) if axis == 0 else (1, -1, 1, 1)
    made = multiplied(kernel, factors, axis, "m").numpy()
    assert made.dtype == np.float16
    np.testing.assert_array_equal(made, (kernel.numpy() * factors.reshape(shape)).astype(np.float16))


@pytest.mark.parametrize(
    ("numbers", "found"),
    [
        (np.float32([2]), [2]),
        (np.float32([[[1]], [[2]], [[3]], [[4]]]), [1, 2, 3, 4]),
        (np.float32([[[[1]], [[2]], [[3]], [[4]]]]), [1, 2, 3, 4]),
        (np.float32([1, 2, 3, 4]), None),
        (np.int64([2]), None),
        (np.ones((1, 1, 1, 1, 1), np.float32), None),
    ],
    ids=["one number", "[C,1,1]", "[1,C,1,1]", "one for each column", "integers", "more axes"],
)
def test_constants_of_channels(numbers: np.ndarray, found: list[float] | None) -> None:
    value = ir.Value(name="c", const_value=ir.Tensor(numbers))
    made = channel_constant(value, 4, 4)
    assert found is None if made is None else made.tolist() == found
