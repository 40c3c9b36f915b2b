"""StoreThreeBits: which weights are stored in 3 bits, and that their products stay what they were."""

import numpy as np
import onnx_ir as ir
import pytest

from qcompiler.graph.operator_body import OUR_DOMAIN
from qcompiler.graph.quantized import SCHEME_KEY
from qcompiler.passes.join_products import JoinProducts
from qcompiler.passes.store_three_bits import StoreThreeBits
from qcompiler.passes.use_own_kernels import UseOwnKernels
from qcompiler.report.quantized_products import read_products
from tests.small_models import Array, apply_pass, assert_equal_outputs, make_model, op_types, run

SAME = 1e-6  # twice the codes at half the scale: the same integers, floats rounded elsewhere
N, K, GROUPS = 16, 80, 3


def _bytes(low: int, high: int, *shape: int) -> Array:
    """Two 4-bit codes of low .. high - 1 a byte."""
    codes = np.random.default_rng(low).integers(low, high, (2, *shape)).astype(np.uint8)
    return codes[0] | codes[1] << np.uint8(4)


def _model(nodes: str, outputs: str = f"float[M,{N}] y", **constants: Array) -> ir.Model:
    """Our nodes; those of ``nodes`` may read b (about 8) with scales s, and c (0 to 7) with zero points z."""
    known = {
        "b": _bytes(4, 12, N, GROUPS, 16), "c": _bytes(0, 8, N, GROUPS, 16),
        "z": _bytes(0, 8, N, 2), "s": np.random.default_rng(0).uniform(0.01, 0.02, (N, GROUPS)).astype(np.float32),
        **constants,
    }  # fmt: skip
    used = {name: array for name, array in known.items() if name in nodes}
    text = f"g (float[M,{K}] x) => ({outputs}) {{ {nodes} }}"
    model, _ = apply_pass(UseOwnKernels(), make_model(text, used, domains={"com.microsoft": 1}))
    for node in model.graph:
        node.metadata_props[SCHEME_KEY] = "int3 g32 sym"
    return model


def _product(inputs: str = "x, b, s", output: str = "y") -> str:
    return f"{output} = com.microsoft.MatMulNBits<K={K}, N={N}, bits=4, block_size=32, accuracy_level=4>({inputs})"


def _feed() -> dict[str, Array]:
    return {"x": np.random.default_rng(1).standard_normal((3, K)).astype(np.float32)}


@pytest.mark.parametrize(("inputs", "bias"), [("x, b, s", {}), ("x, c, s, z", {}), ("x, c, s, z, , f", {"f": np.ones(N, np.float32)})])  # fmt: skip
def test_three_quarters_of_the_bytes_have_the_same_numbers(inputs: str, bias: dict[str, Array]) -> None:
    before = _model(_product(inputs), **bias)
    expected = run(ir.serde.serialize_model(before), _feed())
    entry = StoreThreeBits()
    after, modified = apply_pass(entry, before)
    assert modified and not entry.left
    (node,) = after.graph
    assert (node.domain, node.op_type) == (OUR_DOMAIN, "MatMul3Bits")
    assert [lowered.operator for lowered in entry.lowered] == ["ai.qcompiler::MatMul3Bits"]
    assert [function.name for function in after.functions.values()] == ["MatMul3Bits"]
    assert node.inputs[1].const_value.shape == (N, GROUPS, 12)
    assert_equal_outputs(expected, run(after, _feed()), SAME)  # no library of ours: the body runs
    assert not apply_pass(StoreThreeBits(), after)[1]


def test_they_are_reported_as_three_bits() -> None:
    after, _ = apply_pass(StoreThreeBits(), _model(_product()))
    (stored,) = read_products(after)
    assert (stored.bits, stored.shape, stored.dtype) == (3, (N, K), "uint3")
    assert stored.bytes == N * GROUPS * (12 + 4)


def test_products_on_one_x_are_joined() -> None:
    nodes = f"{_product()} {_product('x, c, s, z', 'u')}"
    before = _model(nodes, f"float[M,{N}] y, float[M,{N}] u")
    expected = run(ir.serde.serialize_model(before), _feed())
    short, _ = apply_pass(StoreThreeBits(), before)
    after, _ = apply_pass(JoinProducts(), short)
    assert op_types(after) == ["MatMul3BitsPair"]
    assert [function.name for function in after.functions.values()] == ["MatMul3BitsPair"]
    assert [(stored.bits, stored.symmetric) for stored in read_products(after)] == [(3, True), (3, False)]
    assert_equal_outputs(expected, run(after, _feed()), SAME)


def test_three_and_four_bits_stay_apart() -> None:
    before = _model(f"{_product()} {_product('x, c, s, z', 'u')}", f"float[M,{N}] y, float[M,{N}] u")
    before.graph[1].metadata_props[SCHEME_KEY] = "int4 g32 asym"
    short, _ = apply_pass(StoreThreeBits(), before)
    after, modified = apply_pass(JoinProducts(), short)
    assert not modified and op_types(after) == ["MatMul3Bits", "MatMulNBits"]
    assert {function.name for function in after.functions.values()} == {"MatMul3Bits", "MatMulNBits"}


@pytest.mark.parametrize("label", ["int4 g32 sym", ""])
def test_weights_of_other_bits_are_not_looked_at(label: str) -> None:
    model = _model(_product())
    model.graph[0].metadata_props[SCHEME_KEY] = label
    entry = StoreThreeBits()
    assert not apply_pass(entry, model)[1] and not entry.left


@pytest.mark.parametrize(
    ("nodes", "outputs", "constants", "reason"),
    [
        (f"{_product()} u = Identity(b)", f"float[M,{N}] y, uint8[{N},{GROUPS},16] u", {}, "read by another node too"),
        (_product(), f"float[M,{N}] y", {"b": _bytes(0, 16, N, GROUPS, 16)}, "its codes do not fit into 3 bits"),
        (_product("x, c, s, z"), f"float[M,{N}] y", {"z": np.full((N, 2), 0x80, np.uint8)}, "its zero points do not fit into 3 bits"),
        (_product("x, c, s, z") + " u = Identity(z)", f"float[M,{N}] y, uint8[{N},2] u", {}, "its zero points are read by another node too"),
    ],
)  # fmt: skip
def test_what_stays_in_four_says_why(
    nodes: str, outputs: str, constants: dict[str, Array], reason: str
) -> None:
    entry = StoreThreeBits()
    after, modified = apply_pass(entry, _model(nodes, outputs, **constants))
    assert not modified and "MatMulNBits" in op_types(after)
    (line,) = entry.left
    assert reason in line and line.endswith("; it stays in 4")
