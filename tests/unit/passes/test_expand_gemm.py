"""ExpandGemm: every form of Gemm as MatMul and what stays around it."""

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from qcompiler.graph.edits import all_nodes
from qcompiler.passes.expand_gemm import ExpandGemm
from tests.small_models import Array, apply_pass, assert_equal_outputs, make_model, op_types, run, weight

# One more rounding of a float32 sum; a wrong factor or transposition is of order 1.
ROUNDING = 1e-6


def _x(*shape: int, dtype: Any = np.float32) -> Array:
    return np.random.default_rng(1).standard_normal(shape).astype(dtype)


def _expand(
    model: Any, chosen: Any = lambda node: True
) -> tuple[ir.Model, bool, list[tuple[ir.Node, ir.Node]]]:
    loaded = ir.from_proto(model)
    moved: list[tuple[ir.Node, ir.Node]] = []
    gemms = [node for node in all_nodes(loaded) if node.op_type == "Gemm" and chosen(node)]
    transform = ExpandGemm(gemms, lambda old, new: moved.append((old, new)))
    loaded, modified = apply_pass(transform, loaded)
    assert not apply_pass(transform, loaded)[1], "a second run finds nothing"
    return loaded, modified, moved


@pytest.mark.parametrize("trans_a", [0, 1])
@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (0.5, 1.0), (1.0, 3.0), (0.25, 0.0), (0.0, 1.0)])
@pytest.mark.parametrize("bias", ["none", "constant", "dynamic"])
def test_every_attribute(trans_a: int, trans_b: int, alpha: float, beta: float, bias: str) -> None:
    inputs = "float[16,3] x" if trans_a else "float[3,16] x"
    weights = {"w": weight(8, 16) if trans_b else weight(16, 8)}
    feed = {"x": _x(16, 3) if trans_a else _x(3, 16)}
    if bias == "constant":
        weights["c"] = weight(8)
    elif bias == "dynamic":
        inputs += ", float[3,8] c"
        feed["c"] = _x(3, 8)
    model = make_model(
        f"g ({inputs}) => (float[3,8] y) {{ y = Gemm<transA={trans_a}, transB={trans_b}, alpha={alpha}, beta={beta}>"
        f"(x, w{'' if bias == 'none' else ', c'}) }}",
        weights,
    )
    after, modified, moved = _expand(model)
    assert modified
    assert "Gemm" not in op_types(after)
    assert [new.op_type for _, new in moved] == ["MatMul"]
    if not (alpha == 0.0 and bias == "none"):
        assert_equal_outputs(run(model, feed, optimize=False), run(after, feed, optimize=False), ROUNDING)


@pytest.mark.parametrize("shape", [(), (1,), (8,), (1, 8), (3, 1), (3, 8), (1, 1)])
@pytest.mark.parametrize("beta", [1.0, 2.0])
def test_every_shape_of_the_addend(shape: tuple[int, ...], beta: float) -> None:
    model = make_model(
        f"g (float[3,16] x) => (float[3,8] y) {{ y = Gemm<beta={beta}>(x, w, c) }}",
        {"w": weight(16, 8), "c": _x(*shape) if shape else np.array(0.5, np.float32)},
    )
    after, _, _ = _expand(model)
    assert_equal_outputs(
        run(model, {"x": _x(3, 16)}, optimize=False), run(after, {"x": _x(3, 16)}, optimize=False), ROUNDING
    )
    assert op_types(after) == ["MatMul", "Add"], "a constant addend takes beta in"
    assert len(after.graph.initializers) == 2, "and does not stay beside its multiple"


def test_float16_keeps_its_type() -> None:
    model = make_model(
        "g (float16[3,16] x) => (float16[3,8] y) { y = Gemm<alpha=0.5, beta=2.0, transB=1>(x, w, c) }",
        {"w": weight(8, 16, dtype=np.float16), "c": weight(8, dtype=np.float16)},
    )
    after, _, _ = _expand(model)
    feed = {"x": _x(3, 16, dtype=np.float16)}
    assert_equal_outputs(
        run(model, feed, optimize=False), run(after, feed, optimize=False), 4e-3
    )  # 4 epsilons of float16


def test_inside_a_body() -> None:
    model = make_model(
        """g (float[3,16] x, bool c) => (float[3,8] y) { y = If(c) <
        then_branch = t () => (float[3,8] z) { z = Gemm<alpha=2.0>(x, w, b) }, else_branch = e () => (float[3,8] q) { q = MatMul(x, w) }> }""",
        {"w": weight(16, 8), "b": weight(8)},
    )
    after, modified, _ = _expand(model)
    assert modified
    for c in (True, False):
        feed = {"x": _x(3, 16), "c": np.array(c)}
        assert_equal_outputs(run(model, feed), run(after, feed), ROUNDING)


@pytest.mark.parametrize("attributes", ["", "<alpha=2.0, transB=1>"])
@pytest.mark.parametrize("is_output", [True, False])
def test_names_and_notes_stay(attributes: str, is_output: bool) -> None:
    tail = "h = Gemm{a}(x, w, b)" if is_output else "h = Gemm{a}(x, w, b) y = Relu(h)"
    model = make_model(
        f"g (float[3,16] x) => (float[3,16] {'h' if is_output else 'y'}) {{ [fc] {tail.format(a=attributes)} }}",
        {"w": weight(16, 16), "b": weight(16)},
    )
    gemm = model.graph.node[0]
    gemm.doc_string = "a line of someone's source"
    note = gemm.metadata_props.add()
    note.key, note.value = "pkg.torch.onnx.name_scopes", "['', 'fc']"
    after, _, ((_, product),) = _expand(model)
    assert (product.op_type, product.name) == ("MatMul", "fc")
    made = [node for node in after.graph if node.op_type != "Relu"]
    assert len({node.name for node in made}) == len(made)
    assert made[-1].outputs[0].name == "h"
    assert {node.doc_string for node in made} == {"a line of someone's source"}
    assert [dict(node.metadata_props) for node in made] == [{note.key: note.value}] * len(made)


def test_one_that_is_not_asked_for_stays() -> None:
    model = make_model(
        "g (float[3,16] x) => (float[3,8] y) { [one] h = Gemm(x, v) [two] y = Gemm(h, w) }",
        {"v": weight(16, 16), "w": weight(16, 8)},
    )
    after, _, _ = _expand(model, lambda node: node.name == "one")
    assert op_types(after) == ["MatMul", "Gemm"]
    untouched, modified, _ = _expand(model, lambda node: False)
    assert not modified
    assert op_types(untouched) == ["Gemm", "Gemm"]
