"""Write each Gemm whose weight will be quantized as MatMul and Add, the form that quantized kernels take.

*Given* Y = alpha A' B' + beta C, with B constant; A' and B' transposed by transA and transB.
*Result* Transpose(A) if transA, MatMul with B (behind a Transpose if transB), Mul by alpha and Add of beta C where they do something.
"""

from collections.abc import Callable, Collection

import numpy as np
import onnx_ir as ir

from qcompiler.graph.edits import Names, add_initializer, replace_value
from qcompiler.graph.weights import constant_view


class ExpandGemm(ir.passes.InPlacePass):
    """The pass.

    Args:
        nodes: the Gemm nodes to expand; a float one stays.
        on_replaced: told of each Gemm and the MatMul that took its place.
    """

    def __init__(self, nodes: Collection[ir.Node], on_replaced: Callable[[ir.Node, ir.Node], None]) -> None:
        super().__init__()
        self._nodes = nodes
        self._on_replaced = on_replaced

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        names = Names(model)
        modified = False
        for node in self._nodes:
            if node.op_type == "Gemm" and node.graph is not None:
                self._on_replaced(node, _expand(node, model.graph, names))
                modified = True
        return ir.passes.PassResult(model, modified)


def _expand(node: ir.Node, root: ir.Graph, names: Names) -> ir.Node:
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    left, right = node.inputs[0], node.inputs[1]
    addend = node.inputs[2] if len(node.inputs) > 2 else None
    made: list[ir.Node] = []
    dtype = node.outputs[0].dtype or (right.dtype if right is not None else None) or ir.DataType.FLOAT

    def emit(
        op: str, inputs: list[ir.Value | None], shape: ir.Shape | None = None, **attributes: list[int]
    ) -> ir.Value:
        output = ir.Value(
            name=names.value(f"{node.outputs[0].name}.{op.lower()}"), type=ir.TensorType(dtype), shape=shape
        )
        made.append(
            ir.node(
                op,
                inputs,
                attributes=attributes,
                outputs=[output],
                name=names.node(f"{node.name}.{op.lower()}"),
            )
        )
        return output

    if node.attributes.get_int("transA", 0):
        left = emit("Transpose", [left], perm=[1, 0])
    if node.attributes.get_int("transB", 0):
        right = emit("Transpose", [right], perm=[1, 0])
    result = emit("MatMul", [left, right], node.outputs[0].shape)
    product = made[-1]
    alpha, beta = node.attributes.get_float("alpha", 1.0), node.attributes.get_float("beta", 1.0)
    if alpha != 1.0:
        result = emit("Mul", [result, _scalar(alpha, dtype, root, names)], node.outputs[0].shape)
    if addend is not None and beta != 0.0:
        addend = _times(addend, beta, dtype, root, names, emit)
        result = emit("Add", [result, addend], node.outputs[0].shape)
    graph.insert_before(node, made)
    replace_value(node.outputs[0], result)
    graph.remove(node, safe=True)
    return product


def _times(
    addend: ir.Value, beta: float, dtype: ir.DataType, root: ir.Graph, names: Names, emit: object
) -> ir.Value:
    """The addend times beta, folded where it is constant."""
    if beta == 1.0:
        return addend
    view = constant_view(addend)
    if view is None or view.transposed or view.source.const_value is None:
        assert callable(emit)
        scaled: ir.Value = emit("Mul", [addend, _scalar(beta, dtype, root, names)], addend.shape)
        return scaled
    values = view.source.const_value.numpy().reshape(view.shape).astype(np.float32) * beta
    name = names.value(f"{addend.name}.beta")
    return add_initializer(root, ir.Tensor(values.astype(dtype.numpy()), dtype=dtype, name=name), name)


def _scalar(number: float, dtype: ir.DataType, root: ir.Graph, names: Names) -> ir.Value:
    name = names.value("gemm.factor")
    return add_initializer(root, ir.Tensor(np.array(number, dtype.numpy()), dtype=dtype, name=name), name)
