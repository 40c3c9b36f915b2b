from collections.abc import Callable

import numpy as np
import onnx
import pytest

from models import digits_cnn
from models.built_model import BuiltModel

Build = Callable[[Callable[[], BuiltModel]], BuiltModel]


@pytest.mark.slow
@pytest.mark.parametrize("form", digits_cnn.Form)
def test_it_reads_digits(form: digits_cnn.Form, build_or_skip: Build) -> None:
    built = build_or_skip(lambda: digits_cnn.build(form))
    assert digits_cnn.measure(built.path)["accuracy"] > 0.98  # measured 0.997
    ops = [node.op_type for node in onnx.load(built.path, load_external_data=False).graph.node]
    assert (ops.count("Conv"), ops.count("Gemm")) == (3, 2)
    assert ops.count("BatchNormalization") == (3 if form is digits_cnn.Form.BATCHNORM else 0)


@pytest.mark.slow
def test_calibration_and_evaluation_images_differ(build_or_skip: Build) -> None:
    build_or_skip(digits_cnn.build)
    calibration = np.load(digits_cnn.calibration_data())["image"]
    evaluation = np.load(digits_cnn.evaluation_data())["image"]
    assert calibration.shape == (128, 1, 8, 8)
    assert evaluation.shape == (360, 1, 8, 8)
    assert (calibration.min(), calibration.max()) == (0, 1)
    assert not {image.tobytes() for image in calibration} & {image.tobytes() for image in evaluation}
