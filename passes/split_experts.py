"""Write a product with stacked experts as one product for each, so that every expert is an ordinary linear.

*Given* a dense product, MatMul or Einsum of x [..., E, C, K] with a constant [E, K, N], some of whose experts are to be quantized.
*Result* Split of x, a MatMul for each expert, Concat; where all experts read the same rows, they read them without the Split.

*Given* a gathered product, MatMul of x [R, C, K] with W[ids] [R, K, N].
*Result* for each expert the rows whose id is its own (Equal, NonZero, Gather), a MatMul on them, and all rows put back in order (Concat,
Gather). A product then costs what its rows cost, where before each row brought its own copy of a whole matrix.

Each MatMul reads Gather(W, e) with a constant e, which is seen as one matrix of the stack: nothing is copied, and an expert that stays
float still reads it. The products keep the node's metadata, the result its name.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from qcompiler.graph.edits import Names, add_initializer, drop_unused, replace_value, set_info
from qcompiler.graph.stacked_product import AXIS, StackedProduct, stacked_product
from qcompiler.graph.weights import Weight, WeightUse


class SplitExperts(ir.passes.InPlacePass):
    """The pass.

    Args:
        weights: those to be quantized; their uses move to the products that take a node's place.
    """

    def __init__(self, weights: Collection[Weight]) -> None:
        super().__init__()
        self._weights = weights

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        uses: dict[ir.Node, dict[int, WeightUse]] = {}
        for weight in self._weights:
            for use in weight.uses if weight.expert is not None else ():
                assert weight.expert is not None
                uses.setdefault(use.node, {})[weight.expert.index] = use
        splitter = _Splitter(model.graph, Names(model)) if uses else None
        modified = False
        for node in list(model.graph) if splitter is not None else ():
            product = stacked_product(node) if node in uses else None
            if splitter is None or not isinstance(product, StackedProduct):
                continue  # a slice of the stack, one matrix already
            products = splitter.split(node, product)
            for index, use in uses[node].items():
                use.node = use.top_level = products[index]
            modified = True
        return ir.passes.PassResult(model, modified)


@dataclass(frozen=True)
class _Routing:
    """Where the rows of each expert are.

    Attributes:
        rows: int64 [rows of the expert], for each expert.
        back: int64 [R], for each row of x its place among the rows in order of experts.
    """

    rows: Sequence[ir.Value]
    back: ir.Value


class _Splitter:
    def __init__(self, graph: ir.Graph, names: Names) -> None:
        self._graph = graph
        self._names = names
        self._routings: dict[
            tuple[ir.Value, int], _Routing
        ] = {}  # by ids and E: gate, up and down read the same ids
        self._integers: dict[tuple[int, ...] | int, ir.Value] = {}
        self._at: ir.Node  # new nodes go in front of it

    def split(self, node: ir.Node, product: StackedProduct) -> list[ir.Node]:
        """Puts the new nodes in the node's place; returns the product of each expert."""
        self._at = node
        stack = self._stack_of(node, product)
        result = node.outputs[0]
        dtype = result.dtype or product.view.dtype
        parts, shape = self._parts(node, product)
        products = []
        for index in range(product.count):
            matrix = self._matrix(stack, index, product)
            output = self._emit("MatMul", [parts[index], matrix], f"{result.name}.{index}", dtype, shape)
            made = output.producer()
            assert made is not None
            made.metadata_props.update(node.metadata_props)
            products.append(made)
        joined = self._join([made.outputs[0] for made in products], product, result, dtype)
        set_info(joined, dtype, result.shape)
        weight = node.inputs[1]
        replace_value(result, joined)
        self._graph.remove(node, safe=True)
        if not joined.is_graph_output():
            result.name, joined.name = joined.name, result.name  # the value keeps its name
        assert weight is not None
        drop_unused(weight)  # what gathered the matrices of each row
        return products

    def _stack_of(self, node: ir.Node, product: StackedProduct) -> ir.Value:
        """The constant [E, K, N] or [E, N, K] that the node, or the Gather before it, reads."""
        value = node.inputs[1]
        while product.ids is not None and value is not None:
            maker = value.producer()
            assert maker is not None
            value = maker.inputs[0]
            if maker.op_type != "Transpose":
                break
        assert value is not None
        return value

    def _matrix(self, stack: ir.Value, index: int, product: StackedProduct) -> ir.Value:
        """[K, N]."""
        name = f"{stack.name}.{index}"
        dtype, (rows, columns) = product.view.dtype, product.view.final_shape[1:]
        gathered = self._emit("Gather", [stack, self._integer(index)], name, dtype, [rows, columns], axis=0)
        if not product.flipped:
            return gathered
        return self._emit("Transpose", [gathered], f"{name}.turned", dtype, [columns, rows], perm=[1, 0])

    def _parts(
        self, node: ir.Node, product: StackedProduct
    ) -> tuple[Sequence[ir.Value], list[int | None] | None]:
        """What each expert multiplies with its matrix, and the shape of what comes out."""
        x = product.rows
        sizes = None if x.shape is None else [d if isinstance(d, int) else None for d in x.shape]
        made = None if sizes is None else [*sizes[:-1], product.n]
        if product.shared:
            return [x] * product.count, made
        if product.ids is None:
            assert sizes is not None and made is not None
            sizes[AXIS] = made[AXIS] = 1
            outputs = [ir.Value(name=self._names.value(f"{x.name}.{i}")) for i in range(product.count)]
            for output in outputs:
                set_info(output, x.dtype or product.view.dtype, ir.Shape(sizes))
            attributes = {"axis": AXIS, "num_outputs": product.count}
            name = self._names.node(f"{node.name}.split")
            self._graph.insert_before(self._at, ir.node("Split", [x], attributes, outputs=outputs, name=name))
            return outputs, made
        assert sizes is not None and made is not None
        sizes[0] = made[0] = None
        routing = self._routing(product.ids, product.count)
        parts = [
            self._emit("Gather", [x, rows], f"{x.name}.{i}", x.dtype or product.view.dtype, sizes, axis=0)
            for i, rows in enumerate(routing.rows)
        ]
        return parts, made

    def _join(
        self, results: Sequence[ir.Value], product: StackedProduct, result: ir.Value, dtype: ir.DataType
    ) -> ir.Value:
        if product.ids is not None:
            together = self._emit("Concat", results, f"{result.name}.by_expert", dtype, None, axis=0)
            back = self._routing(product.ids, product.count).back
            return self._emit("Gather", [together, back], f"{result.name}.joined", dtype, None, axis=0)
        # Not known where an Einsum or a dropped Unsqueeze says that it is 2.
        rank = None if product.rows.shape is None else len(product.rows.shape)
        if rank is not None and rank > 2:
            return self._emit("Concat", results, f"{result.name}.joined", dtype, None, axis=AXIS)
        together = self._emit("Concat", results, f"{result.name}.by_expert", dtype, None, axis=0)
        shape = self._integer((product.count, -1, product.n))
        return self._emit("Reshape", [together, shape], f"{result.name}.joined", dtype, None)

    def _routing(self, ids: ir.Value, count: int) -> _Routing:
        if (ids, count) in self._routings:
            return self._routings[ids, count]
        kind, name = ids.dtype or ir.DataType.INT64, ids.name
        # A negative id counts from the end, as it did in the Gather.
        places = self._emit("Mod", [ids, self._integer(count, kind)], f"{name}.expert", kind, ids.shape)
        found = []
        for index in range(count):
            hit = self._emit(
                "Equal",
                [places, self._integer(index, kind)],
                f"{name}.is_{index}",
                ir.DataType.BOOL,
                ids.shape,
            )
            where = self._emit("NonZero", [hit], f"{name}.where_{index}", ir.DataType.INT64, [1, None])
            axes = [where, self._integer((0,))]
            found.append(self._emit("Squeeze", axes, f"{name}.rows_{index}", ir.DataType.INT64, [None]))
        order = self._emit("Concat", found, f"{name}.order", ir.DataType.INT64, ids.shape, axis=0)
        size = self._emit("Size", [order], f"{name}.size", ir.DataType.INT64, [])
        bounds = [self._integer(0), size, self._integer(1)]
        numbers = self._emit("Range", bounds, f"{name}.numbers", ir.DataType.INT64, ids.shape)
        back = self._emit(
            "ScatterElements", [order, order, numbers], f"{name}.back", ir.DataType.INT64, ids.shape, axis=0
        )
        self._routings[ids, count] = _Routing(found, back)
        return self._routings[ids, count]

    def _integer(self, value: int | tuple[int, ...], kind: ir.DataType = ir.DataType.INT64) -> ir.Value:
        """A constant; one of int64 is made once."""
        known = self._integers.get(value) if kind is ir.DataType.INT64 else None
        if known is not None:
            return known
        name = self._names.value("expert.number")
        constant = add_initializer(self._graph, ir.Tensor(np.array(value, kind.numpy()), name=name), name)
        if kind is ir.DataType.INT64:
            self._integers[value] = constant
        return constant

    def _emit(
        self,
        op_type: str,
        inputs: Sequence[ir.Value],
        name: str,
        dtype: ir.DataType,
        shape: ir.Shape | Sequence[int | None] | None,
        **attributes: int | list[int],
    ) -> ir.Value:
        output = ir.Value(name=self._names.value(name))
        set_info(output, dtype, shape if shape is None else ir.Shape(list(shape)))
        node = ir.node(op_type, inputs, attributes, outputs=[output], name=self._names.node(name))
        self._graph.insert_before(self._at, node)
        return output
