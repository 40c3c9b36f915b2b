from collections.abc import Callable

import numpy as np
import onnx
import pytest

from models import rapidocr_rec, rendered_text
from models.built_model import BuiltModel
from models.cache import UnavailableError

Build = Callable[[Callable[[], BuiltModel]], BuiltModel]


def test_lines_of_one_seed_are_the_same() -> None:
    first, second = (rendered_text.draw_line("so it is", np.random.default_rng(3)) for _ in range(2))
    assert np.array_equal(first.pixels, second.pixels)
    assert first.pixels.dtype == np.uint8 and first.pixels.std() > 10


def test_narrow_lines_are_padded_and_wide_ones_keep_their_width() -> None:
    grey = np.full((24, 40, 3), 127, np.uint8)
    narrow, wide = rapidocr_rec.normalized(grey), rapidocr_rec.normalized(np.tile(grey, (1, 10, 1)))
    assert narrow.shape == (1, 3, 48, 320) and wide.shape == (1, 3, 48, 800)
    assert np.allclose(narrow[..., :80], 127 / 127.5 - 1, atol=1e-6) and not narrow[..., 80:].any()


@pytest.mark.slow
def test_the_float_model_reads_all_lines(build_or_skip: Build) -> None:
    built = build_or_skip(rapidocr_rec.build)
    try:
        assert rapidocr_rec.measure(built.path) == {"lines": 38, "right": 38}
    except UnavailableError as error:
        pytest.skip(str(error))
    assert not onnx.load(built.path).graph.initializer  # its weights are Constant nodes
    widths = {feed["x"].shape[-1] for feed in rapidocr_rec.load(rapidocr_rec.calibration_data())}
    assert len(widths) > 10
