"""Shifts of activations: the function stays, where they go, what is done again from a record, and what is left alone."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from qcompiler.graph.edits import Names
from qcompiler.graph.weight_store import WeightStore
from qcompiler.passes.shift_inputs import AppliedShift, norm_that_can_shift, why_not_shifted
from tests.small_models import Array, assert_equal_outputs, make_model, op_types, run, weight

K, N = 16, 12
ROUNDING = 1e-4  # of sums of 16 products with a shift of some tens, which cancels
PRIVATE = (
    "g (float[M,16] x) => (float[M,12] y) { n = LayerNormalization(x, g, b) p = MatMul(n, w) q = Add(c, p) "
    "r = MatMul(n, v) s = Add(q, r) y = Relu(s) }"
)
SHARED = (
    "g (float[M,16] x) => (float[M,12] y, float[M,16] z) { n = LayerNormalization(x, g, b) p = MatMul(n, w) q = Add(p, c) "
    "r = MatMul(n, v) s = Add(q, r) y = Relu(s) z = Tanh(n) }"
)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[WeightStore]:
    with WeightStore(tmp_path) as opened:
        yield opened


def _model(text: str) -> onnx.ModelProto:
    parts = {
        "w": weight(K, N),
        "v": weight(K, N, seed=1),
        "g": weight(K, seed=2),
        "b": weight(K, seed=3),
        "c": weight(N, seed=4),
    }
    return make_model(text, parts)


def _shift(model: ir.Model, store: WeightStore | None = None) -> ir.Node | None:
    """Shifts the input of both products; by what a record of it says, with a store."""
    products = [node for node in model.graph if node.op_type == "MatMul"]
    value = products[0].inputs[0]
    assert value is not None and why_not_shifted(products, list(model.graph)) is None
    norm = norm_that_can_shift(value, products)
    shift = np.random.default_rng(5).uniform(-20, 20, K).astype(np.float32)
    matrices = (weight(K, N), weight(K, N, seed=1))
    biases = {
        node.outputs[0].name or "": shift @ matrix for node, matrix in zip(products, matrices, strict=True)
    }
    name = "" if norm is None else norm.outputs[0].name or ""
    applied = AppliedShift(shift, name, biases, "FLOAT")
    if store is None:
        applied.apply(model, products, norm, Names(model))
    else:
        by_output = {node.outputs[0].name or "": node for node in model.graph}
        AppliedShift.restore(applied.record(store), store).apply_again(model, by_output, Names(model))
    return norm


def _x() -> Array:
    return np.random.default_rng(6).standard_normal((5, K)).astype(np.float32)


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("text", [PRIVATE, SHARED], ids=["a norm of its own", "a norm that others read"])
def test_the_function_stays(text: str, again: bool, store: WeightStore) -> None:
    before, model = _model(text), ir.from_proto(_model(text))
    norm = _shift(model, store if again else None)
    onnx.checker.check_model(ir.to_proto(model))
    assert_equal_outputs(run(before, {"x": _x()}), run(model, {"x": _x()}), ROUNDING)
    added = op_types(model).count("Add") - op_types(before).count("Add")
    # The bias behind w takes one up, v has none; a norm that something else reads leaves x - z to an Add.
    assert (norm is not None, added) == ((True, 1) if text == PRIVATE else (False, 2))


def test_products_whose_output_leaves_the_segment_are_left_alone() -> None:
    model = ir.from_proto(
        _model("g (float[M,16] x) => (float[M,12] y) { n = LayerNormalization(x, g, b) y = MatMul(n, w) }")
    )
    product = model.graph[-1]
    assert "hands its output on" in (why_not_shifted([product], list(model.graph)) or "")
    model = ir.from_proto(_model(PRIVATE))
    product = next(node for node in model.graph if node.op_type == "MatMul")
    assert why_not_shifted([product], [product]) is not None


@pytest.mark.parametrize(
    "norm", ["n = LayerNormalization(x, g)", "n = Add(x, b)", "m = LayerNormalization(x, g, b) n = Relu(m)"]
)
def test_other_makers_take_over_nothing(norm: str) -> None:
    model = ir.from_proto(_model(f"g (float[M,16] x) => (float[M,12] y) {{ {norm} y = MatMul(n, w) }}"))
    value = model.graph[-1].inputs[0]
    assert value is not None and norm_that_can_shift(value, [model.graph[-1]]) is None
