"""FuseFollowers: gates, residuals and activations that become part of a product's node, and those that do not."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from qcompiler.graph.operator_body import OUR_DOMAIN
from qcompiler.passes.fuse_followers import FuseFollowers
from qcompiler.passes.join_products import JoinProducts
from qcompiler.passes.use_own_kernels import UseOwnKernels
from qcompiler.report.quantized_products import read_products
from tests.small_models import Array, apply_pass, assert_equal_outputs, make_model, op_types, run

SAME = 0.0  # the bodies have the nodes that were there
ROUNDING = 1e-6  # a product of three in another order
GATED = "g = Sigmoid(ya) h = Mul(ya, g) y = Mul(h, yb)"


def _product(name: str, n: int = 16, x: str = "x", more: str = "") -> str:
    sizes = f"K=32, N={n}, bits=8, block_size=32, accuracy_level=4"
    return f"y{name} = com.microsoft.MatMulNBits<{sizes}>({x}, {name}, s{name}{more})"


def _model(nodes: str, inputs: str = "float[M,32] x", outputs: str = "float[M,16] y") -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    constants: dict[str, Array] = {}
    for name, n in (("a", 16), ("b", 16), ("c", 8)):
        constants[name] = rng.integers(0, 256, (n, 1, 32)).astype(np.uint8)
        constants[f"s{name}"] = rng.uniform(0.01, 0.02, (n, 1)).astype(np.float32)
        constants[f"b{name}"] = rng.standard_normal(n).astype(np.float32)
    for name, number in (("root", 2**0.5), ("one", 1.0), ("half", 0.5)):
        constants[name] = np.array(number, np.float32)
    used = {name: array for name, array in constants.items() if name in nodes}
    return make_model(f"g ({inputs}) => ({outputs}) {{ {nodes} }}", used, domains={"com.microsoft": 1})


def _ours(model: onnx.ModelProto) -> ir.Model:
    """With our nodes, joined, and with the shapes that an exporter writes."""
    after, _ = apply_pass(UseOwnKernels(), model)
    after, _ = apply_pass(JoinProducts(), after)
    for node in after.graph:
        for value in node.outputs:
            if node.domain == OUR_DOMAIN and value.shape is None:
                value.shape = ir.Shape(["M", 16])
    return after


def _feeds(**more: Array) -> dict[str, Array]:
    rng = np.random.default_rng(1)
    return {"x": rng.standard_normal((3, 32)).astype(np.float32), **more}


@pytest.mark.parametrize(
    "gate",
    [GATED, "g = Sigmoid(ya) h = Mul(g, ya) y = Mul(yb, h)", "g = Sigmoid(yb) h = Mul(yb, g) y = Mul(h, ya)"],
)
def test_a_gate_becomes_part_of_its_two_products(gate: str) -> None:
    model = _model(f"{_product('a', more=', , , ba')} {_product('b')} {gate}")
    before = _ours(model)
    before.graph[0].metadata_props["qcompiler.products"] = "one\ntwo"
    entry = FuseFollowers()
    after, modified = apply_pass(entry, before)
    assert modified and op_types(after) == ["MatMulNBitsSwiGlu"]
    assert [function.name for function in after.functions.values()] == ["MatMulNBitsSwiGlu"]
    first = ("two", "b") if "Sigmoid(yb)" in gate else ("one", "a")
    assert (entry.lowered[0].name, entry.lowered[0].packed) == first and len(entry.lowered) == 2
    assert after.graph[0].metadata_props["qcompiler.products"].splitlines()[0] == first[0]
    assert_equal_outputs(run(model, _feeds()), run(after, _feeds()), ROUNDING)
    assert {weight.name for weight in read_products(after)} == {"a", "b"}
    assert not apply_pass(FuseFollowers(), after)[1]


@pytest.mark.parametrize(
    ("nodes", "outputs"),
    [
        (f"{_product('a')} {_product('b')} {GATED} z = Neg(h)", "float[M,16] y, float[M,16] z"),
        (f"{_product('a')} {_product('b')} {GATED}", "float[M,16] y, float[M,16] yb"),
        (f"{_product('a')} {_product('b')} g = Sigmoid(ya) h = Mul(yb, g) y = Mul(h, ya)", "float[M,16] y"),
        (f"{_product('a')} {_product('b')} g = Tanh(ya) h = Mul(ya, g) y = Mul(h, yb)", "float[M,16] y"),
    ],
    ids=["the gate is read elsewhere", "a product is an output", "another formula", "another function"],
)
def test_what_is_no_gate_stays(nodes: str, outputs: str) -> None:
    after, modified = apply_pass(FuseFollowers(), _ours(_model(nodes, outputs=outputs)))
    assert not modified and "MatMulNBitsPair" in op_types(after)


@pytest.mark.parametrize("order", ["ya, r", "r, ya"])
@pytest.mark.parametrize("bias", ["", ", , , ba"])
def test_a_residual_becomes_part_of_its_product(order: str, bias: str) -> None:
    model = _model(
        f"{_product('a', more=bias)} r = Relu(r0) y = Add({order})", "float[M,32] x, float[M,16] r0"
    )
    entry = FuseFollowers()
    after, modified = apply_pass(entry, _shaped(_ours(model)))
    assert modified and op_types(after) == ["Relu", "MatMulNBitsAdd"]
    assert [lowered.operator for lowered in entry.lowered] == ["ai.qcompiler::MatMulNBitsAdd"]
    feeds = _feeds(r0=np.random.default_rng(2).standard_normal((3, 16)).astype(np.float32))
    assert_equal_outputs(run(model, feeds), run(after, feeds), SAME)
    assert [weight.name for weight in read_products(after)] == ["a"]


def _shaped(model: ir.Model) -> ir.Model:
    for node in model.graph:
        if node.op_type == "Relu":
            node.outputs[0].shape = ir.Shape(["M", 16])
    return model


@pytest.mark.parametrize(
    ("nodes", "inputs"),
    [
        (f"{_product('a')} y = Add(ya, r0)", "float[M,32] x, float[1,16] r0"),
        (f"{_product('a')} y = Add(ya, r0)", "float[M,32] x, float[L,16] r0"),
        (f"{_product('a')} y = Add(ya, r0)", "float[M,32] x, float[16] r0"),
        (f"{_product('a')} y = Add(ya, ya)", "float[M,32] x"),
        (f"{_product('a')} z = Neg(ya) y = Add(ya, z)", "float[M,32] x"),
    ],
    ids=["one row", "other rows", "a bias", "the product twice", "the product read elsewhere"],
)
def test_what_is_no_residual_stays(nodes: str, inputs: str) -> None:
    after, modified = apply_pass(FuseFollowers(), _ours(_model(nodes, inputs)))
    assert not modified and "MatMulNBits" in op_types(after) and "Add" in op_types(after)


ACTIVATIONS = {
    "Relu": ("y = Relu(ya)", 0.0),
    "Gelu": ("d = Div(ya, root) e = Erf(d) p = Add(e, one) m = Mul(ya, p) y = Mul(m, half)", 1e-6),
    "FastGelu": ('y = Gelu <approximate = "tanh"> (ya)', 1e-6),
    "QuickGelu": ("s = Sigmoid(ya) y = Mul(s, ya)", 1e-6),
}  # with how far ONNX Runtime's functions may be from those that it fuses of their nodes, relative to the largest


@pytest.mark.parametrize("kind", ACTIVATIONS)
@pytest.mark.parametrize("bias", ["", ", , , ba"])
def test_an_activation_becomes_part_of_its_product(kind: str, bias: str) -> None:
    nodes, tolerance = ACTIVATIONS[kind]
    model = _model(f"{_product('a', more=bias)} {nodes}")
    entry = FuseFollowers()
    after, modified = apply_pass(entry, _ours(model))
    assert modified and op_types(after) == [f"MatMulNBits{kind}"] and not entry.left
    assert [lowered.operator for lowered in entry.lowered] == [f"ai.qcompiler::MatMulNBits{kind}"]
    assert [function.name for function in after.functions.values()] == [f"MatMulNBits{kind}"]
    alpha = after.graph[0].attributes.get("alpha")
    assert (alpha is not None and alpha.as_float() == 1.0) if kind == "QuickGelu" else alpha is None
    assert_equal_outputs(run(model, _feeds()), run(after, _feeds()), tolerance)
    assert [weight.name for weight in read_products(after)] == ["a"]
    again = FuseFollowers()
    assert not apply_pass(again, after)[1] and not again.left


def test_one_of_three_bits_too() -> None:
    before = _ours(_model(f"{_product('a')} y = Relu(ya)"))
    before.graph[0].op_type = "MatMul3Bits"
    after, modified = apply_pass(FuseFollowers(), before)
    assert modified and op_types(after) == ["MatMul3BitsRelu"]
    assert "MatMul3BitsRelu" in [function.name for function in after.functions.values()]


def test_a_gate_goes_before_the_activation_in_it() -> None:
    after, _ = apply_pass(FuseFollowers(), _ours(_model(f"{_product('a')} {_product('b')} {GATED}")))
    assert op_types(after) == ["MatMulNBitsSwiGlu"]


@pytest.mark.parametrize(
    ("nodes", "outputs", "said"),
    [
        (
            f"{_product('a')} s = Sigmoid(ya) y = Mul(s, ya) z = Neg(ya)", "float[M,16] y, float[M,16] z",
            "MatMulNBits: what its QuickGelu is made of is read by another node too, or an output; it stays behind its product",
        ),
        (
            f"{_product('a')} y = Relu(ya)", "float[M,16] y, float[M,16] ya",
            "MatMulNBits: what its Relu is made of is read by another node too, or an output; it stays behind its product",
        ),
        (
            f"{_product('a')} {_product('b')} g = Relu(ya) y = Mul(g, yb)", "float[M,16] y",
            "MatMulNBits + MatMulNBits: its Relu follows one of several products on the same activations, which are one node; "
            "it stays behind its product",
        ),
    ],
    ids=["read elsewhere", "an output", "of a pair"],
)  # fmt: skip
def test_an_activation_that_stays_is_told(nodes: str, outputs: str, said: str) -> None:
    entry = FuseFollowers()
    _, modified = apply_pass(entry, _ours(_model(nodes, outputs=outputs)))
    assert not modified and entry.left == [said]
