"""The few edits of a graph that several passes share and onnx_ir does not have.

For the rest use onnx_ir: ``graph.insert_before(node, new)``, ``insert_after``, ``remove(node, safe=True)``.
"""

from collections.abc import Collection, Iterator, Sequence

import onnx_ir as ir
from onnx_ir.traversal import RecursiveGraphIterator


def all_graphs(model: ir.Model) -> Iterator[ir.Graph]:
    """Every graph: main, functions, and the subgraphs of both (``Model.graphs`` skips functions)."""
    for top in (model.graph, *(function.graph for function in model.functions.values())):
        yield top
        yield from top.subgraphs()


def all_nodes(model: ir.Model) -> Iterator[ir.Node]:
    """Every node of ``all_graphs``."""
    for top in (model.graph, *(function.graph for function in model.functions.values())):
        yield from RecursiveGraphIterator(top)


class Names:
    """Free names of values and nodes in a model; make it once a pass, for it reads the whole model."""

    def __init__(self, model: ir.Model) -> None:
        self._values: set[str] = set()
        self._nodes: set[str] = set()
        for graph in all_graphs(model):
            self._values.update(value.name for value in graph.inputs if value.name)
            self._values.update(graph.initializers)
            for node in graph:
                self._values.update(value.name for value in node.outputs if value.name)
                if node.name:
                    self._nodes.add(node.name)

    def value(self, base: str) -> str:
        """``base``, or ``base_2``, ``base_3`` ... when it is taken; taken from now on."""
        return _take(base, self._values)

    def node(self, base: str) -> str:
        """The same for the name of a node."""
        return _take(base, self._nodes)


def _take(base: str, taken: set[str]) -> str:
    name, number = base, 2
    while name in taken:
        name, number = f"{base}_{number}", number + 1
    taken.add(name)
    return name


def constant(tensor: ir.TensorProtocol, name: str) -> ir.Value:
    """A value that holds ``tensor``; ``register`` makes it an initializer of a graph."""
    return ir.Value(
        name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape.numpy()), const_value=tensor
    )


def add_initializer(graph: ir.Graph, tensor: ir.TensorProtocol, name: str) -> ir.Value:
    """Makes ``tensor`` an initializer of ``graph``; ``name`` must be free (see ``Names``)."""
    value = constant(tensor, name)
    graph.register_initializer(value)
    return value


def set_info(value: ir.Value, dtype: ir.DataType, shape: ir.Shape | None) -> None:
    """Declares a value's type and shape; other importers stop at nodes of ours without them."""
    value.type = ir.TensorType(dtype)
    value.shape = None if shape is None else ir.Shape(list(shape))


def input_type(node: ir.Node) -> ir.DataType:
    """Of a product's activations; float32 where inference finds none."""
    x = node.inputs[0]
    return (None if x is None else x.dtype) or node.outputs[0].dtype or ir.DataType.FLOAT


def insert_after_value(value: ir.Value, graph: ir.Graph, nodes: Sequence[ir.Node]) -> None:
    """Puts ``nodes`` right behind the node that makes ``value``, or at the start of ``graph``."""
    producer = value.producer()
    if producer is not None and producer.graph is graph:
        graph.insert_after(producer, nodes)
    elif len(graph) > 0:
        graph.insert_before(graph[0], nodes)
    else:
        graph.extend(nodes)


def replace_value(old: ir.Value, new: ir.Value, keep: Collection[ir.Node] = ()) -> None:
    """Has readers of ``old`` read ``new``: nodes, also in subgraphs, and graph outputs, whose names stay.

    Args:
        old: not a graph input; a graph output's name passes to its replacement, and ``old`` gets another one.
        new: stands in for a graph output through an Identity if it is an input, initializer or output itself.
        keep: readers that go on reading ``old``, such as the node that computes ``new`` from it.
    """
    if old.is_graph_output():
        _replace_output(old, new)
    for node, index in tuple(old.uses()):
        if node not in keep:
            node.replace_input_with(index, new)


def _replace_output(old: ir.Value, new: ir.Value) -> None:
    graph = old.graph
    assert graph is not None and not old.is_graph_input()
    if new.producer() is None or new.graph is not graph or new.is_graph_output():
        identity = ir.node("Identity", [new], name=f"{old.name}_identity")
        insert_after_value(new, graph, [identity])
        new = identity.outputs[0]
        new.type, new.shape = old.type, old.shape
    for index, output in enumerate(graph.outputs):
        if output is old:
            graph.outputs[index] = new
    name, old.name = old.name, f"{old.name}_replaced"
    new.name = name


def stand_in(result: ir.Value, made: ir.Value) -> None:
    """Has readers of ``result`` read ``made`` under its name; what made ``result`` goes unless something else needs it."""
    made.type, made.shape = made.type or result.type, made.shape or result.shape
    is_output, kept = result.is_graph_output(), result.name
    replace_value(result, made)
    if not is_output:
        result.name, made.name = made.name, kept
    drop_unused(result)


def drop_unused(value: ir.Value) -> None:
    """Removes ``value`` when nothing reads it: its initializer, or its node and what only that node read."""
    if value.uses() or value.is_graph_output() or value.is_graph_input():
        return
    node, graph = value.producer(), value.graph
    if node is None:
        if value.is_initializer() and graph is not None and value.name is not None:
            del graph.initializers[value.name]
        return
    if node.graph is None or any(output.uses() or output.is_graph_output() for output in node.outputs):
        return
    sources = [source for source in node.inputs if source is not None]
    node.graph.remove(node, safe=True)
    for source in sources:
        drop_unused(source)
