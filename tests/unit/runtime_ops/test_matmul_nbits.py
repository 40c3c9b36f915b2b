"""ai.qcompiler::MatMulNBits in ONNX Runtime: its numbers, what it refuses, and the same model without our library."""

import platform
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from qcompiler.graph.own_matmul_nbits import provide, with_gate, with_residual
from qcompiler.graph.session_errors import SESSION_ERRORS
from tests.nbits_product import (
    EPSILON,
    Array,
    Product,
    activations,
    assert_close,
    assert_near,
    branches,
    joined,
    session,
)


@pytest.mark.parametrize("m", [1, 3, 13, 600])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_numbers(bits: int, symmetric: bool, m: int) -> None:
    product = Product(bits=bits, symmetric=symmetric, biased=True)
    x = activations(2, m, 100)
    assert_close(product, session(product.model()).run(None, {"x": x})[0], x)


@pytest.mark.parametrize("block_size", [16, 32, 64, 128, 256])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (17, 300), (64, 256)])
@pytest.mark.parametrize("bits", [3, 4])
def test_blocks(bits: int, block_size: int, n: int, k: int) -> None:
    product = Product(n, k, bits, block_size)
    x = activations(1, 5, k)
    assert_close(product, session(product.model()).run(None, {"x": x})[0], x)


def test_a_matrix_that_all_threads_share() -> None:
    product = Product(2000, 1200, block_size=64)
    x = activations(1, 30, 1200)
    assert_close(product, session(product.model()).run(None, {"x": x})[0], x)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
def test_optional_inputs_and_float16_scales(symmetric: bool, biased: bool) -> None:
    product = Product(symmetric=symmetric, biased=biased, scale_type=np.float16)
    x = activations(1, 2, 100)
    assert_close(product, session(product.model()).run(None, {"x": x})[0], x)


@pytest.mark.parametrize("shape", [(100,), (2, 3, 4, 100), (0, 3, 100), (1, 0, 100)])
def test_any_rank_and_no_rows(shape: tuple[int, ...]) -> None:
    product = Product()
    x = activations(*shape)
    assert_close(product, session(product.model([None] * (len(shape) - 1) + [100])).run(None, {"x": x})[0], x)


def test_numbers_that_are_none_make_their_row_nan() -> None:
    product = Product()
    x = activations(1, 3, 100)
    x[0, 1, 99] = np.inf
    found = session(product.model()).run(None, {"x": x})[0]
    assert np.isnan(found[0, 1]).all() and np.isfinite(found[0, [0, 2]]).all()


def test_the_shape_of_the_output_is_inferred() -> None:
    (output,) = session(Product().model()).get_outputs()
    assert output.shape == ["B", "M", 40] and output.type == "tensor(float)"


@pytest.mark.parametrize("optimized", [True, False])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_without_our_library_the_body_runs(bits: int, symmetric: bool, optimized: bool) -> None:
    product = Product(bits=bits, symmetric=symmetric, biased=symmetric)
    x = activations(1, 6, 100)
    stock = session(product.model(), ours=False, optimized=optimized).run(None, {"x": x})[0]
    ours = session(product.model(), optimized=optimized).run(None, {"x": x})[0]
    # For any CPU; the next test is the tight one.
    assert_near(product, ours, stock, x)


@pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"),
    reason="ONNX Runtime's rounding of activations was measured on x86-64 alone; Arm's kernels may round whole rows",
)
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(
    ("bits", "block_size"), [(bits, size) for bits in (2, 3, 4, 8) for size in (16, 32, 64, 128) if (bits, size) != (2, 16)]
)  # fmt: skip
def test_the_body_has_our_numbers_where_it_rounds_activations(
    bits: int, block_size: int, symmetric: bool
) -> None:
    product = Product(40, 300, bits, block_size, symmetric)
    x = activations(1, 6, 300)
    rounding, floating = (
        session(replace(product, attributes={"accuracy_level": level}).model(), ours=False).run(
            None, {"x": x}
        )[0]
        for level in (4, 1)
    )
    if np.array_equal(rounding, floating):
        pytest.skip(
            "ONNX Runtime has no kernel with activations in 8 bits for this CPU: accuracy_level 4 computes as 1 does"
        )
    assert_close(product, rounding, x)


def test_runs_side_by_side_on_one_session() -> None:
    product = Product(400, 600, block_size=64)
    running = session(product.model())
    inputs = [activations(1, m, 600) for m in (1, 2, 7, 33, 64, 90)] * 8
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda x: running.run(None, {"x": x})[0], inputs))
    for x, y in zip(inputs, found, strict=True):
        assert_close(product, y, x)


def test_branches_read_a_weight_of_the_outer_graph() -> None:
    # Blocks of 256: ONNX Runtime's kernel, which has one activation scale for each, would be thousands of epsilons off.
    product = Product(40, 600, block_size=256)
    running = session(branches(product))
    x = activations(5, 600)
    for first, rows in ((True, x), (False, -x)):
        assert_close(product, running.run(None, {"x": x, "first": np.array(first)})[0], rows)


@pytest.mark.parametrize("m", [0, 1, 5, 600])
@pytest.mark.parametrize("sizes", [(40, 16), (1, 33), (17, 64, 40), (96, 32, 32)])
def test_joined_products_have_the_numbers_of_each(sizes: tuple[int, ...], m: int) -> None:
    products = [
        Product(n, symmetric=index == 1, biased=index != 1, scale_type=(np.float32, np.float16)[index % 2])
        for index, n in enumerate(sizes)
    ]
    x = activations(m, 100)
    for product, found in zip(products, session(joined(products)).run(None, {"x": x}), strict=True):
        assert_close(product, found, x)


def test_joined_products_have_their_body_and_their_shapes() -> None:
    products = [Product(17, biased=True), Product(40, symmetric=True), Product(16)]
    model = joined(products)
    assert [output.shape for output in session(model).get_outputs()] == [["M", 17], ["M", 40], ["M", 16]]
    x = activations(3, 100)
    for product, found in zip(products, session(model, ours=False).run(None, {"x": x}), strict=True):
        alone = session(product.model(["M", 100]), ours=False).run(None, {"x": x})[0]
        np.testing.assert_array_equal(found, alone)


def test_a_joined_product_that_is_wrong_is_refused() -> None:
    model = joined([Product(40), Product(16)])
    (columns,) = (a for a in model.graph.node[0].attribute if a.name == "N_1")
    columns.i = 17
    with pytest.raises(
        SESSION_ERRORS, match="products: codes has 1024 elements; the attributes make it 1088"
    ):
        session(model, optimized=False)
    model.graph.node[0].attribute.remove(columns)
    with pytest.raises(SESSION_ERRORS, match="products: attribute N_1 is missing"):
        session(model, optimized=False)


@pytest.mark.parametrize(("k", "m"), [(4096, 128), (4096, 132), (11008, 120), (1536, 345)])
def test_more_rows_than_are_near_at_once(k: int, m: int) -> None:
    product = Product(33, k, block_size=128)
    x = activations(m, k)
    assert_close(product, session(product.model(["M", k])).run(None, {"x": x})[0], x)


def _silu(v: Array) -> Array:
    return v / (1 + np.exp(-v.astype(np.float64)))


@pytest.mark.parametrize("ours", [True, False])
@pytest.mark.parametrize("m", [0, 1, 5, 600])
@pytest.mark.parametrize("n", [1, 33, 96])
def test_a_gate_and_a_residual_are_part_of_a_product(n: int, m: int, ours: bool) -> None:
    products = [Product(n, biased=True), Product(n, symmetric=True)]
    gated, added = joined(products), joined(products[:1])
    for model, op in ((gated, with_gate()), (added, with_residual())):
        (node,) = model.graph.node
        node.op_type = op
        del node.output[1:], model.graph.output[1:]
    (node,) = added.graph.node
    node.input.append("residual")
    next(a for a in node.attribute if a.name == "N_0").name = "N"
    added.graph.input.append(helper.make_tensor_value_info("residual", 1, ["M", n]))
    x, residual = activations(m, 100), np.random.default_rng(n).standard_normal((m, n)).astype(np.float32)
    first, second = (product.expected(x).astype(np.float64) for product in products)
    for model, feeds, expected in (
        (gated, {"x": x}, second * _silu(first)),
        (added, {"x": x, "residual": residual}, first + residual),
    ):
        loaded = ir.serde.deserialize_model(model)
        loaded.functions.clear()
        provide(loaded, model.graph.node[0].op_type)
        (found,) = session(ir.serde.serialize_model(loaded), ours=ours).run(None, feeds)
        # Six roundings more than a product has; ONNX Runtime's kernels may round activations otherwise.
        scale = float(np.abs(expected).max(initial=1))
        np.testing.assert_allclose(found, expected, rtol=0, atol=scale * (30 * EPSILON if ours else 0.05))


def test_a_residual_of_another_shape_is_refused() -> None:
    model = joined([Product(40)])
    (node,) = model.graph.node
    node.op_type = with_residual()
    node.input.extend(["residual"])
    next(a for a in node.attribute if a.name == "N_0").name = "N"
    model.graph.input.append(helper.make_tensor_value_info("residual", 1, None))
    del model.functions[:]
    running = session(model)
    with pytest.raises(SESSION_ERRORS, match="products: the residual has not the shape of the product"):
        running.run(None, {"x": activations(3, 100), "residual": np.zeros((1, 40), np.float32)})


def test_a_gate_of_other_columns_is_refused() -> None:
    model = joined([Product(40), Product(16)])
    (node,) = model.graph.node
    node.op_type = with_gate()
    del node.output[1:], model.graph.output[1:], model.functions[:]
    with pytest.raises(SESSION_ERRORS, match="products: N_0 is 40, but N_1 16; they have to be the same"):
        session(model, optimized=False)


def _without(product: Product, name: str) -> onnx.ModelProto:
    model = product.model()
    (attribute,) = (a for a in model.graph.node[0].attribute if a.name == name)
    model.graph.node[0].attribute.remove(attribute)
    return model


def _renamed(product: Product, op: str) -> onnx.ModelProto:
    model = product.model()
    model.graph.node[0].op_type = model.functions[0].name = op
    return model


REFUSED: list[tuple[Callable[[], onnx.ModelProto], str]] = [
    (lambda: _without(Product(), "bits"), "attribute bits is missing"),
    (lambda: _without(Product(), "K"), "attribute K is missing"),
    (lambda: Product(attributes={"N": 0}).model(), "attribute N is 0"),
    (lambda: Product(attributes={"N": -40}).model(), "attribute N is -40"),
    (lambda: Product(attributes={"K": 1 << 62}).model(), "attribute K is"),
    (lambda: Product(attributes={"K": 1 << 31, "N": 1 << 31}).model(), "codes has"),
    (lambda: Product(attributes={"bits": 5}).model(), "bits are 5"),
    (lambda: Product(attributes={"accuracy_level": 0}).model(), "attribute accuracy_level is 0; 1 and 4 are possible"),
    (lambda: Product(attributes={"accuracy_level": 2}).model(), "attribute accuracy_level is 2; 1 and 4 are possible"),
    (lambda: Product(attributes={"bits": 8}).model(), "codes has"),
    (lambda: Product(attributes={"bits": 3}).model(), "codes has 2560 elements; the attributes make it 1920"),
    (lambda: Product(bits=3, constants={"zero_points": np.full((40, 2), 16, np.uint8)}).model(), "zero_points are odd"),
    (lambda: Product(bits=3, constants={"zero_points": np.zeros((40, 1), np.uint8)}).model(), "zero_points has 40 elements"),
    (lambda: _renamed(Product(), "MatMul3Bits"), "bits are 4; 3 are possible"),
    (lambda: Product(attributes={"block_size": 24}).model(), "block_size is 24"),
    (lambda: Product(attributes={"block_size": 0}).model(), "block_size is 0"),
    (lambda: Product(attributes={"block_size": 64}).model(), "scales has 160 elements"),
    (lambda: Product(attributes={"N": 41}).model(), "codes has"),
    (lambda: Product(constants={"scales": np.ones((40, 5), np.float32)}).model(), "scales has 200 elements"),
    (lambda: Product(constants={"scales": np.ones((40, 4), np.int32)}).model(), "scales are neither float32 nor float16"),
    (lambda: Product(constants={"zero_points": np.zeros(79, np.uint8)}).model(), "zero_points has 79 elements"),
    (lambda: Product(constants={"codes": np.zeros((0,), np.uint8)}).model(), "codes has 0 elements"),
    (lambda: Product().model(given=("codes",)), "codes is not constant"),
    (lambda: Product().model(given=("scales",)), "scales is not constant"),
    (lambda: Product().model(given=("zero_points",)), "zero_points is not constant"),
    (lambda: Product().model(dtype=onnx.TensorProto.FLOAT16), r"tensor\(float16\)"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "said"), REFUSED, ids=[said for _, said in REFUSED])
def test_a_bad_node_is_refused_when_the_session_is_created(
    make: Callable[[], onnx.ModelProto], said: str
) -> None:
    with pytest.raises(SESSION_ERRORS, match=said):
        session(make(), optimized=False)


def test_rows_of_another_length_are_refused() -> None:
    running = session(Product().model([None, None, None]))
    with pytest.raises(SESSION_ERRORS, match="product: the last dimension of x is not K = 100"):
        running.run(None, {"x": activations(1, 2, 99)})
    assert running.run(None, {"x": activations(1, 2, 100)})[0].shape == (1, 2, 40)


def test_a_scalar_is_refused() -> None:
    running = session(Product().model([]))
    with pytest.raises(SESSION_ERRORS, match="the last dimension of x is not K = 100"):
        running.run(None, {"x": np.array(1, np.float32)})


def test_a_bias_of_another_length_is_refused() -> None:
    product = replace(Product(), constants={"bias": np.zeros(39, np.float32)})
    running = session(product.model(given=("bias",)))
    with pytest.raises(SESSION_ERRORS, match="bias has not N = 40 elements"):
        running.run(None, {"x": activations(1, 2, 100), "bias": np.zeros(39, np.float32)})
