from collections.abc import Callable

import numpy as np
import onnx
import pytest

from models import efficientnet_lite0, stamps
from models.built_model import BuiltModel
from models.cache import UnavailableError
from models.efficientnet_lite0 import Form

Build = Callable[[Callable[[], BuiltModel]], BuiltModel]

# Numbers of ImageNet's classes.
CLASSES = {
    "A koala.": 105,
    "A pink flamingo.": 130,
    "A tiger.": 292,
    "A beaver.": 337,
    "A zebra.": 340,
    "A badger.": 362,
    "A gorilla.": 366,
}


def photographs_or_skip() -> stamps.Photographs:
    try:
        return stamps.evaluation()
    except UnavailableError as error:
        pytest.skip(str(error))


def test_pixels_become_inputs_as_the_model_was_trained() -> None:
    found = efficientnet_lite0.normalized(np.array([0, 127, 255], np.uint8))
    assert found.dtype == np.float32 and found.tolist() == [-127 / 128, 0, 1]


@pytest.mark.slow
def test_it_names_animals(build_or_skip: Build) -> None:
    photographs, built = photographs_or_skip(), build_or_skip(efficientnet_lite0.build)
    chosen = [photographs.labels.index(label) for label in CLASSES]
    images = efficientnet_lite0.normalized(photographs.pixels[chosen])
    assert efficientnet_lite0.logits(built.path, images).argmax(1).tolist() == list(CLASSES.values())


@pytest.mark.slow
def test_forms_are_one_function(build_or_skip: Build) -> None:
    photographs_or_skip()
    folded = build_or_skip(efficientnet_lite0.build)
    unfolded = build_or_skip(lambda: efficientnet_lite0.build(Form.BATCHNORM))
    counts = []
    for built in (folded, unfolded):
        ops = [node.op_type for node in onnx.load(built.path, load_external_data=False).graph.node]
        counts.append((ops.count("Conv"), ops.count("BatchNormalization"), ops.count("Gemm")))
    assert counts == [(49, 0, 1), (49, 49, 1)]
    # Folding changes the rounding of float32 alone: measured 2e-12; 8 bits cost 1e-2.
    assert efficientnet_lite0.measure(unfolded.path)["kl_to_float"] < 1e-6


@pytest.mark.slow
def test_data_files_hold_the_photographs(build_or_skip: Build) -> None:
    evaluation = photographs_or_skip()
    sets = (efficientnet_lite0.calibration_data(), 30), (efficientnet_lite0.evaluation_data(), 93)
    for path, count in sets:
        with np.load(path) as arrays:
            assert arrays.files == ["image"] and arrays["image"].shape == (count, 3, 224, 224)
            last = arrays["image"]
    assert np.array_equal(last, efficientnet_lite0.normalized(evaluation.pixels))
