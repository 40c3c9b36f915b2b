"""The digits' model as ONNX Runtime's quantizers make it: layers aligned, errors as ONNX Runtime's own tool finds them."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnxruntime import quantization
from onnxruntime.quantization import qdq_loss_debug

from models import digits_cnn
from models.built_model import BuiltModel
from qcompiler.report.diff_models import diff
from qcompiler.report.evaluate import EvaluationData
from tests.quantized_by_ort import FORMS, Reader

Build = Callable[[Callable[[], BuiltModel]], BuiltModel]


def _activations(path: Path, copy: Path, feed: dict[str, Any]) -> Any:
    qdq_loss_debug.modify_model_output_intermediate_tensors(path, copy)
    return qdq_loss_debug.collect_activations(str(copy), Reader([feed]))


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_what_ort_makes_of_the_digits(form: str, build_or_skip: Build, tmp_path: Path) -> None:
    logging.getLogger().setLevel(logging.ERROR)
    model = onnx.load(build_or_skip(digits_cnn.build).path)
    del model.graph.value_info[:]  # quantize_dynamic refuses its shapes
    source, made = tmp_path / "float.onnx", tmp_path / "made.onnx"
    onnx.save(model, source)
    images = np.load(digits_cnn.calibration_data())["image"]
    if form == "dynamic":
        quantization.quantize_dynamic(source, made)
    else:
        reader = Reader([{"image": images}])
        quantization.quantize_static(source, made, reader, quant_format=quantization.QuantFormat[form])
    feed = {"image": np.load(digits_cnn.evaluation_data())["image"][:8]}
    np.savez(tmp_path / "feed.npz", **feed)
    found = diff(source, made, EvaluationData(data=str(tmp_path / "feed.npz")))
    assert found.numbers is not None and not found.lost
    errors = {error.name: error for error in found.numbers.errors.values}
    assert len(errors) == 5 and len(found.graph.replaced) == 5
    # 8 bits: every layer keeps more than 25 dB on images like those that ranges were found on.
    assert all(error.sqnr_db > 25 for error in errors.values()), errors
    if form != "QDQ":
        return
    float_values = _activations(source, tmp_path / "a.onnx", feed)
    values = _activations(made, tmp_path / "b.onnx", feed)
    theirs = qdq_loss_debug.compute_activation_error(
        qdq_loss_debug.create_activation_matching(values, float_values)
    )
    for name in ("relu", "relu_1", "relu_2", "relu_3"):
        # Float convolutions between the pairs, fused differently here and there: single codes differ.
        assert errors[name].sqnr_db == pytest.approx(theirs[name]["xmodel_err"], abs=0.1), name
