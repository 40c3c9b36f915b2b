"""Put the nodes that yield a quantized weight in the place of the float one."""

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir

from qcompiler.graph.edits import Names, add_initializer, drop_unused
from qcompiler.graph.quantized import ALGORITHM_KEY, REASON_KEY, SQNR_KEY, register_constants
from qcompiler.graph.stored_quantized import Layout
from qcompiler.graph.weights import Role
from qcompiler.passes.layer_result import LayerResult
from qcompiler.recipe.planned_weight import PlannedWeight


class WeightPlacement:
    """Edits one graph.

    Args:
        names: gives every new value and node its own.
        positions: of the graph's original nodes: new ones go in front of the first that reads the weight.
    """

    def __init__(self, graph: ir.Graph, names: Names, positions: Mapping[ir.Node, int]) -> None:
        self._graph = graph
        self._names = names
        self._positions = positions

    def put(
        self,
        planned: PlannedWeight,
        make: Callable[[Layout, str], list[ir.Node]],
        result: LayerResult | None = None,
        word: str = "quantized",
    ) -> ir.Node:
        """Make the weight's nodes, given its layout and a name, and have every use read what the last yields.

        Args:
            result: what became of the weight, for those who look at the node; None where that is not known yet.
        """
        weight = planned.weight
        gathered = any(use.role is Role.EMBEDDING for use in weight.uses)
        by_rows = gathered or weight.kernel is not None
        nodes = make("nk" if by_rows else "kn", self._names.value(f"{weight.name}.{word}"))
        node = nodes[-1]
        node.metadata_props[ALGORITHM_KEY] = planned.algorithm
        node.metadata_props[REASON_KEY] = planned.settings.decided_by
        if result is not None:
            node.metadata_props[SQNR_KEY] = f"{result.sqnr_db:.1f}"
        first = min((use.top_level for use in weight.uses), key=self._positions.__getitem__)
        self._graph.insert_before(first, nodes)
        for each in nodes:
            register_constants(self._graph, each)
        transposed: ir.Value | None = None
        kernel = None if weight.kernel is None else self._kernel(node, weight.kernel)
        for use in weight.uses:
            old = use.node.inputs[use.input_index]
            operand = kernel or node.outputs[0]
            if gathered and use.role is not Role.EMBEDDING:
                transposed = transposed or self._transpose(node)
                operand = transposed
            use.node.replace_input_with(use.input_index, operand)
            if old is not None:
                drop_unused(old)
        return node

    def _kernel(self, dequantize: ir.Node, shape: tuple[int, ...]) -> ir.Value:
        """The weight in the shape of a convolution's kernel."""
        source = dequantize.outputs[0]
        name = self._names.value(f"{source.name}.kernel_shape")
        sizes = add_initializer(self._graph, ir.Tensor(np.array(shape, np.int64), name=name), name)
        output = ir.Value(
            name=self._names.value(f"{source.name}.kernel"), type=source.type, shape=ir.Shape(shape)
        )
        node = ir.node(
            "Reshape", [source, sizes], outputs=[output], name=self._names.node(f"{source.name}.reshape")
        )
        self._graph.insert_after(dequantize, node)
        return output

    def _transpose(self, dequantize: ir.Node) -> ir.Value:
        source = dequantize.outputs[0]
        output = ir.Value(name=self._names.value(f"{source.name}.transposed"), type=source.type)
        output.shape = None if source.shape is None else ir.Shape(list(source.shape)[::-1])
        node = ir.node(
            "Transpose",
            [source],
            attributes={"perm": [1, 0]},
            outputs=[output],
            name=self._names.node(f"{source.name}.transpose"),
        )
        self._graph.insert_after(dequantize, node)
        return output
