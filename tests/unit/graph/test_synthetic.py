"""The benchmarks' model generator: what it writes loads, runs and repeats."""

from pathlib import Path

import numpy as np
import onnxruntime as ort

from benchmarks import synthetic
from qcompiler.graph import model_file
from qcompiler.graph.census import take_census


def test_a_chain_of_matmuls(tmp_path: Path):
    path = synthetic.chain_of_matmuls(tmp_path / "a", 3 * 64 * 64 * 4 - 1, width=64)
    model = model_file.load(path)
    assert [node.op_type for node in model.graph] == ["MatMul"] * 3
    x = np.ones((2, 64), np.float32)
    (y,) = ort.InferenceSession(path).run(None, {"x": x})
    for index in range(3):
        x = x @ np.concatenate(list(synthetic.weight_rows(index, 64, 64)))
    assert np.allclose(y, x, rtol=1e-4, atol=1e-4)  # three sums of 64 products of about 1/8 each
    again = synthetic.chain_of_matmuls(tmp_path / "b", 3 * 64 * 64 * 4 - 1, width=64)
    assert (again.parent / synthetic.DATA).read_bytes() == (path.parent / synthetic.DATA).read_bytes()


def test_a_decoder(tmp_path: Path):
    sizes = synthetic.DecoderSizes(64, 128, 2, 50)
    path = synthetic.decoder(tmp_path / "a", 300_000, sizes)
    written = (path.parent / synthetic.DATA).stat().st_size
    assert 300_000 <= written < 300_000 + 4 * (4 * 64 * 64 + 3 * 64 * 128)
    roles = [weight.role.value for weight in take_census(model_file.load(path)).weights]
    assert roles.count("head") == 1 and roles.count("linear") == 7 * sizes.layers(300_000)
    feed = {"input_ids": np.arange(10).reshape(2, 5)}
    (logits,) = ort.InferenceSession(path).run(None, feed)
    assert logits.shape == (2, 5, 50) and np.isfinite(logits).all()
    again = synthetic.decoder(tmp_path / "b", 300_000, sizes)
    assert (again.parent / synthetic.DATA).read_bytes() == (path.parent / synthetic.DATA).read_bytes()


def test_a_chain_of_nodes(tmp_path: Path):
    path = synthetic.chain_of_nodes(tmp_path, 50)
    assert len(model_file.load(path).graph) == 50
    (y,) = ort.InferenceSession(path).run(None, {"x": np.ones((1, 512), np.float32)})
    assert np.isfinite(y).all()
