"""What a node reads, its control-flow bodies included, and what depends on it."""

from collections.abc import Iterable, Iterator

import onnx_ir as ir


def node_reads(node: ir.Node) -> list[ir.Value]:
    """Every value of its own graph or an outer one that a node reads, also from inside its control-flow bodies; each once."""
    return list(dict.fromkeys((*(value for value in node.inputs if value is not None), *_captured(node))))


def moved_by(nodes: Iterable[ir.Node], values: Iterable[ir.Value]) -> set[ir.Value]:
    """The values and all that changes with them in ``nodes`` (in graph order): through data, not through a shape alone."""
    moved = set(values)
    for node in nodes:
        if node.op_type not in ("Shape", "Size") and any(value in moved for value in node_reads(node)):
            moved.update(node.outputs)
    return moved


def bodies_of(node: ir.Node) -> list[ir.Graph]:
    """The control-flow bodies of one node."""
    single = [a.as_graph() for a in node.attributes.values() if a.type == ir.AttributeType.GRAPH]
    return single + [
        g for a in node.attributes.values() if a.type == ir.AttributeType.GRAPHS for g in a.as_graphs()
    ]


def _captured(node: ir.Node) -> Iterator[ir.Value]:
    for body in bodies_of(node):
        inner = [other for inner_node in body for other in node_reads(inner_node)]
        yield from (value for value in (*inner, *body.outputs) if value.graph is not body)
