"""Windows of tokens from a text; here a token is a character."""

from pathlib import Path

import pytest

from qcompiler.calibration import text_windows as windows_of_text
from qcompiler.calibration.text_windows import text_windows
from qcompiler.errors import CalibrationError


def encode(text: str) -> list[int]:
    return [ord(character) for character in text]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "t.txt"
    path.write_text("".join(chr(ord("a") + n % 26) for n in range(100)))
    return path


def test_they_follow_one_another_from_the_start(path: Path) -> None:
    found = text_windows(path, encode, 2, 3)
    assert found.ids.tolist() == [encode("abc"), encode("def")] and found.start == 0


def test_where_they_start_is_counted_in_characters_and_in_fractions_of_all(path: Path) -> None:
    assert text_windows(path, encode, 1, 3, skip_chars=2).ids.tolist() == [encode("cde")]
    found = text_windows(path, encode, 1, 3, skip_chars=2, offset=0.5)
    assert found.start == 52 and found.ids.tolist() == [encode("abc")]


@pytest.mark.parametrize(("skip", "offset"), [(0, 0.0), (7, 0.0), (3, 0.2)])
def test_a_part_of_the_file_gives_the_same(
    path: Path, skip: int, offset: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = text_windows(path, encode, 4, 5, skip, offset)
    monkeypatch.setattr(windows_of_text, "_FIRST_READ", 1)
    monkeypatch.setattr(windows_of_text, "_CHARACTERS", 1)
    part = text_windows(path, encode, 4, 5, skip, offset)
    assert part.ids.tolist() == whole.ids.tolist() and part.start == whole.start


def test_fewer_where_the_text_ends(path: Path) -> None:
    found = text_windows(path, encode, 9, 30)
    assert found.ids.shape == (3, 30) and found.tokens == 100


def test_too_short_for_one(path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"t.txt: 100 tokens, not one window of 101; give more text"):
        text_windows(path, encode, 1, 101)
    with pytest.raises(CalibrationError, match="10 tokens from character 90 on, not one window of 20"):
        text_windows(path, encode, 1, 20, skip_chars=90)
