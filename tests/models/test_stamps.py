from pathlib import Path

import numpy as np
import pytest

from models import stamps
from models.cache import UnavailableError

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")


def _stamp(path: Path, colours: int, opaque: bool = True) -> None:
    """40 x 60 pixels; row after row another red and green until there are so many colours."""
    index = np.minimum(np.arange(60 * 40), colours - 1)
    rgba = np.stack([index % 256, index // 256, 0 * index, 0 * index + 255 * opaque], 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rgba.reshape(60, 40, 4).astype(np.uint8)).save(path)


def test_photographs_of_animals_are_chosen(tmp_path: Path) -> None:
    for name in ("animals/birds/b.png", "animals/a.png", "animals/bears/cartoon/c.png", "plants/d.png"):
        _stamp(tmp_path / name, 1000)
    _stamp(tmp_path / "animals/drawing.png", 999)
    _stamp(tmp_path / "animals/nothing_shown.png", 1000, opaque=False)
    assert stamps.choose(tmp_path) == [tmp_path / "animals/a.png", tmp_path / "animals/birds/b.png"]


def test_a_stamp_is_laid_on_white_in_the_middle(tmp_path: Path) -> None:
    stamp = np.zeros((100, 50, 4), np.uint8)
    stamp[:50, :, 3] = 255  # the upper half is black, the lower shows nothing
    Image.fromarray(stamp).save(tmp_path / "stamp.png")
    pixels = stamps._pixels(tmp_path / "stamp.png")
    assert (pixels.shape, pixels.dtype) == ((3, 224, 224), np.uint8)
    assert (pixels[:, :108, 58:166] == 0).all()  # some pixels from the borders, where scaling mixes
    assert (pixels[:, 116:] == 255).all()
    assert (pixels[:, :, :56] == 255).all() and (pixels[:, :, 168:] == 255).all()


@pytest.mark.slow
def test_30_calibrate_and_93_others_judge() -> None:
    try:
        calibration, evaluation = stamps.calibration(), stamps.evaluation()
    except UnavailableError as error:
        pytest.skip(str(error))
    assert calibration.pixels.shape == (30, 3, 224, 224)
    assert evaluation.pixels.shape == (93, 3, 224, 224)
    assert (len(calibration.labels), len(evaluation.labels)) == (30, 93)
    assert "A koala." in calibration.labels + evaluation.labels
    assert not {image.tobytes() for image in calibration.pixels} & {i.tobytes() for i in evaluation.pixels}
