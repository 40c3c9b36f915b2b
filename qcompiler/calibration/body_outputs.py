"""Values inside the bodies of If, Loop and Scan, as values of the main graph.

A run gives out values of the main graph alone. So a node with bodies gets one output more for each value wanted from inside:

    If    the branch that holds the value gives it flattened, the other one an empty tensor: of a branch never taken nothing is seen
    Loop  every iteration appends the flattened value to a tensor that the loop carries, empty at first
    Scan  every iteration gives the flattened value as a scan output, which has to be as large in each

and so outwards, body by body. What comes out has the value's numbers, not its shape.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

from qcompiler.errors import CalibrationError
from qcompiler.graph.reads import bodies_of


def reach_into_bodies(model: ir.Model, values: Sequence[ir.Value]) -> tuple[ir.Model, dict[str, ir.Value]]:
    """A model that computes the values in its main graph, and them by name: the model itself where none is inside a body.

    Args:
        model: not changed.
        values: of the main graph or a body at any depth; named, each name once.
    Raises:
        CalibrationError: a value that is not of the model, or inside a body of another operator; one in a body without a type.
    """
    if all(value.graph is model.graph for value in values):
        return model, {value.name or "": value for value in values}
    copy = model.clone()
    graphs = {model.graph: copy.graph}
    owners: dict[ir.Graph, ir.Node] = {}
    for (_, body), (node, copied) in zip(_bodies(model.graph), _bodies(copy.graph), strict=True):
        graphs[body], owners[copied] = copied, node
    outside = {}
    for value in values:
        graph = value.graph
        if not isinstance(graph, ir.Graph) or graph not in graphs:
            raise CalibrationError(
                f"{value.name}: is not a value of this model, so nothing of it can be observed"
            )
        outside[value.name or ""] = _reach(value.name or "", graphs[graph], owners)
    by_name = _by_name(copy.graph)
    return copy, {name: by_name[at] for name, at in outside.items()}


def _reach(name: str, graph: ir.Graph, owners: dict[ir.Graph, ir.Node]) -> str:
    """The name in the main graph under which a value of a graph comes out; by names, as outputs of a Loop change their places."""
    while graph in owners:
        node = owners[graph]
        inside = _by_name(graph)[name]
        if inside.dtype is None:
            raise CalibrationError(
                f"{name}: lies in a body of {node.op_type} {node.name} and has no type; infer the model's shapes first"
            )
        flat = _added(
            graph,
            "Reshape",
            [inside, _constant(graph, np.array([-1], np.int64), f"{name}/minus_one")],
            f"{name}/flat",
        )
        if node.op_type == "If":
            _out_of_branch(node, graph, flat)
        elif node.op_type == "Loop":
            _out_of_loop(node, graph, flat)
        elif node.op_type == "Scan":
            graph.outputs.append(flat)
            node.resize_outputs(len(node.outputs) + 1)
            _describe(node.outputs[-1], f"{name}/out", inside.dtype)
        else:
            raise CalibrationError(
                f"{name}: lies in a body of {node.op_type}, out of which nothing is observed; leave it out"
            )
        name = f"{name}/out"
        assert isinstance(node.graph, ir.Graph)
        graph = node.graph
    return name


def _out_of_branch(node: ir.Node, branch: ir.Graph, flat: ir.Value) -> None:
    assert flat.dtype is not None and flat.name is not None
    name = flat.name.removesuffix("/flat")
    for body in bodies_of(node):
        body.outputs.append(flat if body is branch else _constant(body, _empty(flat.dtype), f"{name}/none"))
    node.resize_outputs(len(node.outputs) + 1)
    _describe(node.outputs[-1], f"{name}/out", flat.dtype)


def _out_of_loop(node: ir.Node, body: ir.Graph, flat: ir.Value) -> None:
    """One more carried value, which stands behind the others and before what the loop scans."""
    assert flat.dtype is not None and flat.name is not None
    name = flat.name.removesuffix("/flat")
    carried = len(body.inputs) - 2  # behind the iteration and the condition
    none = ir.Node(
        "",
        "Constant",
        [],
        [ir.AttrTensor("value", ir.Tensor(_empty(flat.dtype), dtype=flat.dtype))],
        num_outputs=1,
    )
    _describe(none.outputs[0], f"{name}/none", flat.dtype)
    node.prepend(none)
    node.resize_inputs(len(node.inputs) + 1)
    node.replace_input_with(len(node.inputs) - 1, none.outputs[0])
    before = ir.Value(name=f"{name}/before", type=ir.TensorType(flat.dtype))
    body.inputs.append(before)
    body.outputs.insert(
        1 + carried, _added(body, "Concat", [before, flat], f"{name}/after", ir.AttrInt64("axis", 0))
    )
    node.resize_outputs(len(node.outputs) + 1)
    for index in range(len(node.outputs) - 1, carried, -1):
        source, target = node.outputs[index - 1], node.outputs[index]
        source.replace_all_uses_with(target, replace_graph_outputs=True)
        target.name, target.type, target.shape = source.name, source.type, source.shape
    _describe(node.outputs[carried], f"{name}/out", flat.dtype)


def _added(
    graph: ir.Graph, op_type: str, inputs: Sequence[ir.Value], name: str, *attributes: ir.Attr
) -> ir.Value:
    """A vector computed at the end of a graph, of its first input's type."""
    node = ir.Node("", op_type, inputs, attributes, num_outputs=1)
    assert inputs[0].dtype is not None
    _describe(node.outputs[0], name, inputs[0].dtype)
    graph.append(node)
    return node.outputs[0]


def _constant(graph: ir.Graph, array: np.ndarray, name: str) -> ir.Value:
    tensor = ir.Tensor(array, name=name)
    node = ir.Node("", "Constant", [], [ir.AttrTensor("value", tensor)], num_outputs=1)
    _describe(node.outputs[0], name, tensor.dtype)
    graph.append(node)
    return node.outputs[0]


def _empty(dtype: ir.DataType) -> np.ndarray:
    return np.zeros(0, dtype.numpy())


def _describe(value: ir.Value, name: str, dtype: ir.DataType) -> None:
    """Without a shape: how many numbers there are is known on a feed alone."""
    value.name, value.type, value.shape = name, ir.TensorType(dtype), None


def _by_name(graph: ir.Graph) -> dict[str, ir.Value]:
    made = (output for node in graph for output in node.outputs)
    return {value.name: value for value in (*graph.inputs, *graph.initializers.values(), *made) if value.name}


def _bodies(graph: ir.Graph) -> Iterator[tuple[ir.Node, ir.Graph]]:
    """All bodies with the nodes they belong to, outer ones first."""
    for node in graph:
        for body in bodies_of(node):
            yield node, body
            yield from _bodies(body)
