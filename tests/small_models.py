"""Small models for the tests, written as ONNX text with weights from a seed, and what runs and compares them."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.numpy_helper
import onnx.parser
import onnx_ir as ir
import onnxruntime as ort

from qcompiler.graph import model_file

Array = npt.NDArray[Any]
Feed = Mapping[str, Array]


def make_model(
    graph: str,
    weights: Mapping[str, Array] | None = None,
    *,
    opset: int = 21,
    ir_version: int = 10,
    functions: str = "",
    domains: Mapping[str, int] | None = None,
) -> onnx.ModelProto:
    """A checked model.

    Args:
        graph: in the text form of onnx.parser, "g (float[M,64] x) => (float[M,32] y) { y = MatMul(x, w) }".
        weights: initializers of the main graph.
        functions: text of model-local functions, each with its header.
        domains: opset versions beside the default domain.
    """
    imports = {"": opset, **(domains or {})}
    header = ", ".join(f'"{name}" : {version}' for name, version in imports.items())
    model = onnx.parser.parse_model(
        f"<ir_version: {ir_version}, opset_import: [{header}]>\n{graph}\n{functions}"
    )
    for name, array in (weights or {}).items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.ascontiguousarray(array), name))
    onnx.checker.check_model(model)
    return model


def weight(*shape: int, seed: int = 0, dtype: Any = np.float32, scale: float | None = None) -> Array:
    """Normal numbers; by default of a size that keeps activations of order 1."""
    spread = 1 / np.sqrt(shape[0]) if scale is None else scale
    return (np.random.default_rng(seed).standard_normal(shape) * spread).astype(dtype)


def constant_node(name: str, array: Array) -> onnx.NodeProto:
    """A Constant node that yields the array."""
    return onnx.helper.make_node("Constant", [], [name], value=onnx.numpy_helper.from_array(array, name))


def save_model(model: onnx.ModelProto, folder: Path, name: str = "float.onnx") -> Path:
    """As one file."""
    path = folder / name
    onnx.save(model, path)
    return path


def run(model: onnx.ModelProto | ir.Model | Path, feed: Feed, optimize: bool = True) -> dict[str, Array]:
    """Outputs by name on ONNX Runtime's CPU provider, one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if isinstance(model, ir.Model):
        with (
            tempfile.TemporaryDirectory() as folder
        ):  # weights may be in a spill file, which no protobuf can name
            return run(model_file.save(model, folder), feed, optimize)
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feed)), strict=True))


def relative_error(reference: Array, approximate: Array) -> float:
    """|a - r| / |r|."""
    r, a = reference.astype(np.float64), approximate.astype(np.float64)
    return float(np.linalg.norm(a - r) / np.linalg.norm(r))


def assert_equal_outputs(before: Mapping[str, Array], after: Mapping[str, Array], tolerance: float) -> None:
    """The same names and types, and numbers that differ by at most ``tolerance`` of the reference's norm."""
    assert list(before) == list(after)
    for name, reference in before.items():
        assert after[name].dtype == reference.dtype, name
        assert after[name].shape == reference.shape, name
        assert np.isfinite(after[name].astype(np.float64)).all(), name
        error = relative_error(reference, after[name])
        assert error <= tolerance, f"{name}: relative error {error:.2e} > {tolerance:.2e}"


def op_types(model: ir.Model | onnx.ModelProto) -> list[str]:
    """Operators of the main graph in order."""
    if isinstance(model, ir.Model):
        return [node.op_type for node in model.graph]
    return [node.op_type for node in model.graph.node]


def apply_pass(transform: Any, model: onnx.ModelProto | ir.Model) -> tuple[ir.Model, bool]:
    """The model after one pass (checked by ONNX), and whether the pass says that it changed it."""
    if isinstance(model, onnx.ModelProto):
        copy = onnx.ModelProto()
        copy.CopyFrom(model)  # onnx_ir shares its tensors, whose names passes may change
        model = ir.from_proto(copy)
    loaded = model
    modified: bool = transform(loaded).modified
    onnx.checker.check_model(ir.to_proto(loaded), full_check=False)
    return loaded, modified
