"""Normalize: weights end as initializers of the main graph, and the function stays."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from qcompiler.graph.edits import all_nodes
from qcompiler.passes.normalize import Normalize
from tests.small_models import (
    Array,
    apply_pass,
    assert_equal_outputs,
    constant_node,
    make_model,
    op_types,
    run,
    weight,
)

helper = onnx.helper
EXACT = 0.0  # nothing is computed otherwise


def _x() -> Array:
    return np.random.default_rng(1).standard_normal((3, 16)).astype(np.float32)


def _check(model: onnx.ModelProto, **feed: Array) -> ir.Model:
    before = run(model, {"x": _x(), **feed}, optimize=False)
    after, modified = apply_pass(Normalize(), model)
    assert modified
    assert_equal_outputs(before, run(after, {"x": _x(), **feed}, optimize=False), EXACT)
    again, modified = apply_pass(Normalize(), after)
    assert not modified, "a second run finds nothing"
    return again


def _clean() -> onnx.ModelProto:
    model = make_model(
        "g (float[3,16] x) => (float[3,16] y) { [one] h = MatMul(x, w) [two] y = Relu(h) }",
        {"w": weight(16, 16)},
    )
    return onnx.shape_inference.infer_shapes(model)


def test_a_model_in_form_is_left_alone() -> None:
    after, modified = apply_pass(Normalize(), _clean())
    assert not modified
    assert ir.to_proto(after).SerializeToString() == ir.to_proto(ir.from_proto(_clean())).SerializeToString()


def test_a_weight_in_a_constant_node() -> None:
    model = _clean()
    del model.graph.initializer[:]
    model.graph.node.insert(0, constant_node("w", weight(16, 16)))
    after = _check(model)
    assert list(after.graph.initializers) == ["w"]


def test_small_constants_stay_nodes() -> None:
    model = make_model(
        "g (float[3,16] x) => (float[16,3] y) { s = Constant<value_ints=[16,3]>() two = Constant<value=float[1] {2.0}>()"
        " d = Mul(x, two) y = Reshape(d, s) }"
    )
    after = _check(model)
    assert op_types(after).count("Constant") == 2


def test_a_weight_that_is_also_an_input() -> None:
    model = _clean()
    model.graph.input.append(helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [16, 16]))
    after = _check(model)
    assert [value.name for value in after.graph.inputs] == ["x"]
    assert list(after.graph.initializers) == ["w"]


def _with_inputs(ir_version: int) -> onnx.ModelProto:
    """A weight, a bias and an unread number, each initializer and input."""
    return make_model(
        "g (float[3,16] x, float[16,16] w, float[16] b, float[4] unread) => (float[3,16] y) { h = MatMul(x, w) y = Add(h, b) }",
        {"w": weight(16, 16), "b": weight(16), "unread": weight(4)},
        ir_version=ir_version, opset=9 if ir_version < 4 else 21,
    )  # fmt: skip


def test_initializers_that_a_caller_may_override_stay_inputs() -> None:
    after = _check(_with_inputs(10))
    assert [value.name for value in after.graph.inputs] == ["x", "b", "unread"]
    other = np.ones(16, np.float32)
    np.testing.assert_array_equal(
        run(after, {"x": _x(), "b": other})["y"], run(_with_inputs(10), {"x": _x(), "b": other})["y"]
    )


def test_before_ir_version_4_no_initializer_could_be_overridden() -> None:
    after, modified = apply_pass(Normalize(), _with_inputs(3))
    assert modified
    assert [value.name for value in after.graph.inputs] == ["x"]


def test_a_function_called_twice_brings_its_weight_once() -> None:
    f = helper.make_function(
        "local", "f", ["x"], ["y"],
        [constant_node("w", weight(16, 16)), helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"])],
        [helper.make_opsetid("", 21)],
    )  # fmt: skip
    outer = helper.make_function(
        "local", "outer", ["x"], ["y"],
        [helper.make_node("f", ["x"], ["h"], domain="local"), helper.make_node("f", ["h"], ["y"], domain="local")],
        [helper.make_opsetid("", 21), helper.make_opsetid("local", 1)],
    )  # fmt: skip
    model = _clean()
    del model.graph.node[:], model.graph.initializer[:], model.graph.value_info[:]
    model.graph.node.extend([
        helper.make_node("outer", ["x"], ["m"], domain="local"), helper.make_node("outer", ["m"], ["y"], domain="local"),
    ])  # fmt: skip
    model.functions.extend([f, outer])
    model.opset_import.append(helper.make_opsetid("local", 1))
    after = _check(model)
    assert op_types(after).count("MatMul") == 4
    assert len(after.graph.initializers) == 1
    assert not after.functions


BODY = """g (float[3,16] x, bool c) => (float[3,16] y) { y = If(c) <
    then_branch = t () => (float[3,16] z) { z = MatMul(x, w) }, else_branch = e () => (float[3,16] q) { q = MatMul(x, w) }> }"""


def test_weights_of_bodies_with_one_name() -> None:
    model = make_model(BODY, {"w": weight(16, 16)})
    del model.graph.initializer[:]
    for number, attribute in enumerate(model.graph.node[0].attribute):
        attribute.g.initializer.append(onnx.numpy_helper.from_array(weight(16, 16, seed=number), "w"))
    before = {c: run(model, {"x": _x(), "c": np.array(c)}, optimize=False) for c in (True, False)}
    after, _ = apply_pass(Normalize(), model)
    for c, expected in before.items():
        assert_equal_outputs(expected, run(after, {"x": _x(), "c": np.array(c)}, optimize=False), EXACT)
    assert len(after.graph.initializers) == 2


def test_a_bodys_weight_whose_name_another_body_makes() -> None:
    built = make_model(BODY.replace("q = MatMul(x, w)", "n = Neg(x) q = Relu(n)"), {"w": weight(16, 16)})
    del built.graph.initializer[:]
    then, other = (attribute.g for attribute in built.graph.node[0].attribute)
    then.initializer.append(onnx.numpy_helper.from_array(weight(16, 16), "w"))
    other.node[0].output[0] = other.node[1].input[0] = "w"
    onnx.checker.check_model(built)
    for c in (True, False):
        _check(built, c=np.array(c))


def test_what_nothing_reads_goes() -> None:
    model = make_model(
        "g (float[3,16] x) => (float[3,16] y) { dead = MatMul(x, v) y = MatMul(x, w) }",
        {"v": weight(16, 16), "w": weight(16, 16)},
    )
    after = _check(model)
    assert op_types(after) == ["MatMul"]
    assert list(after.graph.initializers) == ["w"]


def test_every_node_has_a_name_of_its_own() -> None:
    model = make_model(
        "g (float[3,16] x) => (float[3,16] y) { [n] a = Neg(x) [n] b = Relu(a) c = Neg(b) y = Relu(c) }"
    )
    after, modified = apply_pass(Normalize(), model)  # ONNX Runtime itself refuses two nodes of one name
    assert modified
    names = [node.name for node in all_nodes(after)]
    assert len(set(names)) == 4
    assert all(names)
    assert names[0] == "n"


@pytest.mark.parametrize("kind", ["output", "shared"])
def test_constants_that_are_outputs_or_shared(kind: str) -> None:
    text = (
        "k = Identity(w) y = MatMul(x, w)"
        if kind == "output"
        else "h = MatMul(x, w) k = MatMul(h, w) y = Neg(x)"
    )
    model = make_model(
        f"g (float[3,16] x) => (float[3,16] y, float[A,B] k) {{ {text} }}", {"w": weight(16, 16)}
    )
    _check(model)


def test_types_are_inferred() -> None:
    after, _ = apply_pass(
        Normalize(),
        make_model(
            "g (float[M,16] x) => (float[M,16] y) { h = MatMul(x, w) y = Relu(h) }", {"w": weight(16, 16)}
        ),
    )
    product = after.graph[0].outputs[0]
    assert product.dtype == ir.DataType.FLOAT
    assert product.shape is not None and len(product.shape) == 2


def test_values_of_two_branches_have_names_and_types_of_their_own() -> None:
    model = make_model(
        "g (float[M,16] x, bool c) => (float[M,16] y) { y = If(c)"
        " <then_branch = t () => (float[M,16] z) { h = MatMul(x, w) z = Relu(h) },"
        " else_branch = e () => (float[M,16] z) { h = Neg(x) z = Relu(h) }> }",
        {"w": weight(16, 16)},
    )
    after, modified = apply_pass(Normalize(), model)
    assert modified
    made = [value for node in all_nodes(after) for value in node.outputs]
    assert len({value.name for value in made}) == len(made) == 5
    assert {value.dtype for value in made} == {ir.DataType.FLOAT}
    assert not apply_pass(Normalize(), after)[1]
