"""Two models side by side."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from qcompiler.api import compile
from qcompiler.report.diff_models import ModelDiff, diff
from qcompiler.report.diff_table import error_cells
from qcompiler.report.evaluate import EvaluationData
from tests import command_models as models
from tests.quantized_by_ort import FORMS, images, quantized
from tests.small_models import make_model, save_model, weight

QUICK = EvaluationData(windows=2, length=16)


def edited(path: Path, name: str, edit: Callable[[onnx.ModelProto], None]) -> Path:
    model = onnx.load(path)
    edit(model)
    onnx.save(model, path.with_name(name))
    return path.with_name(name)


@pytest.fixture
def rtn(tmp_path: Path) -> tuple[Path, Path]:
    path = models.deep_decoder(tmp_path)
    return path, compile(path, "w4a16-rtn", output=tmp_path / "out").path


def test_a_compiled_model(rtn: tuple[Path, Path]) -> None:
    found = diff(*rtn, QUICK)
    assert not found.equal and found.numbers is not None and not found.lost
    # Three layers of four linears, the head and the embedding.
    products = {entry.name: (entry.before, entry.after, entry.stored) for entry in found.graph.replaced}
    assert len(products) == 14
    assert products["wv1"] == ("MatMul", "com.microsoft::MatMulNBits", "uint4 g32")
    assert products["table"] == ("Gather", "com.microsoft::GatherBlockQuantized", "uint8 g32")
    assert found.graph.operators["MatMul"] == (13, 0)
    assert found.graph.signature == ["opset com.microsoft: none -> 1"]
    assert (
        found.other.file_bytes < found.reference.file_bytes
        and found.other.weights == 14 * 64 * 64 + 2 * 64 * 32
    )
    assert len(found.numbers.errors.values) == 14 and found.numbers.growth
    assert "sampled from the model" in found.numbers.data or "random inputs" in found.numbers.data
    assert any("give --data or --text" in note for note in found.notes)


@pytest.mark.parametrize("form", FORMS)
def test_what_ort_quantized(form: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", **images(1, seed=9)[0])
    found = diff(*quantized(tmp_path, form), EvaluationData(data=str(tmp_path / "data.npz")))
    after = {
        "QDQ": ["Conv", "Conv", "Gemm"],
        "QOperator": ["QLinearConv", "QLinearConv", "com.microsoft::QGemm"],
        "dynamic": ["ConvInteger", "ConvInteger", "MatMulInteger"],
    }
    assert [entry.after for entry in found.graph.replaced] == after[form]
    assert [entry.before for entry in found.graph.replaced] == ["Conv", "Conv", "Gemm"]
    assert all(entry.stored.startswith(("int8", "uint8")) for entry in found.graph.replaced)
    removed = {node.op for node in found.graph.removed}
    assert removed == (set() if form == "dynamic" else {"Relu"})
    assert found.numbers is not None and min(e.sqnr_db for e in found.numbers.errors.values) > 25


def test_equal_models(tmp_path: Path) -> None:
    path = models.deep_decoder(tmp_path)
    copy = edited(path, "copy.onnx", lambda model: None)
    found = diff(path, copy)
    assert found.equal and found.graph.none and found.numbers is None


def _one_weight(model: onnx.ModelProto) -> None:
    (tensor,) = (t for t in model.graph.initializer if t.name == "gain1")
    array = onnx.numpy_helper.to_array(tensor).copy()
    array[0] += 1
    tensor.CopyFrom(onnx.numpy_helper.from_array(array, "gain1"))


def _one_attribute(model: onnx.ModelProto) -> None:
    (node,) = (n for n in model.graph.node if n.output[0] == "n0_mean")
    node.attribute.append(onnx.helper.make_attribute("noop_with_empty_axes", 1))  # axes are given: no effect


def _one_input(model: onnx.ModelProto) -> None:
    (node,) = (n for n in model.graph.node if n.output[0] == "v1")
    node.input[1] = "wv0"


@pytest.mark.parametrize(
    ("edit", "what"),
    [
        (_one_weight, lambda found: found.graph.initializers_changed == ["gain1"]),
        (_one_attribute, lambda found: [node.op for node in found.graph.changed] == ["ReduceMean"]),
        (_one_input, lambda found: found.graph.rewired == 1),
    ],
)
def test_a_small_change_is_seen(
    edit: Callable[[onnx.ModelProto], None], what: Callable[[ModelDiff], bool], tmp_path: Path
) -> None:
    path = models.deep_decoder(tmp_path)
    found = diff(path, edited(path, "other.onnx", edit), QUICK)
    assert not found.equal and what(found) and not found.graph.replaced


def test_models_of_other_inputs_are_compared_by_structure_alone(tmp_path: Path) -> None:
    found = diff(models.mlp(tmp_path, name="a.onnx"), models.decoder(tmp_path))
    assert found.numbers is None and "alone takes input_ids" in found.without_numbers
    assert "input x (float [M,64]) is gone" in found.graph.signature


@pytest.mark.parametrize("outputs", ["float[M,4] y, seq(float) s", "seq(float) s"])
def test_sequences_are_not_read(outputs: str, tmp_path: Path) -> None:
    text = f"g (float[M,8] x) => ({outputs}) {{ y = MatMul(x, w) s = SequenceConstruct(y, y) }}"
    paths = [
        save_model(make_model(text, {"w": weight(8, 4, seed=seed)}), tmp_path, f"{seed}.onnx")
        for seed in (0, 1)
    ]
    found = diff(*paths, QUICK)
    assert found.numbers is not None and [error.name for error in found.numbers.errors.values] == ["y"]


def test_no_likeness_is_told_of_what_is_no_number(tmp_path: Path) -> None:
    good, bad = models.mlp(tmp_path), models.mlp(tmp_path, name="bad.onnx", spoil=np.nan)
    found = diff(good, bad, QUICK)
    assert found.numbers is not None
    last = found.numbers.errors.outputs[0]
    assert last.unlike and error_cells(last) == ("NaN or inf", "", "", "no numbers")
