"""SavedBorders: arrays of any type come back as they were, each is written once, and damage is noticed."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from qcompiler.calibration.saved_borders import SavedBorders
from qcompiler.errors import ResumeError
from tests.small_models import Array

BORDERS: dict[str, list[Array]] = {
    "stream": [np.arange(6, dtype=np.float32).reshape(2, 3), np.ones((1, 5, 3), np.float32)],
    "half": [np.full(3, 1.5, ml_dtypes.bfloat16), np.zeros(1, ml_dtypes.bfloat16)],
    "mask": [np.array([[True, False]]), np.array([[False]])],
    "empty": [np.zeros((1, 0, 4), np.float32), np.zeros((0,), np.float32)],
    "one": [np.array(7, np.int64), np.array(-7, np.int64)],
}


def test_arrays_come_back_as_they_were(tmp_path: Path) -> None:
    table = json.loads(json.dumps(SavedBorders(tmp_path).save(0, BORDERS)))
    found = SavedBorders(tmp_path).load(table)
    assert found.keys() == BORDERS.keys()
    for name, arrays in BORDERS.items():
        for array, other in zip(arrays, found[name], strict=True):
            assert other.dtype == array.dtype
            np.testing.assert_array_equal(other, array)


def test_a_value_is_written_once_and_its_file_goes_with_its_last_value(tmp_path: Path) -> None:
    saved = SavedBorders(tmp_path)
    saved.save(0, {"mask": BORDERS["mask"], "stream": BORDERS["stream"]})

    def unread() -> Array:
        raise AssertionError("the value is in a file")

    saved.save(1, {"mask": (unread() for _ in range(2)), "half": BORDERS["half"]})
    saved.drop_old()
    assert {path.name for path in tmp_path.iterdir()} == {"borders-0.bin", "borders-1.bin"}
    table = saved.save(2, {"half": BORDERS["half"]})
    assert (tmp_path / "borders-0.bin").exists(), "the last table that is in a checkpoint names it"
    saved.drop_old()
    assert {path.name for path in tmp_path.iterdir()} == {"borders-1.bin"}
    again = SavedBorders(tmp_path)
    again.load(table)
    assert again.save(3, {"half": iter(())}) == table


@pytest.mark.parametrize("size", [10, 64, 10_000])
def test_a_file_that_is_not_what_it_was(tmp_path: Path, size: int) -> None:
    table = SavedBorders(tmp_path).save(0, BORDERS)
    path = tmp_path / "borders-0.bin"
    with path.open("r+b") as file:
        file.truncate(size)
        file.truncate(max(size, table["files"][path.name][0]))
    with pytest.raises(ResumeError, match=r"borders-0\.bin: is damaged"):
        SavedBorders(tmp_path).load(table)
