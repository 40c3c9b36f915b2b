import numpy as np
import onnx_ir as ir
import pytest

from qcompiler.graph import edits

FLOAT = ir.TensorType(ir.DataType.FLOAT)


def _value(name: str) -> ir.Value:
    return ir.Value(name=name, type=FLOAT, shape=ir.Shape([2]))


def _chain() -> ir.Model:
    """x -> a = Relu(x) -> y = Neg(a)."""
    x = _value("x")
    relu = ir.node("Relu", [x], outputs=[_value("a")], name="relu")
    neg = ir.node("Neg", [relu.outputs[0]], outputs=[_value("y")], name="neg")
    graph = ir.Graph([x], [neg.outputs[0]], nodes=[relu, neg], opset_imports={"": 21}, name="main")
    return ir.Model(graph, ir_version=10)


def _with_subgraph() -> ir.Model:
    """y = If(c) { Neg(x) } else { Relu(x) }, and a function F with a node and a subgraph of its own."""
    x, c = _value("x"), ir.Value(name="c", type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([]))
    branches = []
    for op in ("Neg", "Relu"):
        inner = ir.node(op, [x], outputs=[_value(f"{op}_out")], name=op)
        branches.append(ir.Graph([], [inner.outputs[0]], nodes=[inner], name=op))
    attributes = {"then_branch": branches[0], "else_branch": branches[1]}
    chosen = ir.node("If", [c], attributes, outputs=[_value("y")], name="if")
    graph = ir.Graph([x, c], [chosen.outputs[0]], nodes=[chosen], opset_imports={"": 21}, name="main")
    z = _value("z")
    body = ir.node("Abs", [z], outputs=[_value("in_function")], name="abs")
    function = ir.Function("f", "F", graph=ir.Graph([z], body.outputs, nodes=[body], name="F"), attributes=[])
    return ir.Model(graph, ir_version=10, functions=[function])


def test_all_nodes_enters_subgraphs_and_functions():
    model = _with_subgraph()

    assert [node.op_type for node in edits.all_nodes(model)] == ["If", "Neg", "Relu", "Abs"]
    assert {graph.name for graph in edits.all_graphs(model)} == {"main", "Neg", "Relu", "F"}


def test_names_are_free_of_every_graph():
    names = edits.Names(_with_subgraph())

    assert names.value("Neg_out") == "Neg_out_2"
    assert names.value("Neg_out") == "Neg_out_3"
    assert names.value("in_function") == "in_function_2"
    assert names.value("new") == "new"
    assert names.node("abs") == "abs_2"


def test_replace_value_reaches_subgraphs():
    model = _with_subgraph()
    x = model.graph.inputs[0]
    doubled = ir.node("Add", [x, x], outputs=[_value("doubled")])
    edits.insert_after_value(x, model.graph, [doubled])

    edits.replace_value(x, doubled.outputs[0], keep=[doubled])

    readers = {node.op_type for node, _ in doubled.outputs[0].uses()}
    assert readers == {"Neg", "Relu"}
    assert {node for node, _ in x.uses()} == {doubled}


def test_replace_value_keeps_the_output_name():
    model = _chain()
    neg = model.graph.node("neg")
    new = ir.node("Abs", [neg.inputs[0]], outputs=[_value("b")])
    model.graph.insert_after(neg, new)

    edits.replace_value(neg.outputs[0], new.outputs[0])

    assert [output.name for output in model.graph.outputs] == ["y"]
    assert model.graph.outputs[0].producer() is new
    assert neg.outputs[0].name == "y_replaced"


def test_replace_output_by_an_input_takes_an_identity():
    model = _chain()
    y = model.graph.outputs[0]

    edits.replace_value(y, model.graph.inputs[0])

    output = model.graph.outputs[0]
    assert output.name == "y"
    assert output.producer() is not None and output.producer().op_type == "Identity"
    assert output.producer().inputs[0].name == "x"


def test_replace_output_by_an_output_takes_an_identity():
    model = _chain()
    model.graph.outputs.append(model.graph.node("relu").outputs[0])
    y, a = model.graph.outputs

    edits.replace_value(y, a)

    assert [output.name for output in model.graph.outputs] == ["y", "a"]
    assert len(set(model.graph.outputs)) == 2


def test_drop_unused_takes_the_chain_and_its_initializers():
    model = _chain()
    graph = model.graph
    weight = edits.add_initializer(graph, ir.tensor(np.ones(2, np.float32)), "w")
    dead = ir.node("Add", [graph.inputs[0], weight], outputs=[_value("d")])
    deader = ir.node("Neg", [dead.outputs[0]], outputs=[_value("e")])
    graph.extend([dead, deader])

    edits.drop_unused(graph.node("relu").outputs[0])  # read by neg: stays
    edits.drop_unused(deader.outputs[0])

    assert [node.op_type for node in graph] == ["Relu", "Neg"]
    assert "w" not in graph.initializers


def test_insert_into_an_empty_graph():
    x = _value("x")
    graph = ir.Graph([x], [], nodes=[], name="g")
    edits.insert_after_value(x, graph, [ir.node("Neg", [x], outputs=[_value("n")])])
    assert len(graph) == 1


def test_add_initializer_refuses_a_taken_name():
    graph = _chain().graph
    edits.add_initializer(graph, ir.tensor(np.ones(2, np.float32)), "w")
    with pytest.raises(ValueError, match="already registered"):
        edits.add_initializer(graph, ir.tensor(np.ones(2, np.float32)), "w")


def test_set_info_copies_the_shape():
    shape = ir.Shape(["batch", 4])
    value = ir.Value(name="v")
    edits.set_info(value, ir.DataType.FLOAT16, shape)
    assert value.dtype == ir.DataType.FLOAT16
    assert value.shape == shape and value.shape is not shape
