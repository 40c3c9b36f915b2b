"""Backpropagation by segments: the gradients of the whole model, whatever is spilled; what torch cannot do is refused first."""

from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from qcompiler.algorithms.fisher import gradient_of_weight
from qcompiler.calibration.backpropagation import Backpropagation, Product
from qcompiler.calibration.executor import Executor
from qcompiler.calibration.segments import cut_segments
from qcompiler.errors import CalibrationError, ResourceError
from qcompiler.graph.census import take_census
from qcompiler.graph.weights import Role, Weight
from tests.small_models import Array, make_model, weight

torch = pytest.importorskip("torch")

# Three blocks on a residual stream; the embedding is also read by the last block, and tied to the head.
TEXT = """g (int64[1,S] ids) => (float[1,S,24] logits) {
    e = Gather(table, ids)
    a = MatMul(e, w1)  b = Tanh(a)  c = MatMul(b, w2)  f = Add(e, c)
    h = MatMul(f, w3)  i = Sigmoid(h)  j = MatMul(i, w4)  k = Add(f, j)
    l = MatMul(k, w5)  m = Mul(l, e)  n = MatMul(m, w6)  o = Add(k, n)
    tt = Transpose<perm = [1, 0]>(table)
    logits = MatMul(o, tt)
}"""
WEIGHTS = {"table": weight(24, 32)} | {f"w{i}": weight(32, 32, seed=i) for i in range(1, 7)}
FEEDS = [{"ids": np.arange(7).reshape(1, 7) % 5}, {"ids": np.array([[3, 20, 3]])}]


def _products(model: ir.Model) -> dict[Product, Weight]:
    def operand(found: Weight, role: Role) -> Array:
        return found.array() if role is Role.EMBEDDING else found.array().T

    return {
        Product(use.node, use.input_index, partial(operand, found, use.role)): found
        for found in take_census(model).weights
        for use in found.uses
    }


def _gradients(model: ir.Model, folder: Path, limit: int) -> list[dict[str, Array]]:
    """Of each weight, for each feed; the output's own gradient is its number of columns, from 0 on."""
    products = _products(model)
    segments = cut_segments(model.graph, {product.node for product in products}, 1)
    assert len(segments) >= 3
    through = Backpropagation(model, segments, list(products), model.graph.outputs, "do that")

    def start(index: int, value: ir.Value, output: "torch.Tensor") -> "torch.Tensor":
        return torch.arange(24.0).expand(output.shape) / 24

    totals: list[dict[str, Array]] = [{}, {}]
    for index, found in through.run(FEEDS, folder, limit, start):
        for at in found:
            of = products[at.product]
            gradient = gradient_of_weight(at.reads, at.gradient, of.shape).numpy()
            totals[index][of.name] = totals[index].get(of.name, 0) + gradient
    return totals


def test_gradients_are_those_of_the_whole_model(tmp_path: Path) -> None:
    model = ir.from_proto(make_model(TEXT, WEIGHTS))
    found = _gradients(model, tmp_path, 1 << 30)
    values = [model.graph.initializers[name] for name in WEIGHTS]
    whole = Executor(model, list(model.graph), model.graph.inputs, model.graph.outputs, replaced=values)
    for feed, gradients in zip(FEEDS, found, strict=True):
        tensors = {v: torch.tensor(WEIGHTS[v.name or ""], requires_grad=True) for v in values}
        (output,) = whole({model.graph.inputs[0]: feed["ids"]}, tensors).values()
        (output @ (torch.arange(24.0) / 24)).sum().backward()
        for value, tensor in tensors.items():
            name = value.name or ""
            assert tensor.grad is not None
            expected = tensor.grad if name == "table" else tensor.grad.T
            # The same float32 operations but for the order of sums of up to 32 terms: some 32 epsilons of the largest.
            np.testing.assert_allclose(gradients[name], expected, atol=4e-6 * float(expected.abs().max()))


def test_what_goes_to_the_disk_changes_nothing(tmp_path: Path) -> None:
    model = ir.from_proto(make_model(TEXT, WEIGHTS))
    kept, spilled = _gradients(model, tmp_path, 1 << 30), _gradients(model, tmp_path, 0)
    for one, other in zip(kept, spilled, strict=True):
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def test_a_float_input_and_what_lies_before_the_weights_need_no_gradient(tmp_path: Path) -> None:
    """A mask made by an operator that torch could not turn back."""
    model = ir.from_proto(
        make_model(
            "g (float[M,32] x) => (float[M,8] y) { s = Sign(x) a = MatMul(s, u) b = Floor(x) c = Mul(a, b) y = MatMul(c, v) }",
            {"u": weight(32, 32), "v": weight(32, 8, seed=1)},
        )
    )
    products = _products(model)
    segments = cut_segments(model.graph, {product.node for product in products}, 1)
    through = Backpropagation(model, segments, list(products), model.graph.outputs, "")
    feed = {"x": weight(5, 32, seed=2, scale=3)}
    seen = {
        products[at.product].name: at
        for _, found in through.run([feed], tmp_path, 0, lambda index, value, output: torch.ones(5, 8))
        for at in found
    }
    expected = np.ones((5, 8)) @ weight(32, 8, seed=1).T * np.floor(feed["x"])
    # 8 float32 terms of order 1 times at most 10
    np.testing.assert_allclose(seen["u"].gradient, expected, atol=1e-5)
    np.testing.assert_array_equal(seen["u"].reads, np.sign(feed["x"]))


def test_a_missing_operator_is_refused_before_anything_runs() -> None:
    proto = make_model(
        "g (float[M,32] x) => (float[M,32] y) { a = MatMul(x, u) b = Hardmax(a) y = MatMul(b, v) }",
        {"u": weight(32, 32), "v": weight(32, 32, seed=1)},
    )
    proto.graph.node[1].name = "choose"
    model = ir.from_proto(proto)
    segments = cut_segments(model.graph, set(model.graph))
    with pytest.raises(
        CalibrationError, match=r"choose \(Hardmax\): the operator Hardmax.*; run it instead$"
    ):
        Backpropagation(model, segments, list(_products(model)), model.graph.outputs, "run it instead")


def test_without_torch_it_says_what_else_can_be_done(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ir.from_proto(make_model(TEXT, WEIGHTS))
    segments = cut_segments(model.graph, set(model.graph))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ResourceError, match="need torch; pip install torch, or run it instead"):
        Backpropagation(model, segments, list(_products(model)), model.graph.outputs, "run it instead")
