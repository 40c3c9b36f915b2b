"""Products of a few bits with activations that stay float32 (accuracy_level 1): their numbers, alone and joined, and ONNX Runtime's own."""

from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from qcompiler.graph.own_matmul_nbits import provide, with_gate, with_residual
from tests.nbits_product import EPSILON, Array, Product, activations, joined, session

FLOATS = {"accuracy_level": 1}


def _assert_floats(
    product: Product, found: Array, x: Array, scale: Array | float = 1.0, more: int = 0
) -> None:
    """``found`` within 4 epsilons of the sum of the parts' sizes: more than rounding of any order shows, of which parts have changing
    signs, and a hundredth of what rounding x to 8 bits changes. ``more``: roundings behind the product.
    """
    expected = product.expected(x)
    sizes = np.abs(x).astype(np.float64) @ np.abs(product.weights()).astype(np.float64).T
    bias = product.numbers[3]
    sizes += 0 if bias is None else np.abs(bias)
    np.testing.assert_array_less(
        np.abs(found - expected * scale), (4 + more) * EPSILON * sizes * np.abs(scale) + 1e-30
    )


@pytest.mark.parametrize("m", [1, 3, 4, 5, 13, 600])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_numbers(bits: int, symmetric: bool, m: int) -> None:
    product = Product(bits=bits, symmetric=symmetric, biased=True, attributes=FLOATS)
    x = activations(m, 100)
    _assert_floats(product, session(product.model(["M", 100])).run(None, {"x": x})[0], x)


@pytest.mark.parametrize("m", [1, 30])
@pytest.mark.parametrize("block_size", [16, 32, 64, 128, 256])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (17, 300), (64, 256), (2000, 1200)])
def test_blocks(block_size: int, n: int, k: int, m: int) -> None:
    product = Product(n, k, block_size=block_size, scale_type=np.float16, attributes=FLOATS)
    x = activations(m, k)
    _assert_floats(product, session(product.model(["M", k])).run(None, {"x": x})[0], x)


def test_rows_that_do_not_fit_the_caches() -> None:
    product = Product(33, 4096, block_size=128, attributes=FLOATS)
    x = activations(128, 4096)
    _assert_floats(product, session(product.model(["M", 4096])).run(None, {"x": x})[0], x)


@pytest.mark.parametrize("m", [1, 20])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_onnx_runtime_has_the_same_numbers(bits: int, symmetric: bool, m: int) -> None:
    product = Product(40, 300, bits, symmetric=symmetric, attributes=FLOATS)
    x = activations(m, 300)
    stock = session(product.model(["M", 300]), ours=False).run(None, {"x": x})[0]
    _assert_floats(product, stock, x)  # where our library is not, the body runs
    ours = session(product.model(["M", 300])).run(None, {"x": x})[0]
    assert not np.array_equal(
        ours, session(replace(product, attributes={}).model(["M", 300])).run(None, {"x": x})[0]
    )


@pytest.mark.parametrize("ours", [True, False])
def test_without_the_attribute_activations_have_8_bits(ours: bool) -> None:
    x = activations(5, 100)
    said, unsaid = (
        session(Product(attributes=attributes).model(["M", 100]), ours=ours).run(None, {"x": x})[0]
        for attributes in ({"accuracy_level": 4}, {})
    )
    np.testing.assert_array_equal(said, unsaid)


@pytest.mark.parametrize("m", [1, 6])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_spread_as_in_floats(bad: float, m: int) -> None:
    product = Product(bits=2, symmetric=True, attributes=FLOATS)
    x = activations(m, 100)
    x[m - 1, 33] = bad
    with np.errstate(invalid="ignore"):
        expected = x @ product.weights().T
    found = session(product.model(["M", 100])).run(None, {"x": x})[0]
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
    np.testing.assert_array_equal(found[np.isinf(expected)], expected[np.isinf(expected)])
    assert np.isfinite(found[: m - 1]).all()


@pytest.mark.parametrize("ours", [True, False])
@pytest.mark.parametrize("m", [0, 1, 7, 520])
@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("sizes", [(40, 16), (17, 64, 40)])
def test_joined_products(sizes: tuple[int, ...], bits: int, m: int, ours: bool) -> None:
    products = [
        Product(n, bits=bits, symmetric=index == 1, biased=index != 1, attributes=FLOATS)
        for index, n in enumerate(sizes)
    ]
    x = activations(m, 100)
    for product, found in zip(
        products, session(joined(products), ours=ours).run(None, {"x": x}), strict=True
    ):
        _assert_floats(product, found, x)


def _silu(v: Array) -> Array:
    return v / (1 + np.exp(-v.astype(np.float64)))


def _with_end(products: list[Product], op: str) -> onnx.ModelProto:
    """The model of ``joined`` as an operator of one output."""
    model = joined(products)
    (node,) = model.graph.node
    node.op_type = op
    del node.output[1:], model.graph.output[1:]
    if op == with_residual():
        node.input.append("residual")
        next(a for a in node.attribute if a.name == "N_0").name = "N"
        model.graph.input.append(helper.make_tensor_value_info("residual", 1, ["M", products[0].n]))
    loaded = ir.serde.deserialize_model(model)
    loaded.functions.clear()
    provide(loaded, op)
    return ir.serde.serialize_model(loaded)


@pytest.mark.parametrize("ours", [True, False])
@pytest.mark.parametrize("m", [1, 30])
def test_a_gate_and_a_residual(m: int, ours: bool) -> None:
    products = [Product(33, biased=True, attributes=FLOATS), Product(33, symmetric=True, attributes=FLOATS)]
    x, residual = activations(m, 100), np.random.default_rng(0).standard_normal((m, 33)).astype(np.float32)
    (added,) = session(_with_end(products[:1], with_residual()), ours=ours).run(
        None, {"x": x, "residual": residual}
    )
    _assert_floats(products[0], added - residual.astype(np.float64), x, more=1)
    (gated,) = session(_with_end(products, with_gate()), ours=ours).run(None, {"x": x})
    first, second = (product.expected(x).astype(np.float64) for product in products)
    # Errors of both products, of which the gate is at most as large as its own, and six roundings.
    atol = 40 * EPSILON * float(np.abs(first).max() * np.abs(second).max())
    np.testing.assert_allclose(gated, second * _silu(first), rtol=0, atol=atol)
