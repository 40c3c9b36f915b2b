"""RaiseOpset: the function, names, weights and metadata stay while the opset rises."""

import logging

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from qcompiler.graph.operator_body import OUR_DOMAIN, VERSION
from qcompiler.graph.sparse_matmul import OP, provide
from qcompiler.passes.raise_opset import RaiseOpset
from tests.small_models import Array, apply_pass, assert_equal_outputs, make_model, run, weight

# The same operators in another version; ReduceMean or Softmax may be computed in another order.
ROUNDING = 1e-6


def _x() -> Array:
    return np.random.default_rng(1).standard_normal((3, 16)).astype(np.float32)


IR_VERSION = {21: 10, 25: 13}  # the first that knows the opset, from ONNX's table of versions
TEXTS = {
    11: "h = MatMul(x, w) u = Unsqueeze<axes=[0]>(h) q = Squeeze<axes=[0]>(u) m = ReduceMean<axes=[1], keepdims=1>(q) d = Sub(q, m)"
    " y = Softmax<axis=1>(d)",
    13: "h = MatMul(x, w) m = ReduceMean<axes=[1], keepdims=1>(h) d = Sub(h, m) y = Softmax<axis=1>(d)",
    17: "h = MatMul(x, w) m = ReduceMean<axes=[1], keepdims=1>(h) d = Sub(h, m) y = LayerNormalization(d, g)",
    18: "h = MatMul(x, w) y = Softmax<axis=1>(h)",
    20: "h = MatMul(x, w) y = Gelu(h)",
}  # fmt: skip


@pytest.mark.parametrize("goal", [21, 25])
@pytest.mark.parametrize("opset", TEXTS)
def test_the_function_stays(opset: int, goal: int) -> None:
    model = make_model(
        f"g (float[M,16] x) => (float[M,16] y) {{ {TEXTS[opset]} }}", {"w": weight(16, 16), "g": np.ones(16, np.float32)},
        opset=opset, ir_version=8,
    )  # fmt: skip
    model.graph.node[0].name = "product"
    entry = model.graph.node[0].metadata_props.add()
    entry.key, entry.value = "pkg.torch.onnx.name_scopes", "['', 'model.q_proj', 'linear']"
    note = model.metadata_props.add()
    note.key, note.value = "author", "someone"
    before = run(model, {"x": _x()}, optimize=False)
    after, modified = apply_pass(RaiseOpset(goal), model)
    assert modified
    assert after.graph.opset_imports[""] >= goal
    assert after.ir_version == IR_VERSION[goal]
    assert_equal_outputs(before, run(after, {"x": _x()}, optimize=False), ROUNDING)
    assert not apply_pass(RaiseOpset(goal), after)[1]
    assert after.metadata_props["author"] == "someone"
    product = next(node for node in after.graph if node.op_type == "MatMul")
    assert product.name == "product"
    assert product.metadata_props["pkg.torch.onnx.name_scopes"] == "['', 'model.q_proj', 'linear']"
    assert "w" in after.graph.initializers


def test_a_model_that_is_there_already_stays() -> None:
    model = make_model("g (float[M,16] x) => (float[M,16] y) { y = Relu(x) }", opset=23)
    after, modified = apply_pass(RaiseOpset(21), model)
    assert not modified
    assert after.graph.opset_imports[""] == 23


def test_only_the_ir_version_is_raised_where_that_is_all() -> None:
    model = make_model("g (float[M,16] x) => (float[M,16] y) { y = Relu(x) }", ir_version=9)
    after, modified = apply_pass(RaiseOpset(21), model)
    assert modified
    assert after.ir_version == IR_VERSION[21]


def test_bodies_are_raised_too() -> None:
    model = make_model(
        """g (float[M,16] x, bool c) => (float[M,1] y) { y = If(c) <
        then_branch = t () => (float[M,1] z) { z = ReduceSum<axes=[1]>(x) }, else_branch = e () => (float[M,1] q) { q = ReduceMean<axes=[1]>(x) }> }""",
        opset=12, ir_version=7,
    )  # fmt: skip
    for c in (True, False):
        feed = {"x": _x(), "c": np.array(c)}
        after, _ = apply_pass(RaiseOpset(21), model)
        assert_equal_outputs(run(model, feed), run(after, feed), ROUNDING)
    assert isinstance(model, onnx.ModelProto)


def test_an_operator_of_ours_stays_a_node() -> None:
    """A model with outliers, compiled again with 2-bit weights."""
    parts = {
        "values": np.ones(4, np.float32),
        "columns": np.arange(4, dtype=np.int32),
        "offsets": np.arange(5, dtype=np.int32),
    }
    plain = make_model(
        "g (float[M,16] x) => (float[M,4] y) { y = ai.qcompiler.SparseMatMul(x, values, columns, offsets) }",
        parts,
        domains={OUR_DOMAIN: VERSION},
    )
    model = ir.from_proto(plain)
    provide(model)
    before = run(model, {"x": _x()})
    after, modified = apply_pass(RaiseOpset(25), model)
    assert modified
    assert [(node.domain, node.op_type) for node in after.graph] == [(OUR_DOMAIN, OP)]
    assert [function.opset_imports[""] for function in after.functions.values()] == [25]
    assert_equal_outputs(before, run(after, {"x": _x()}), ROUNDING)


def test_the_converter_may_be_heard_again_afterwards() -> None:
    model = make_model(
        f"g (float[M,16] x) => (float[M,16] y) {{ {TEXTS[18]} }}", {"w": weight(16, 16)}, opset=18
    )
    logger = logging.getLogger("onnxscript.version_converter")
    before = logger.level
    apply_pass(RaiseOpset(21), model)
    assert logger.level == before != logging.CRITICAL
