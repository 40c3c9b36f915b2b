"""ai.qcompiler::SparseMatMul in ONNX Runtime: its numbers, what it refuses, and the same model without our library."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest

from qcompiler.graph.session_errors import SESSION_ERRORS
from qcompiler.graph.sparse_matmul import reference
from qcompiler.runtime import register
from tests.sparse_product import Array, SparseProduct


def session(model: onnx.ModelProto, ours: bool = True, optimized: bool = True) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if ours:
        register(options)
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def activations(*shape: int, dtype: Any = np.float32) -> Array:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("m", [1, 2, 4, 5, 17, 600])
@pytest.mark.parametrize("x_type", [np.float32, np.float16])
@pytest.mark.parametrize("columns_type", [np.uint16, np.int32])
@pytest.mark.parametrize("values_type", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_numbers(values_type: Any, columns_type: type, x_type: type, m: int) -> None:
    product = SparseProduct(values_type=values_type, columns_type=columns_type, x_type=x_type)
    x = activations(1, m, 100, dtype=x_type)
    product.assert_close(session(product.model()).run(None, {"x": x})[0], x)


@pytest.mark.parametrize("m", [1, 40])
def test_a_matrix_that_all_threads_share(m: int) -> None:
    product = SparseProduct(2000, 1200)
    x = activations(m, 1200)
    product.assert_close(session(product.model([None, 1200])).run(None, {"x": x})[0], x)


def test_a_row_of_x_has_the_same_numbers_however_many_there_are() -> None:
    product = SparseProduct(300, 700)
    running = session(product.model([None, 700]))
    x = activations(50, 700)
    whole = running.run(None, {"x": x})[0]
    for rows in (1, 3, 20):
        np.testing.assert_array_equal(running.run(None, {"x": x[:rows]})[0], whole[:rows])


def test_many_rows_of_a_wide_matrix() -> None:
    product = SparseProduct(3, 60000)
    x = activations(100, 60000)
    product.assert_close(session(product.model([None, 60000])).run(None, {"x": x})[0], x)


@pytest.mark.parametrize("shape", [(100,), (2, 3, 4, 100), (0, 3, 100), (1, 0, 100)])
def test_any_rank_and_no_rows(shape: tuple[int, ...]) -> None:
    product = SparseProduct()
    x = activations(*shape)
    product.assert_close(session(product.model([None] * (len(shape) - 1) + [100])).run(None, {"x": x})[0], x)


def test_no_numbers_and_no_columns() -> None:
    empty = {
        "values": np.zeros(0, np.float16),
        "columns": np.zeros(0, np.uint16),
        "offsets": np.zeros(4, np.int32),
    }
    running = session(SparseProduct(3, 5, constants=empty).model([None, None]))
    for shape in ((2, 5), (1, 0)):
        found = running.run(None, {"x": np.ones(shape, np.float32)})[0]
        np.testing.assert_array_equal(found, np.zeros((shape[0], 3), np.float32))


@pytest.mark.parametrize(("x_type", "said"), [(np.float32, "tensor(float)"), (np.float16, "tensor(float16)")])
def test_the_shape_of_the_output_is_inferred(x_type: type, said: str) -> None:
    (output,) = session(SparseProduct(x_type=x_type).model()).get_outputs()
    assert output.shape == ["B", "M", 40] and output.type == said


@pytest.mark.parametrize("optimized", [True, False])
@pytest.mark.parametrize("x_type", [np.float32, np.float16])
@pytest.mark.parametrize("m", [1, 20])
def test_without_our_library_the_body_runs(m: int, x_type: type, optimized: bool) -> None:
    product = SparseProduct(x_type=x_type)
    x = activations(1, m, 100, dtype=x_type)
    product.assert_close(session(product.model(), ours=False, optimized=optimized).run(None, {"x": x})[0], x)
    product.assert_close(session(product.model(), optimized=optimized).run(None, {"x": x})[0], x)


def test_the_reference_has_its_numbers() -> None:
    product = SparseProduct()
    x = activations(3, 100)
    # Its sums are taken in float32 from left to right: rows of up to 100 numbers.
    found = reference(x, *product.constants.values())
    np.testing.assert_allclose(found, x @ product.dense().T, rtol=0, atol=100 * np.finfo(np.float32).eps * 10)


def test_runs_side_by_side_on_one_session() -> None:
    product = SparseProduct(400, 600)
    running = session(product.model([None, 600]))
    inputs = [activations(m, 600) for m in (1, 2, 7, 33, 64, 90)] * 8
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda x: running.run(None, {"x": x})[0], inputs))
    for x, y in zip(inputs, found, strict=True):
        product.assert_close(y, x)


def _with(name: str, array: Array) -> Callable[[], onnx.ModelProto]:
    return lambda: SparseProduct(2, 10, constants={**SMALL, name: array}).model()


SMALL = {
    "values": np.ones(4, np.float32),
    "columns": np.array([0, 3, 1, 9], np.int32),
    "offsets": np.array([0, 2, 4], np.int32),
}
REFUSED: list[tuple[Callable[[], onnx.ModelProto], str]] = [
    (_with("values", np.ones(5, np.float32)), "columns has 4 elements; the values make it 5"),
    (_with("values", np.ones(4, np.int32)), "values are none of float32, float16 and bfloat16"),
    (_with("columns", np.array([0, 3, 1], np.int32)), "columns has 3 elements; the values make it 4"),
    (_with("columns", np.array([0, 3, 1, 9], np.int64)), "columns are neither uint16 nor int32"),
    (_with("columns", np.array([0, 3, -1, 9], np.int32)), "columns of row 1 do not rise from 0 on: -1 follows -1"),
    (_with("columns", np.array([3, 3, 1, 9], np.int32)), "columns of row 0 do not rise from 0 on: 3 follows 3"),
    (_with("offsets", np.array([0, 2, 5], np.int32)), "offsets go from 0 to 5; .* the number of values, 4"),
    (_with("offsets", np.array([1, 2, 4], np.int32)), "offsets go from 1 to 4"),
    (_with("offsets", np.array([0, 5, 4], np.int32)), "offsets fall after row 1"),
    (_with("offsets", np.array([0, -9, 4], np.int32)), "offsets fall after row 0"),
    (_with("offsets", np.array([], np.int32)), "offsets has no elements"),
    (_with("offsets", np.array([0, 2, 4], np.int64)), r"tensor\(int64\)"),
    (lambda: SparseProduct().model(given=("values",)), "values is not constant"),
    (lambda: SparseProduct().model(given=("columns",)), "columns is not constant"),
    (lambda: SparseProduct().model(given=("offsets",)), "offsets is not constant"),
    (lambda: SparseProduct(x_type=np.float64).model(), r"tensor\(double\)"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "said"), REFUSED, ids=[said for _, said in REFUSED])
def test_a_bad_node_is_refused_when_the_session_is_created(
    make: Callable[[], onnx.ModelProto], said: str
) -> None:
    with pytest.raises(SESSION_ERRORS, match=said):
        session(make(), optimized=False)


def test_rows_that_are_too_short_are_refused() -> None:
    running = session(SparseProduct().model([None, None, None]))
    with pytest.raises(SESSION_ERRORS, match="product: the rows of x have 99 numbers; columns go up to 99"):
        running.run(None, {"x": activations(1, 2, 99)})
    assert running.run(None, {"x": activations(1, 2, 101)})[0].shape == (1, 2, 40)


def test_a_scalar_is_refused() -> None:
    with pytest.raises(SESSION_ERRORS, match="x has no dimensions"):
        session(SparseProduct().model([])).run(None, {"x": np.array(1, np.float32)})
