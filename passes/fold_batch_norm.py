"""Fold BatchNormalization into the convolution before it.

*Given* Conv -> BatchNormalization with constant statistics, and nothing else reads the convolution.
*Result* one Conv with the kernel times gamma / sqrt(variance + epsilon) for each output, and a bias; the result keeps its name. Kernels are
multiplied when they are read. What the BatchNormalization says of its output is kept beside it (``norm_statistics``).

    y = gamma (W x + b - mean) / sqrt(variance + epsilon) + beta
"""

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.traversal import RecursiveGraphIterator

from qcompiler.graph.convolution import bias_of, multiplied
from qcompiler.graph.edits import Names, add_initializer, drop_unused, stand_in
from qcompiler.graph.norm_statistics import keep_statistics, norm_statistics
from qcompiler.graph.weights import constant_values

EPSILON = 1e-5  # where the node does not say


class FoldBatchNorm(ir.passes.InPlacePass):
    """The pass."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        names: Names | None = None
        for node in list(RecursiveGraphIterator(model.graph)):
            if node.op_type != "BatchNormalization" or node.domain != "":
                continue
            convolution = _convolution_before(node)
            if convolution is not None:
                names = names or Names(model)
                _fold(node, convolution, model.graph, names)
        return ir.passes.PassResult(model, modified=names is not None)


def _convolution_before(norm: ir.Node) -> ir.Node | None:
    """The Conv that a BatchNormalization alone reads, where all of both is constant."""
    made = norm.inputs[0]
    node = None if made is None else made.producer()
    if (
        made is None
        or node is None
        or node.op_type != "Conv"
        or node.domain != ""
        or node.graph is not norm.graph
    ):
        return None
    if len(made.uses()) != 1 or made.is_graph_output():
        return None
    if norm.attributes.get_int("training_mode", 0) or any(output.uses() for output in norm.outputs[1:]):
        return None
    kernel = node.inputs[1]
    if kernel is None or not kernel.is_initializer() or kernel.is_graph_input() or kernel.const_value is None:
        return None
    constants = [constant_values(value) for value in norm.inputs[1:5]]
    if bias_of(node) is not None:
        constants.append(constant_values(bias_of(node)))
    return node if all(value is not None for value in constants) else None


def _fold(norm: ir.Node, convolution: ir.Node, graph: ir.Graph, names: Names) -> None:
    gamma, beta, mean, variance = (_wide(value) for value in norm.inputs[1:5])
    factor = gamma / np.sqrt(variance + norm.attributes.get_float("epsilon", EPSILON))
    old = bias_of(convolution)
    shift = beta + ((0.0 if old is None else _wide(old)) - mean) * factor
    kernel = convolution.inputs[1]
    assert kernel is not None and kernel.const_value is not None
    dtype = kernel.const_value.dtype
    name = names.value(f"{kernel.name}.folded")
    scaled = multiplied(kernel.const_value, factor, 0, name)
    convolution.replace_input_with(1, add_initializer(graph, scaled, name))
    name = names.value(f"{name}.bias")
    bias = add_initializer(graph, ir.Tensor(shift.astype(dtype.numpy()), dtype=dtype, name=name), name)
    convolution.resize_inputs(3)
    convolution.replace_input_with(2, bias)
    statistics = norm_statistics(norm.outputs[0])
    stand_in(norm.outputs[0], convolution.outputs[0])
    keep_statistics(convolution.outputs[0], statistics)
    for value in (kernel, old):
        if value is not None:
            drop_unused(value)


def _wide(value: ir.Value | None) -> npt.NDArray[np.float64]:
    found = constant_values(value)
    assert found is not None
    return found.astype(np.float64)
