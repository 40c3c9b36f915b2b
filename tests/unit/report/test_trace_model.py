"""What flows through a model."""

import math
from pathlib import Path

import numpy as np
import onnx
import pytest

from qcompiler.api import compile
from qcompiler.errors import InputError
from qcompiler.report.evaluate import EvaluationData
from qcompiler.report.tapped_model import open_tapped
from qcompiler.report.trace_model import trace
from tests import command_models as models
from tests.quantized_by_ort import images, quantized
from tests.small_models import make_model, run, save_model, weight


def feed(folder: Path, **arrays: object) -> EvaluationData:
    return EvaluationData(data=str(models.feeds_file(folder, **arrays)), windows=1)


def test_figures_are_of_what_the_model_computes(tmp_path: Path) -> None:
    path, x = models.mlp(tmp_path), weight(16, 64, seed=3, scale=1.0)
    found = trace(path, feed(tmp_path, x=x))
    last = found.values[-1]
    y = run(path, {"x": x})["y"]
    assert (last.name, last.op, last.layers, last.shape) == ("y", "MatMul", ("fc2",), (16, 64))
    assert (last.least, last.greatest) == (y.min(), y.max())
    assert last.mean == pytest.approx(y.mean(), abs=1e-6) and last.deviation == pytest.approx(
        y.std(), rel=1e-5
    )
    assert last.zeros == 0 and last.saturated is None and last.sqnr_db is None
    assert found.first_nan is None and found.first_infinite is None


@pytest.mark.parametrize("form", ["QDQ", "QOperator"])
def test_saturated_codes(form: str, tmp_path: Path) -> None:
    """Inputs ten times what the ranges were found on are clamped, at the end that is not zero."""
    source, made = quantized(tmp_path, form)
    x = images(1, seed=9)[0]["x"]
    calm, loud = (trace(made, feed(tmp_path, x=factor * x)).values for factor in (1, 10))
    assert all(value.saturated is not None and value.saturated < 0.01 for value in calm[:2])
    assert loud[0].saturated is not None and loud[0].saturated > 0.05
    # Half of what a Relu yields is zeros, which are no saturation though 0 is the least code.
    assert calm[0].zeros > 0.3
    del source


def test_where_nan_comes_from(tmp_path: Path) -> None:
    graph = """g (float[M,64] x) => (float[M,32] y) {
        [a] h = MatMul(x, w1) [root] r = Sqrt(h) [twice] t = Add(r, r) [b] y = MatMul(t, w2) }"""
    model = make_model(graph, {"w1": weight(64, 48), "w2": weight(48, 32, seed=1)})
    found = trace(save_model(model, tmp_path), feed(tmp_path, x=weight(8, 64, seed=3, scale=1.0)))
    assert found.first_nan is not None and (found.first_nan.name, found.first_nan.node) == ("r", "root")
    assert found.first_infinite is None and found.values[-1].nan > 0


def test_a_layer_without_numbers_has_no_range(tmp_path: Path) -> None:
    found = trace(models.mlp(tmp_path, spoil=np.inf), feed(tmp_path, x=np.ones((2, 64), np.float32)))
    first, last = found.values
    assert first.least is not None and (last.least, last.mean, last.deviation) == (None, None, None)


def test_with_a_reference(tmp_path: Path) -> None:
    path = models.deep_decoder(tmp_path)
    made = compile(path, "w8a16-rtn", output=tmp_path / "out").path
    ids = np.random.default_rng(0).integers(0, 96, (1, 24))
    found = trace(made, feed(tmp_path, input_ids=ids), reference=path, layers="^w[vo]1$")
    assert [value.title for value in found.values] == ["wv1", "wo1"]
    assert all(value.sqnr_db is not None and 20 < value.sqnr_db < math.inf for value in found.values)


def test_sums_of_integers_are_shown_scaled(tmp_path: Path) -> None:
    source, made = quantized(tmp_path, "dynamic")
    x = images(1, seed=9)[0]["x"]
    ours, theirs = (trace(path, feed(tmp_path, x=x)).values for path in (made, source))
    # Their biases come after.
    assert [value.greatest for value in ours] == pytest.approx([value.greatest for value in theirs], rel=0.3)


def test_no_such_layer(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no layer whose name holds 'nothing'"):
        trace(models.mlp(tmp_path), layers="nothing")


def test_the_model_keeps_its_weights_in_their_file(tmp_path: Path) -> None:
    """Also where the file is in a folder below, and none is copied."""
    path = models.external_mlp(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "float.onnx.data").rename(tmp_path / "data" / "w")
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "data/w"
    path.write_bytes(model.SerializeToString())
    x = weight(16, 64, seed=3, scale=1.0)
    with open_tapped(path) as opened:
        assert np.array_equal(opened.plain().run({"x": x})["y"], run(path, {"x": x})["y"])
    assert trace(path, feed(tmp_path, x=x)).values[0].shape == (16, 128)


def test_weights_behind_links(tmp_path: Path) -> None:
    """As a cache of downloads keeps them: the model's folder holds links alone."""
    path = models.external_mlp(tmp_path)
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    for name in ("float.onnx", "float.onnx.data"):
        (tmp_path / name).rename(tmp_path / "blobs" / name)
        (tmp_path / "snapshot" / name).symlink_to(f"../blobs/{name}")
    x = weight(16, 64, seed=3, scale=1.0)
    assert trace(tmp_path / "snapshot" / path.name, feed(tmp_path, x=x)).values[0].shape == (16, 128)


def test_an_output_of_codes_has_its_sqnr(tmp_path: Path) -> None:
    source, made = quantized(tmp_path, "QOperator")
    found = trace(made, feed(tmp_path, **images(1, seed=9)[0]), reference=source)
    assert all(value.sqnr_db is not None and value.sqnr_db > 25 for value in found.values)  # as in diff


def test_a_model_without_products(tmp_path: Path) -> None:
    model = make_model("g (float[M,8] x) => (float[M,8] y) { y = Relu(x) }", {})
    with pytest.raises(InputError, match="no product in its main graph"):
        trace(save_model(model, tmp_path))
