"""LayOutForKernels: which weights are written as the kernels read them, and which are not, with the reason."""

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from qcompiler.graph.own_matmul_nbits import LAYOUT
from qcompiler.passes.lay_out_for_kernels import LayOutForKernels
from qcompiler.quant.kernel_lines import Lines, read_cells, read_codes
from qcompiler.report.quantized_products import read_products
from tests.nbits_product import Product
from tests.small_models import apply_pass, make_model

N, K = 40, 100
OURS = {"ai.qcompiler": 1, "com.microsoft": 1}


def _node(op: str = "MatMulNBits", inputs: str = "x, b, s", output: str = "y", block_size: int = 32) -> str:
    return f"{output} = ai.qcompiler.{op} <K = {K}, N = {N}, bits = 4, block_size = {block_size}> ({inputs})"


def _model(nodes: str, outputs: str = f"float[M,{N}] y", **constants: Any) -> onnx.ModelProto:
    """Our nodes, which may read b with scales s, and zero points z."""
    product = Product(N, K)
    names = {"b": "codes", "s": "scales", "z": "zero_points"}
    known = {short: product.constants[name] for short, name in names.items()} | constants
    used = {name: array for name, array in known.items() if f" {name}," in nodes or f" {name})" in nodes}
    return make_model(f"g (float[M,{K}] x, int64[M] i) => ({outputs}) {{ {nodes} }}", used, domains=OURS)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_numbers_are_the_same(bits: int) -> None:
    product = Product(N, K, bits)
    codes, scales, points, _ = product.numbers
    after = ir.serde.deserialize_model(product.model())
    assert LayOutForKernels()(after).modified and after.graph[0].attributes.get_int(LAYOUT) == 1
    sizes, found = Lines(N, K, bits, 32), {}
    for name in ("codes", "scales", "zero_points"):
        tensor = after.graph.initializers[name].const_value
        assert tensor is not None
        found[name] = tensor.numpy()
    np.testing.assert_array_equal(read_codes(found["codes"], sizes), codes)
    np.testing.assert_array_equal(read_cells(found["scales"], sizes), scales)
    np.testing.assert_array_equal(read_cells(found["zero_points"], sizes), points)
    assert not LayOutForKernels()(after).modified


def test_a_product_of_rounded_rows_is_laid_out_too() -> None:
    after, modified = apply_pass(LayOutForKernels(), _model(_node("DynamicQuantMatMul")))
    assert modified and after.graph[0].attributes.get_int(LAYOUT) == 1


def test_what_is_reported_of_them_is_the_same_but_for_their_bytes() -> None:
    model = ir.serde.deserialize_model(Product(N, K).model())
    (before,) = read_products(model)
    entry = LayOutForKernels()
    entry(model)
    (stored,) = read_products(model)
    for said in ("name", "shape", "dtype", "bits", "granularity", "group_size", "symmetric"):
        assert getattr(stored, said) == getattr(before, said)
    assert entry.saved == {stored.name: before.bytes - stored.bytes}


def test_a_table_that_a_product_reads_too_is_laid_out_once() -> None:
    table = _node("GatherNBits", "i, b, s", "u")
    after, modified = apply_pass(
        LayOutForKernels(), _model(f"{_node()} {table}", f"float[M,{N}] y, float[M,{K}] u")
    )
    assert modified and [node.attributes.get_int(LAYOUT) for node in after.graph] == [1, 1]


STAYS = [
    (f"{_node()} u = Identity( b)", "uint8[A,B,C] u", {}, "read by another node too"),
    (f"{_node()} u = Identity( s)", "float[A,B] u", {}, "read by another node too"),
    (f"{_node()} {_node(inputs='x, b, t', output='u')}", f"float[M,{N}] u", {"t": np.ones((N, 4), np.float32)}, "in other blocks too"),
    (f"t = Abs( s) {_node(inputs='x, b, t')}", "", {}, "its weight is computed"),
    (_node("GatherNBits", "i, b, t"), "", {"t": np.ones((N, 4), np.float16)}, "gathered in float16"),
    ("y = ai.qcompiler.MatMulCodebook <K = 96, N = 40, block_size = 32, quant_type = 1> (x, b, s)", "", {}, "numbers of a table"),
]  # fmt: skip


@pytest.mark.parametrize(("nodes", "output", "constants", "reason"), STAYS, ids=[case[3] for case in STAYS])
def test_what_stays_says_why(nodes: str, output: str, constants: dict[str, Any], reason: str) -> None:
    entry = LayOutForKernels()
    outputs = ", ".join([f"float[M,{N}] y", *([output] if output else [])])
    after, modified = apply_pass(entry, _model(nodes, outputs, **constants))
    assert not modified and not any(LAYOUT in node.attributes for node in after.graph)
    assert any(reason in line for line in entry.left), entry.left
    assert all(line.endswith("; it is packed when a session is created") for line in entry.left)


@pytest.mark.parametrize("shared", ["s", "z"])
def test_a_node_whose_weights_share_scales_or_zero_points_stays(shared: str) -> None:
    product = Product(N, K)
    constants = {
        "c": product.constants["codes"],
        "t": product.constants["scales"],
        "p": product.constants["zero_points"],
    }
    second = "c, s, p" if shared == "s" else "c, t, z"
    pair = f"y, u = ai.qcompiler.MatMulNBitsPair <K = {K}, N_0 = {N}, N_1 = {N}, bits = 4, block_size = 32> (x, b, s, z, , {second})"
    entry = LayOutForKernels()
    _, modified = apply_pass(entry, _model(pair, f"float[M,{N}] y, float[M,{N}] u", **constants))
    assert not modified and any("are those of several weights" in line for line in entry.left)


def test_what_shares_a_weight_with_a_node_that_stays_stays_too() -> None:
    pair = (
        "y, u = ai.qcompiler.MatMulNBitsPair "
        f"<K = {K}, N_0 = {N}, N_1 = {N}, bits = 4, block_size = 32> (x, b, s, , , c, t)"
    )
    other = _node(inputs="x, c, t", output="v")
    constants = {"c": Product(N, K).constants["codes"], "t": np.ones((N, 4), np.float32)}
    nodes, outputs = f"{pair} {other} w = Identity( b)", [f"float[M,{N}] {name}" for name in "yuv"]
    entry = LayOutForKernels()
    _, modified = apply_pass(entry, _model(nodes, ", ".join([*outputs, "uint8[A,B,C] w"]), **constants))
    assert not modified and any(
        "a node that stays as it is reads its weight too" in line for line in entry.left
    )
