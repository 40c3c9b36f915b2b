"""Where bodies lie, on a branch in a loop written out."""

import onnx_ir as ir
import pytest

from qcompiler.graph.bodies import Bodies
from qcompiler.graph.edits import all_nodes
from tests.small_models import make_model

NESTED = (
    "g (float[M,8] x, int64 n) => (float[M,8] y) { [rounds] y = Loop(n, , x)"
    " <body = b (int64 i, bool c, float[M,8] s) => (bool d, float[M,8] t) { d = Identity(c) [choice] t = If(c)"
    " <then_branch = p () => (float[M,8] u) { [inner] u = Neg(s) }, else_branch = q () => (float[M,8] v) { v = Abs(s) }> }> }"
)


def _nodes(model: ir.Model) -> dict[str | None, ir.Node]:
    return {node.name: node for node in all_nodes(model)}


def test_a_body_is_called_by_those_around_it() -> None:
    model = ir.from_proto(make_model(NESTED))
    bodies, nodes = Bodies(model), _nodes(model)
    names = [bodies.names[body] for body in bodies.around(nodes["inner"])]
    assert names == ["then_branch of If 'choice' in body of Loop 'rounds'", "body of Loop 'rounds'"]


def test_the_node_of_an_outer_graph_that_a_node_is_in() -> None:
    model = ir.from_proto(make_model(NESTED))
    bodies, nodes = Bodies(model), _nodes(model)
    inside = nodes["choice"].graph
    assert isinstance(inside, ir.Graph)
    assert bodies.node_in(model.graph, nodes["inner"]) is nodes["rounds"]
    assert bodies.node_in(inside, nodes["inner"]) is nodes["choice"]
    assert bodies.node_in(model.graph, nodes["rounds"]) is nodes["rounds"]
    with pytest.raises(KeyError):
        bodies.node_in(inside, nodes["rounds"])
