"""calibration.json: what is written is read again, and what does not fit is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompiler.calibration.ranges_of_model import ObservedRange
from qcompiler.calibration.saved_ranges import read_ranges, write_ranges
from qcompiler.errors import CalibrationError, ResourceError

ENDS = st.floats(allow_nan=False, allow_infinity=False)
RANGES = {
    "a": ObservedRange(-1.0, 2.5, "minmax", 3, 1200),
    "b/c": ObservedRange(0.0, 1e-30, "entropy", 1, 7),
}


def _saved(folder: Path, **changes: Any) -> Path:
    """A file with some of its parts changed."""
    path = folder / "calibration.json"
    write_ranges(path, RANGES, ["a", "b/c", "never"], "16 windows of text", "f00d" * 16)
    body = json.loads(path.read_text()) | changes
    path.write_text(json.dumps(body))
    return path


@settings(max_examples=30)
@given(
    names=st.lists(st.text(min_size=1).filter(lambda t: t.isprintable()), unique=True, max_size=5),
    ends=st.tuples(ENDS, ENDS),
)
def test_what_is_written_is_read_again(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], ends: tuple[float, float]
) -> None:
    path = tmp_path_factory.mktemp("saved") / "calibration.json"
    ranges = {name: ObservedRange(min(ends), max(ends), "mse", 2, 30) for name in names}
    write_ranges(path, ranges, names, "random", None)
    assert read_ranges(path).of(names) == ranges


def test_only_what_is_wanted_and_was_seen_is_read(tmp_path: Path) -> None:
    path = _saved(tmp_path)
    assert read_ranges(path).of(["a", "never"]) == {"a": RANGES["a"]}


def test_the_file_says_what_it_holds(tmp_path: Path) -> None:
    path = _saved(tmp_path)
    assert json.loads(path.read_text()) == {
        "version": 1,
        "model": "f00d" * 16,
        "data": "16 windows of text",
        "ranges": {
            "a": {"lowest": -1.0, "highest": 2.5, "method": "minmax", "batches": 3, "numbers": 1200},
            "b/c": {"lowest": 0.0, "highest": 1e-30, "method": "entropy", "batches": 1, "numbers": 7},
        },
        "unseen": ["never"],
    }


def test_ranges_of_another_model_are_refused(tmp_path: Path) -> None:
    saved = read_ranges(_saved(tmp_path))
    saved.require_model("f00d" * 16)
    with pytest.raises(CalibrationError, match=r"ranges of another model \(f00df00df00d"):
        saved.require_model("beef" * 16)
    read_ranges(_saved(tmp_path, model=None)).require_model("beef" * 16)


def test_tensors_that_the_file_does_not_know_are_named(tmp_path: Path) -> None:
    path = _saved(tmp_path)
    with pytest.raises(
        CalibrationError,
        match=r"says nothing of p, q, r and 1 more \(of 5 tensors, 3 in the file\); calibrate again",
    ):
        read_ranges(path).of(["a", "s", "r", "q", "p"])


def _a(**fields: Any) -> dict[str, Any]:
    return {
        "ranges": {"a": {"lowest": 0.0, "highest": 1.0, "method": "mse", "batches": 1, "numbers": 1} | fields}
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "is of version 2, and 1 is read"),
        ({"more": 1}, "holds no ranges"),
        ({"ranges": []}, "ranges has to be a mapping"),
        ({"unseen": {}}, "unseen a list"),
        ({"unseen": [1]}, "a list of names"),
        ({"model": 3}, "model has to be a fingerprint or null"),
        ({"ranges": {"a": 3}}, "a: has to have lowest, highest"),
        (_a(more=1), "a: has to have lowest, highest"),
        (_a(method="guess"), "a: method has to be one of minmax, .*not 'guess'"),
        (_a(lowest=2.0), "a: lowest and highest have to be finite numbers in this order"),
        (_a(highest=float("inf")), "a: lowest and highest have to be finite"),
        (_a(lowest=float("nan")), "a: lowest and highest have to be finite"),
        (_a(lowest=-(10**400)), "a: lowest and highest have to be finite"),
        (_a(lowest="0"), "a: lowest and highest have to be finite"),
        (_a(lowest=True), "a: lowest and highest have to be finite"),
        (_a(batches=-1), "a: batches and numbers have to be whole numbers"),
        (_a(numbers=1.5), "a: batches and numbers have to be whole numbers"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = _saved(tmp_path, **changes)
    with pytest.raises(CalibrationError, match=f"calibration.json: .*{message}"):
        read_ranges(path)


def test_what_is_no_json_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    for content in (b"{", b"\xff\xfe"):
        path.write_bytes(content)
        with pytest.raises(CalibrationError, match="not JSON"):
            read_ranges(path)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="cannot be read"):
        read_ranges(tmp_path / "none.json")
    with pytest.raises(ResourceError, match="cannot be written"):
        write_ranges(tmp_path / "none" / "calibration.json", RANGES, [], "", None)


def test_sizes_of_channels_come_back(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    write_ranges(path, RANGES, list(RANGES), "", None, {"a": np.array([0.1, 0, 3e7])})
    assert read_ranges(path).channels["a"].tolist() == [0.1, 0, 3e7]


@pytest.mark.parametrize("sizes", ["1", '["1"]', "[-1]", "[NaN]", "[true]"])
def test_sizes_that_are_none_are_refused(tmp_path: Path, sizes: str) -> None:
    path = tmp_path / "calibration.json"
    path.write_text(
        f'{{"version": 1, "model": null, "data": "", "ranges": {{}}, "channels": {{"a": {sizes}}}, "unseen": []}}'
    )
    with pytest.raises(CalibrationError, match="a: the sizes of channels have to be finite"):
        read_ranges(path)
