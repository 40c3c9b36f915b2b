"""Errors of the values that two models have in common, of our compiles and of ONNX Runtime's quantizers."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnxruntime.quantization import qdq_loss_debug

from qcompiler.api import Options, compile
from qcompiler.errors import InputError
from qcompiler.report.alignment import align
from qcompiler.report.tapped_model import open_tapped
from qcompiler.report.tensor_errors import RESCALED, TURNED, TensorErrors, tensor_errors
from tests import command_models as models
from tests.quantized_by_ort import FORMS, Reader, float_model, images, quantized
from tests.small_models import Array, make_model, run, save_model, weight


def compare(
    reference: Path, other: Path, feeds: Sequence[dict[str, Array]], chunk_bytes: int = 1 << 28
) -> TensorErrors:
    with open_tapped(reference) as theirs, open_tapped(other) as ours:
        alignment = align(theirs.model, ours.model)
        return tensor_errors(theirs, ours, alignment, alignment.layers, feeds, chunk_bytes=chunk_bytes)


def tokens(count: int = 4) -> list[dict[str, Array]]:
    rng = np.random.default_rng(0)
    return [{"input_ids": rng.integers(0, 96, (1, 24))} for _ in range(count)]


@pytest.mark.parametrize("form", FORMS)
def test_every_layer_of_what_ort_quantized_is_found(form: str, tmp_path: Path) -> None:
    errors = compare(*quantized(tmp_path, form), images(2, seed=9))
    # Static quantization clamps as the Relu did, which is gone: its codes are compared with the Relu's output.
    expected = ["c", "d", "y"] if form == "dynamic" else ["r", "s", "y"]
    assert [error.name for error in errors.values] == expected
    # 8 bits: steps of 1/255 of a range that is about 6 deviations wide, and several roundings in a row.
    assert all(25 < error.sqnr_db < 60 for error in errors.values), errors.values
    assert [error.name for error in errors.outputs] == ["y"]
    assert not any(error.relation for error in errors.values)


def test_it_agrees_with_orts_own_tool(tmp_path: Path) -> None:
    """onnxruntime's qdq_loss_debug, which averages the SQNR of feeds where ours is of all numbers: one feed."""
    source, made = quantized(tmp_path, "QDQ")
    feeds = images(1, seed=9)
    augmented = [tmp_path / "a.onnx", tmp_path / "b.onnx"]
    activations: list[Any] = []
    for path, copy in zip((source, made), augmented, strict=True):
        qdq_loss_debug.modify_model_output_intermediate_tensors(path, copy)
        activations.append(qdq_loss_debug.collect_activations(str(copy), Reader(feeds)))
    matched = qdq_loss_debug.create_activation_matching(activations[1], activations[0])
    theirs = qdq_loss_debug.compute_activation_error(matched)
    ours = {error.name: error.sqnr_db for error in compare(source, made, feeds).values}
    for name in ("r", "s"):
        # Both run float convolutions between the pairs, fused differently: a code in some thousands may differ.
        assert ours[name] == pytest.approx(theirs[name]["xmodel_err"], abs=0.05)


def test_sqnr_is_of_the_numbers_that_the_models_compute(tmp_path: Path) -> None:
    path = models.mlp(tmp_path)
    made = compile(path, "w4a16-rtn", output=tmp_path / "out").path
    feeds = [{"x": weight(16, 64, seed=seed, scale=1.0)} for seed in (3, 4)]
    (error,) = compare(path, made, feeds).outputs
    wanted, got = (np.concatenate([run(model, feed)["y"] for feed in feeds]) for model in (path, made))
    difference = (got - wanted).astype(np.float64)
    expected = 10 * math.log10(np.square(wanted, dtype=np.float64).sum() / np.square(difference).sum())
    assert error.sqnr_db == pytest.approx(expected, abs=1e-3)
    assert error.max_error == pytest.approx(np.abs(difference).max(), rel=1e-5)
    assert error.mean_error == pytest.approx(difference.mean(), rel=1e-3)
    assert (error.least, error.greatest) == (wanted.min(), wanted.max())


def test_small_chunks_give_the_same_figures(tmp_path: Path) -> None:
    path = models.deep_decoder(tmp_path)
    made = compile(path, "w4a16-rtn", output=tmp_path / "out").path
    once, parted = (compare(path, made, tokens(), limit) for limit in (1 << 28, 20_000))
    assert once.chunks == 1 and parted.chunks > 3
    for one, other in zip(once.values, parted.values, strict=True):
        # Another tap may keep ONNX Runtime from another fusion of float nodes.
        assert one.sqnr_db == pytest.approx(other.sqnr_db, abs=0.01), one.name
    assert once.tap_sqnr_db > 100


def test_values_that_later_nodes_scale_back_are_compared_so(tmp_path: Path) -> None:
    path = models.deep_decoder(tmp_path)
    made = compile(
        path, "w8a8-smoothquant", calibration=tokens(), output=tmp_path / "out", options=Options(seed=1)
    ).path
    errors = {error.name: error for error in compare(path, made, tokens()).values}
    assert errors["v1"].relation == RESCALED  # its channels were divided for the sake of wo1
    assert errors["o1"].relation == ""
    assert all(error.sqnr_db > 25 for error in errors.values()), errors


def test_rotated_values_are_told_from_wrong_ones(tmp_path: Path) -> None:
    path = models.deep_decoder(tmp_path)
    made = compile(path, "w8a16-rtn", settings=["transform=rotate"], output=tmp_path / "out").path
    errors = {error.name: error for error in compare(path, made, tokens()).values}
    turned = {name for name, error in errors.items() if error.relation == TURNED}
    assert {"o0", "d0", "o1", "d1"} <= turned
    assert "logits" not in turned and errors["logits"].sqnr_db > 20


def test_a_wrong_scale_is_no_rescaling(tmp_path: Path) -> None:
    """Nothing takes it back."""
    graph = (
        "g (float[M,64] x) => (float[M,32] y) { [a] h = MatMul(x, w1) [b] r = Tanh(h) [c] y = MatMul(r, w2) }"
    )
    good = {"w1": weight(64, 48), "w2": weight(48, 32, seed=1)}
    paths = [
        save_model(make_model(graph, weights), tmp_path, name)
        for name, weights in (("a.onnx", good), ("b.onnx", {**good, "w1": good["w1"] * 3}))
    ]
    first = compare(paths[0], paths[1], [{"x": weight(200, 64, seed=5, scale=1.0)}]).values[0]
    assert first.relation == "" and first.sqnr_db == pytest.approx(-20 * math.log10(2), abs=1e-3)


def test_nan_of_one_side_alone(tmp_path: Path) -> None:
    clean, spoilt = models.mlp(tmp_path), models.mlp(tmp_path, name="spoilt.onnx", spoil=math.nan)
    first = compare(clean, spoilt, [{"x": weight(16, 64, seed=3, scale=1.0)}]).values[0]
    assert first.sqnr_db == -math.inf and first.unlike == 16


def test_products_under_another_name_are_found_by_their_weight(tmp_path: Path) -> None:
    source, made = quantized(tmp_path, "QDQ")
    model = onnx.load(made)
    for node in model.graph.node:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                if name == "s" or name.startswith("s_"):
                    names[place] = f"renamed_{name}"
    for tensor in model.graph.initializer:
        if tensor.name.startswith("s_"):
            tensor.name = f"renamed_{tensor.name}"
    onnx.save(model, made)
    errors = compare(source, made, images(1, seed=9)).values
    assert [(error.name, error.other) for error in errors] == [
        ("r", "r_DequantizeLinear_Output"), ("s", "renamed_s_DequantizeLinear_Output"), ("y", "y"),
    ]  # fmt: skip
    assert all(error.sqnr_db > 25 for error in errors)


def test_models_with_nothing_in_common(tmp_path: Path) -> None:
    other = save_model(
        make_model("g (float[B,3,12,12] x) => (float[B,3,12,12] z) { z = Neg(x) }"), tmp_path, "o.onnx"
    )
    source = save_model(float_model(), tmp_path)
    with pytest.raises(InputError, match="no value of one name in common"):
        compare(source, other, images(1))


def test_the_outputs_of_two_models_that_round_them(tmp_path: Path) -> None:
    paths = []
    for scale in (0.05, 0.06):
        text = """g (float[M,32] x) => (float[M,16] y) {
            h = MatMul(x, w) q = QuantizeLinear(h, s, z) y = DequantizeLinear(q, s, z) }"""
        arrays = {"w": weight(32, 16), "s": np.float32(scale), "z": np.int8(0)}
        paths.append(save_model(make_model(text, arrays), tmp_path, f"{scale}.onnx"))
    errors = compare(*paths, [{"x": weight(8, 32, seed=3, scale=1.0)}])
    assert [error.name for error in errors.values] == ["h"]
    assert [error.name for error in errors.outputs] == ["y"]
    assert math.isfinite(errors.outputs[0].sqnr_db)
    assert errors.outputs[0].sqnr_db == errors.values[0].sqnr_db
