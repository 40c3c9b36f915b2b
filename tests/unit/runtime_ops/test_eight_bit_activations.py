"""ai.qcompiler::DynamicQuantMatMul and QLinearMatMul in ONNX Runtime: numbers, bodies, and what they refuse."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

from qcompiler.graph import own_dynamic_matmul, own_qlinear_matmul
from qcompiler.graph.operator_body import OUR_DOMAIN
from qcompiler.graph.session_errors import SESSION_ERRORS
from qcompiler.report.quantized_products import read_products
from qcompiler.runtime import register
from tests.nbits_product import EPSILON, Array, Product, activations

WEIGHTS = ("codes", "scales", "zero_points", "bias")


def _model(
    op: str, provide: Callable[[ir.Model], None], product: Product, x_type: Any, more: dict[str, Array]
) -> onnx.ModelProto:
    """``more``: constants between x and those of the weight."""
    names = [*more, *(name if name in product.constants else "" for name in WEIGHTS)]
    while not names[-1]:
        names.pop()
    node = helper.make_node(op, ["x", *names], ["y"], "product", domain=OUR_DOMAIN, **product.attributes)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(x_type))
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", kind, ["M", product.k])],
        [helper.make_tensor_value_info("y", 1, None)],
        [numpy_helper.from_array(array, name) for name, array in {**more, **product.constants}.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(OUR_DOMAIN, 1)]
    loaded = ir.serde.deserialize_model(helper.make_model(graph, opset_imports=opsets, ir_version=10))
    provide(loaded)
    return ir.serde.serialize_model(loaded)


def dynamic(product: Product) -> onnx.ModelProto:
    return _model(own_dynamic_matmul.OP, own_dynamic_matmul.provide, product, np.float32, {})


def static(product: Product, x_type: Any, x_scale: Any, x_zero_point: Any) -> onnx.ModelProto:
    more = {"x_scale": np.array(x_scale), "x_zero_point": np.array(x_zero_point)}
    return _model(own_qlinear_matmul.OP, own_qlinear_matmul.provide, product, x_type, more)


def session(model: onnx.ModelProto, ours: bool = True) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if ours:
        register(options)
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _close(product: Product, found: Array, expected: Array, largest: float) -> None:
    """``largest``: of the numbers that are added up, for a rounding of each group's part and one for the sum, in float32."""
    parts = -(-product.k // min(product.block_size, 128)) + 2
    np.testing.assert_allclose(found, expected, rtol=0, atol=4 * parts * EPSILON * largest)


def _sizes(m: int) -> list[Any]:
    return [pytest.param(n, k, m, id=f"{n}x{k}, {m} rows") for n, k in ((1, 1), (40, 100), (33, 3000))]


def _dynamic_expected(product: Product, x: Array) -> Array:
    codes, scales, points, bias = product.numbers
    return own_dynamic_matmul.reference(
        x, codes, scales, points, bias, bits=product.bits, block_size=product.block_size
    )


@pytest.mark.parametrize("one_scale", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize(("n", "k", "m"), [*_sizes(1), *_sizes(14), *_sizes(0)])
def test_rows_have_one_scale(n: int, k: int, m: int, bits: int, symmetric: bool, one_scale: bool) -> None:
    product = Product(n, k, bits, 32, symmetric, biased=True, one_scale=one_scale)
    x = activations(m, k) * np.linspace(0.1, 10, m, dtype=np.float32)[:, None]
    found, expected = session(dynamic(product)).run(None, {"x": x})[0], _dynamic_expected(product, x)
    _close(product, found, expected, float(np.abs(expected).max(initial=1)))


def test_a_row_with_infinity_is_nan() -> None:
    product = Product(40, 300, 8, 32, True, one_scale=True)
    x = activations(14, 300)
    x[3, 7], x[9, 299] = np.inf, np.nan
    found = session(dynamic(product)).run(None, {"x": x})[0]
    assert np.flatnonzero(np.isnan(found).all(1)).tolist() == [3, 9] and np.isnan(found).sum() == 80


@pytest.mark.parametrize("bits", [4, 8])
def test_the_body_of_the_dynamic_product_has_its_numbers(bits: int) -> None:
    product = Product(40, 100, bits, 32, True, biased=True, one_scale=True)
    x = activations(5, 100)
    x[2] = 0
    found, expected = (
        session(dynamic(product), ours=False).run(None, {"x": x})[0],
        _dynamic_expected(product, x),
    )
    # Sums of float32 in an order of its own: 100 roundings.
    np.testing.assert_allclose(found, expected, rtol=0, atol=100 * EPSILON * float(np.abs(expected).max()))


@pytest.mark.parametrize(("x_type", "zero_point"), [(np.int8, 0), (np.int8, -128), (np.int8, 5), (np.uint8, 0), (np.uint8, 128), (np.uint8, 200)])  # fmt: skip
@pytest.mark.parametrize(
    ("bits", "symmetric", "one_scale"),
    [(8, True, True), (8, False, False), (4, True, False), (2, False, True)],
)
@pytest.mark.parametrize(("n", "k", "m"), [*_sizes(1), *_sizes(14)])
def test_activations_in_bytes(
    n: int, k: int, m: int, bits: int, symmetric: bool, one_scale: bool, x_type: Any, zero_point: int
) -> None:
    product = Product(n, k, bits, 32, symmetric, biased=True, one_scale=one_scale)
    kind = np.iinfo(x_type)
    x = np.random.default_rng(m).integers(kind.min, kind.max + 1, (m, k)).astype(x_type)
    x[0, 0], x[-1, -1] = kind.min, kind.max
    codes, scales, points, bias = product.numbers
    expected = own_qlinear_matmul.reference(
        x, 0.03, zero_point, codes, scales, points, bias, bits=bits, block_size=32
    )
    model = static(product, x_type, np.float32(0.03), x_type(zero_point))
    # What a zero point adds is taken off in floats: the sums without it bound the rounding.
    w = own_qlinear_matmul.weights(codes, scales, points, bits=bits, block_size=32)
    largest = float(
        np.abs(expected).max()
        + 0.03 * 256 * np.abs(w.sum(1)).max()
        + 0.03 * 128 * np.abs(w).sum(1).max() / np.sqrt(k)
    )
    _close(product, session(model).run(None, {"x": x})[0], expected, largest)
    # Sums of float32 in an order of its own, and ONNX Runtime's own rounding of the scale times the code.
    body = session(model, ours=False).run(None, {"x": x})[0]
    np.testing.assert_allclose(
        body, expected, rtol=0, atol=(k + 4) * EPSILON * float(np.abs(w).sum(1).max() * 0.03 * 256)
    )


def test_their_weights_are_reported() -> None:
    product = Product(40, 100, 4, 32)
    for model in (dynamic(product), static(product, np.int8, np.float32(1), np.int8(0))):
        (weight,) = read_products(ir.serde.deserialize_model(model))
        assert (weight.shape, weight.bits, weight.group_size, weight.symmetric) == ((40, 100), 4, 32, False)


STATIC_REFUSED: list[tuple[Any, Any, Any, str]] = [
    (np.int8, np.float32(np.inf), np.int8(0), "x_scale is not finite"),
    (np.int8, np.ones(2, np.float32), np.int8(0), "x_scale has 2 elements"),
    (np.int8, np.float32(1), np.float32(0), "x_zero_point is neither int8 nor uint8"),
    (np.int8, np.float32(1), np.zeros(40, np.int8), "x_zero_point has 40 elements"),
]


@pytest.mark.parametrize(
    ("x_type", "scale", "zero_point", "said"), STATIC_REFUSED, ids=[case[-1] for case in STATIC_REFUSED]
)
def test_a_bad_static_product_is_refused(x_type: Any, scale: Any, zero_point: Any, said: str) -> None:
    model = static(Product(), x_type, scale, zero_point)
    model.functions.clear()  # the body's own checks are not meant
    with pytest.raises(SESSION_ERRORS, match=f"product: {said}"):
        session(model)


def test_activations_of_another_type_than_their_zero_point_are_refused() -> None:
    model = static(Product(), np.uint8, np.float32(1), np.int8(0))
    model.functions.clear()
    running = session(model)
    with pytest.raises(SESSION_ERRORS, match="product: x is not int8"):
        running.run(None, {"x": np.zeros((2, 100), np.uint8)})
