"""Write each Gemm whose weight will be quantized as MatMul and Add, the form that quantized kernels take.

*Given* Y = alpha A' B' + beta C, with B constant; A' and B' transposed by transA and transB.
*Result* Transpose(A) if transA, MatMul with B (behind a Transpose if transB), Mul by alpha and Add of beta C where they do something.
The MatMul keeps the Gemm's name, what comes last its output's; all keep its metadata.
"""

from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.graph.edits import Names, add_initializer, all_nodes, drop_unused, replace_value
from qcompiler.graph.weights import constant_view


class ExpandGemm(ir.passes.InPlacePass):
    """The pass.

    Args:
        nodes: the Gemm nodes to expand, a float one stays; None: every one with a constant B.
        on_replaced: told of each Gemm and the MatMul that took its place.
    """

    def __init__(
        self, nodes: Collection[ir.Node] | None, on_replaced: Callable[[ir.Node, ir.Node], None]
    ) -> None:
        super().__init__()
        self._nodes = nodes
        self._on_replaced = on_replaced

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        names = Names(model)
        modified = False
        nodes = self._nodes
        if nodes is None:
            every = (node for node in all_nodes(model) if node.op_type == "Gemm")
            nodes = [node for node in every if constant_view(node.inputs[1]) is not None]
        for node in nodes:
            if node.op_type == "Gemm" and node.graph is not None:
                self._on_replaced(node, _Expansion(node, model.graph, names).expand())
                modified = True
        return ir.passes.PassResult(model, modified)


class _Expansion:
    """One Gemm taken apart."""

    def __init__(self, gemm: ir.Node, root: ir.Graph, names: Names) -> None:
        self._gemm = gemm
        self._root = root
        self._names = names
        self._made: list[ir.Node] = []
        output, weight = gemm.outputs[0], gemm.inputs[1]
        self._dtype = output.dtype or (weight.dtype if weight is not None else None) or ir.DataType.FLOAT

    def expand(self) -> ir.Node:
        """Puts the new nodes in the Gemm's place; returns the MatMul."""
        gemm, graph = self._gemm, self._gemm.graph
        assert isinstance(graph, ir.Graph)
        left, right = gemm.inputs[0], gemm.inputs[1]
        output, shape = gemm.outputs[0], gemm.outputs[0].shape
        if gemm.attributes.get_int("transA", 0):
            left = self._emit("Transpose", [left], perm=[1, 0])
        if gemm.attributes.get_int("transB", 0):
            right = self._emit("Transpose", [right], perm=[1, 0])
        result = self._emit("MatMul", [left, right], shape)
        product = self._made[-1]
        product.name = gemm.name
        alpha = gemm.attributes.get_float("alpha", 1.0)
        if alpha != 1.0:
            result = self._emit("Mul", [result, self._scalar(alpha)], shape)
        addend = gemm.inputs[2] if len(gemm.inputs) > 2 else None
        beta = gemm.attributes.get_float("beta", 1.0)
        if addend is not None and beta != 0.0:
            result = self._emit("Add", [result, self._times(addend, beta)], shape)
        graph.insert_before(gemm, self._made)
        replace_value(output, result)
        if not result.is_graph_output():
            output.name, result.name = result.name, output.name  # the value keeps its name
        graph.remove(gemm, safe=True)
        if addend is not None and addend.is_initializer():
            drop_unused(addend)  # beta was taken into a copy, or is 0
        return product

    def _emit(
        self, op: str, inputs: list[ir.Value | None], shape: ir.Shape | None = None, **attributes: list[int]
    ) -> ir.Value:
        name = self._names.value(f"{self._gemm.outputs[0].name}.{op.lower()}")
        output = ir.Value(name=name, type=ir.TensorType(self._dtype), shape=shape)
        node = ir.node(
            op,
            inputs,
            attributes=attributes,
            outputs=[output],
            name=self._names.node(f"{self._gemm.name}.{op.lower()}"),
            doc_string=self._gemm.doc_string,
            metadata_props=dict(self._gemm.metadata_props),
        )
        self._made.append(node)
        return output

    def _times(self, addend: ir.Value, beta: float) -> ir.Value:
        """The addend times beta, folded where it is constant."""
        if beta == 1.0:
            return addend
        view = constant_view(addend)
        if view is None or view.transposed or view.source.const_value is None:
            return self._emit("Mul", [addend, self._scalar(beta)], addend.shape)
        values = view.source.const_value.numpy().reshape(view.shape).astype(np.float32) * beta
        return self._constant(values, f"{addend.name}.beta")

    def _scalar(self, number: float) -> ir.Value:
        return self._constant(np.array(number), "gemm.factor")

    def _constant(self, values: npt.NDArray[Any], base: str) -> ir.Value:
        name = self._names.value(base)
        tensor = ir.Tensor(values.astype(self._dtype.numpy()), dtype=self._dtype, name=name)
        return add_initializer(self._root, tensor, name)
