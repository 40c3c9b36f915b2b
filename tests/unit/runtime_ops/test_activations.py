"""Products with an activation in them, in ONNX Runtime: our library, the operator's body, and the definition in NumPy."""

import math

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import helper

from qcompiler.graph.activation import KINDS, Activation, Kind
from qcompiler.graph.own_matmul_nbits import provide, with_activation
from qcompiler.graph.session_errors import SESSION_ERRORS
from qcompiler.runtime import register
from tests.nbits_product import EPSILON, Array, Product, activations

FUNCTIONS = [*(Activation(kind) for kind in KINDS), Activation("QuickGelu", 1.702)]
STEEPEST = 1.13  # slope of any of them


def _model(
    product: Product, kind: Kind, alpha: float | int | None = None, opset: int = 21
) -> onnx.ModelProto:
    model = product.model([None, product.k], opset=opset)
    (node,) = model.graph.node
    node.op_type = with_activation(kind, product.op)
    if alpha is not None:
        node.attribute.append(helper.make_attribute("alpha", alpha))
    loaded = ir.serde.deserialize_model(model)
    loaded.functions.clear()
    provide(loaded, node.op_type)
    return ir.serde.serialize_model(loaded)


def _of(product: Product, function: Activation) -> onnx.ModelProto:
    return _model(product, function.kind, function.alpha if function.kind == "QuickGelu" else None)


def _session(model: onnx.ModelProto, ours: bool = True, optimized: bool = True) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if ours:
        register(options)
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("m", [0, 1, 600])
@pytest.mark.parametrize("n", [1, 33])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("function", FUNCTIONS, ids=str)
def test_numbers(function: Activation, bits: int, n: int, m: int) -> None:
    product = Product(n, bits=bits, symmetric=bits == 4, biased=n != 33)
    x = activations(m, 100)
    (found,) = _session(_of(product, function)).run(None, {"x": x})
    sums = product.expected(x).astype(np.float64)
    # 5 groups and 4 epsilons each as of a product alone, and 3 epsilons of what the function is of.
    size = float(np.abs(sums).max(initial=1))
    np.testing.assert_allclose(found, function.of(sums), rtol=0, atol=(STEEPEST * 20 + 3) * EPSILON * size)


@pytest.mark.parametrize("optimized", [True, False])
@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("function", FUNCTIONS, ids=str)
def test_the_body_has_the_same_function_of_its_product(
    function: Activation, bits: int, optimized: bool
) -> None:
    product = Product(33, bits=bits, biased=True)
    x = activations(5, 100)
    plain = product.model([None, 100])
    (sums,) = _session(plain, ours=False, optimized=optimized).run(None, {"x": x})
    (found,) = _session(_of(product, function), ours=False, optimized=optimized).run(None, {"x": x})
    # ONNX Runtime's own functions, or what it fuses of their nodes: some epsilons of the sums.
    size = float(np.abs(sums).max())
    np.testing.assert_allclose(found, function.of(sums.astype(np.float64)), rtol=0, atol=8 * EPSILON * size)


@pytest.mark.parametrize("function", FUNCTIONS, ids=str)
def test_numbers_that_are_none(function: Activation) -> None:
    bias = np.zeros(40, np.float32)
    bias[:6] = [np.inf, -np.inf, np.nan, 3e38, -3e38, -200]
    product = Product(symmetric=True, constants={"bias": bias})
    x = np.zeros((2, 100), np.float32)
    x[1, 7] = np.nan
    (found,) = _session(_of(product, function)).run(None, {"x": x})
    below = 0 if function.kind == "Relu" else math.nan  # of -infinity, times 0
    np.testing.assert_array_equal(found[0, :6], np.array([np.inf, below, np.nan, 3e38, 0, 0], np.float32))
    assert np.isnan(found[1]).all()  # relu of NaN too


def test_the_shape_of_the_output_is_inferred() -> None:
    model = _model(Product(), "Gelu")
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", 1, ["M", 100]))
    (output,) = _session(model).get_outputs()
    assert output.shape == ["M", 40] and output.type == "tensor(float)"


@pytest.mark.parametrize(
    ("alpha", "said"),
    [
        (None, "attribute alpha is missing or not a float"),
        (1, "attribute alpha is missing or not a float"),
        (math.inf, "attribute alpha is not finite"),
        (math.nan, "attribute alpha is not finite"),
    ],
)
def test_an_alpha_that_is_none_is_refused(alpha: float | int | None, said: str) -> None:
    model = _model(Product(), "QuickGelu", alpha)
    del model.functions[:]
    with pytest.raises(SESSION_ERRORS, match=f"product: {said}"):
        _session(model, optimized=False)


def test_codes_of_4_bits_are_refused_by_an_operator_of_3() -> None:
    model = _model(Product(), "Relu")
    model.graph.node[0].op_type = "MatMul3BitsRelu"
    with pytest.raises(SESSION_ERRORS, match="bits are 4; 3 are possible"):
        _session(model, optimized=False)


def test_runs_on_all_threads_have_the_bits_of_one() -> None:
    product = Product(2000, 600, block_size=64, biased=True)
    model, x = _of(product, Activation("Gelu")), activations(40, 600)
    alone = ort.SessionOptions()
    alone.intra_op_num_threads = 1
    register(alone)
    expected: list[Array] = ort.InferenceSession(
        model.SerializeToString(), alone, providers=["CPUExecutionProvider"]
    ).run(None, {"x": x})
    np.testing.assert_array_equal(_session(model).run(None, {"x": x})[0], expected[0])
