"""The benchmarks' model generator: what it writes loads, runs and repeats."""

from pathlib import Path

import numpy as np
import onnxruntime as ort

from benchmarks import synthetic
from qcompiler.graph import model_file


def test_a_chain_of_matmuls(tmp_path: Path):
    path = synthetic.chain_of_matmuls(tmp_path / "a", 3 * 64 * 64 * 4 - 1, width=64)
    model = model_file.load(path)
    assert [node.op_type for node in model.graph] == ["MatMul"] * 3
    x = np.ones((2, 64), np.float32)
    (y,) = ort.InferenceSession(path).run(None, {"x": x})
    for index in range(3):
        x = x @ np.concatenate(list(synthetic.weight_rows(index, 64, 256)))
    assert np.allclose(y, x, rtol=1e-4, atol=1e-4)  # three sums of 64 products of about 1/8 each
    again = synthetic.chain_of_matmuls(tmp_path / "b", 3 * 64 * 64 * 4 - 1, width=64)
    assert (again.parent / synthetic.DATA).read_bytes() == (path.parent / synthetic.DATA).read_bytes()


def test_a_chain_of_nodes(tmp_path: Path):
    path = synthetic.chain_of_nodes(tmp_path, 50)
    assert len(model_file.load(path).graph) == 50
    (y,) = ort.InferenceSession(path).run(None, {"x": np.ones((1, 512), np.float32)})
    assert np.isfinite(y).all()
