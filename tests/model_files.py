"""A small model as files: its weight inside, or in a file beside it."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from qcompiler.errors import InputError
from qcompiler.graph import model_file
from qcompiler.graph.mapped_tensor import MappedTensor

W = np.arange(64 * 32, dtype=np.float32).reshape(64, 32)
X = np.linspace(-1, 1, 3 * 64, dtype=np.float32).reshape(3, 64)
EXPECTED = X @ W + 1


def external_tensor(location: str, offset: int, array: np.ndarray, name: str) -> TensorProto:
    """A tensor whose numbers are in another file."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=array.shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": offset, "length": array.nbytes}.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def linear_model(initializers: list[TensorProto], **changes: object) -> onnx.ModelProto:
    """y = x @ w + small."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="matmul"),
        helper.make_node("Add", ["h", "small"], ["y"], name="add"),
    ]
    graph = helper.make_graph(
        nodes,
        "main",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 32])],
        [*initializers, onnx.numpy_helper.from_array(np.ones(32, np.float32), "small")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def inline_model() -> onnx.ModelProto:
    """Its weight is in it."""
    return linear_model([onnx.numpy_helper.from_array(W, "w")])


def write_external(folder: Path, location: str = "w.bin", offset: int = 0) -> Path:
    """A model whose weight is looked for in a file beside it, which is not written."""
    path = folder / "m.onnx"
    path.write_bytes(linear_model([external_tensor(location, offset, W, "w")]).SerializeToString())
    return path


def run_file(path: Path) -> np.ndarray:
    """y for ``X``."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": X})[0]


def mapped_tensor(model: ir.Model, name: str = "w") -> MappedTensor:
    """A tensor that must not have been read."""
    tensor = model.graph.initializers[name].const_value
    assert isinstance(tensor, MappedTensor)
    return tensor


def assert_refused(path: Path, match: str) -> None:
    """It does not load, and one short line says why."""
    with pytest.raises(InputError, match=match) as caught:
        model_file.load(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 200 + 2 * len(str(path))
