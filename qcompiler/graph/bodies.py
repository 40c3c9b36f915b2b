"""Where the bodies of If, Loop and Scan lie: which node has each, and how people call it."""

import onnx_ir as ir

from qcompiler.graph.edits import all_nodes


class Bodies:
    """Of one model, as its nodes are when this is made.

    Attributes:
        names: of every body, for people: "body of Loop 'frames' in then_branch of If 'voiced'".
    """

    def __init__(self, model: ir.Model) -> None:
        self._owners: dict[ir.Graph, ir.Node] = {}
        self.names: dict[ir.Graph, str] = {}
        for node in all_nodes(model):  # those of outer graphs first
            for attribute in node.attributes.values():
                if attribute.type == ir.AttributeType.GRAPH:
                    self._add(node, attribute.name, attribute.as_graph())
                elif attribute.type == ir.AttributeType.GRAPHS:
                    for body in attribute.as_graphs():
                        self._add(node, attribute.name, body)

    def _add(self, node: ir.Node, attribute: str, body: ir.Graph) -> None:
        self._owners[body] = node
        around = self.names.get(node.graph) if isinstance(node.graph, ir.Graph) else None
        self.names[body] = f"{attribute} of {node.op_type} {node.name!r}" + (
            f" in {around}" if around else ""
        )

    def node_in(self, graph: ir.Graph, node: ir.Node) -> ir.Node:
        """The node of ``graph`` that a node is in, or that it is itself.

        Raises:
            KeyError: it lies outside of the graph.
        """
        while node.graph is not graph:
            assert isinstance(node.graph, ir.Graph)
            node = self._owners[node.graph]
        return node

    def around(self, node: ir.Node) -> list[ir.Graph]:
        """The bodies that a node is in, the innermost first."""
        found = []
        while isinstance(node.graph, ir.Graph) and node.graph in self._owners:
            found.append(node.graph)
            node = self._owners[node.graph]
        return found
