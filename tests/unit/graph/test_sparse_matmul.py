"""SparseMatMul: what its body in plain ONNX computes is what the reference and a dense matrix say, for few rows and many."""

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from qcompiler.graph import sparse_matmul
from qcompiler.graph.operator_body import OUR_DOMAIN, VERSION
from qcompiler.graph.sparse_matmul import FEW
from qcompiler.passes.normalize import Normalize
from qcompiler.quant.outliers import Outliers
from tests.small_models import apply_pass, make_model, relative_error, run

N, K = 12, 40
NAMES: dict[Any, str] = {np.float32: "float", np.float16: "float16"}
# The same products summed in another order; a float16 result is rounded once.
ROUNDING = {np.float32: 1e-6, np.float16: 1e-3}


def _outliers(share: float = 0.1) -> Outliers:
    """Some rows have none, one is full."""
    rng = np.random.default_rng(0)
    mask = rng.random((N, K)) < share
    mask[3], mask[[0, 7, N - 1]] = True, False
    return Outliers.at(mask, rng.standard_normal((N, K)).astype(np.float32), "float16")


def _model(
    shape: str, dtype: Any, values: npt.NDArray[np.floating[Any]], columns: npt.NDArray[Any], opset: int = 21
) -> onnx.ModelProto:
    kind, parts = NAMES[dtype], _outliers()
    text = f"g ({kind}[{shape}] x) => ({kind}[{shape.replace(str(K), str(N))}] y) {{ y = Identity(x) }}"
    plain = make_model(
        text.replace("Identity(x)", "MatMul(x, w)"), {"w": np.zeros((K, N), dtype)}, opset=opset
    )
    model = ir.from_proto(plain)
    sparse_matmul.provide(model)
    constants = {"values": values, "columns": columns, "offsets": parts.offsets}
    inputs = [model.graph.inputs[0]]
    for name, array in constants.items():
        value = ir.Value(name=name, const_value=ir.Tensor(array, name=name))
        value.type, value.shape = ir.TensorType(value.const_value.dtype), ir.Shape(array.shape)  # type: ignore[union-attr]
        model.graph.register_initializer(value)
        inputs.append(value)
    old = model.graph[0]
    node = ir.node(sparse_matmul.OP, inputs, domain=OUR_DOMAIN, outputs=[ir.Value(name="y")])
    node.outputs[0].type, node.outputs[0].shape = old.outputs[0].type, old.outputs[0].shape
    model.graph.outputs[:] = [node.outputs[0]]
    model.graph.remove(old, safe=True)
    model.graph.append(node)
    del model.graph.initializers["w"]
    proto: onnx.ModelProto = ir.to_proto(model)
    onnx.checker.check_model(proto)
    return proto


@pytest.mark.parametrize("optimize", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("m", [0, 1, FEW, FEW + 1, 50])
def test_body_reference_and_dense_agree(m: int, dtype: Any, optimize: bool) -> None:
    parts = _outliers()
    model = _model("M,40", dtype, parts.values.astype(dtype), parts.columns.astype(np.uint16))
    x = np.random.default_rng(1).standard_normal((m, K)).astype(dtype)
    found = run(model, {"x": x}, optimize)["y"]
    meant = sparse_matmul.reference(x, parts.values, parts.columns, parts.offsets)
    dense = x.astype(np.float32) @ parts.dense(slice(None)).T
    assert found.dtype == meant.dtype == dtype and found.shape == meant.shape == (m, N)
    if m:
        assert relative_error(dense, found) <= ROUNDING[dtype]
        assert relative_error(dense, meant) <= ROUNDING[dtype]


@pytest.mark.parametrize("shape", [(K,), (2, 3, K), (1, 1, 9, K)])
@pytest.mark.parametrize("column", [np.uint16, np.int32])
def test_any_number_of_dimensions(shape: tuple[int, ...], column: Any) -> None:
    parts = _outliers()
    names = ",".join([*"BCD"[: len(shape) - 1], str(K)])
    model = _model(names, np.float32, parts.values, parts.columns.astype(column))
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    dense = x @ parts.dense(slice(None)).T
    assert relative_error(dense, run(model, {"x": x})["y"]) <= ROUNDING[np.float32]


@pytest.mark.parametrize("opset", [21, 23])
def test_a_fixed_shape_keeps_no_dense_matrix(opset: int, tmp_path: Any) -> None:
    """The optimizer knows which branch it is, and folds what is constant: a matrix in floats must not be."""
    parts = _outliers()
    model = _model(f"9,{K}", np.float32, parts.values, parts.columns.astype(np.uint16), opset)
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(1).standard_normal((9, K)).astype(np.float32)
    (found,) = session.run(None, {"x": x})
    assert relative_error(x @ parts.dense(slice(None)).T, found) <= ROUNDING[np.float32]
    kept = onnx.load(tmp_path / "optimized.onnx").graph.initializer
    assert max(np.prod(tensor.dims) for tensor in kept) <= 2 * parts.count  # row and column of each number


def test_it_stays_a_node_when_functions_are_inlined() -> None:
    parts = _outliers()
    model = _model("M,40", np.float32, parts.values, parts.columns.astype(np.uint16))
    loaded, _ = apply_pass(Normalize(), model)
    assert [node.op_type for node in loaded.graph] == [sparse_matmul.OP]
    assert len(loaded.functions) == 1


def test_a_model_gets_the_body_once() -> None:
    model = ir.from_proto(make_model("g (float[M,4] x) => (float[M,4] y) { y = Relu(x) }"))
    for _ in range(2):
        sparse_matmul.provide(model)
        assert len(model.functions) == 1
        assert model.graph.opset_imports[OUR_DOMAIN] == VERSION


def test_the_body_follows_the_opset_of_the_model() -> None:
    """One that was provided before the opset rose is of no use to ONNX Runtime."""
    model = ir.from_proto(make_model("g (float[M,4] x) => (float[M,4] y) { y = Relu(x) }"))
    sparse_matmul.provide(model)
    model.graph.opset_imports[""] = 23
    sparse_matmul.provide(model)
    (function,) = model.functions.values()
    assert function.opset_imports[""] == 23
