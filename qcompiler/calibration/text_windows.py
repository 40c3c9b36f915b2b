"""Windows of tokens from a text file: what calibration feeds, and what evaluation scores."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from qcompiler.errors import CalibrationError

Encode = Callable[[str], list[int]]
Decode = Callable[[Sequence[int]], str]

_FIRST_READ = 1 << 20
"""Characters that are tokenised at first; more is read only where they hold too few windows."""
_CHARACTERS = 8
"""To a token: more than most texts need with a trained tokenizer."""
_MARGIN = 64
"""Tokens that must follow the last window, so that where the text was cut cannot have changed it."""


@dataclass(frozen=True)
class TextWindows:
    """Consecutive windows.

    Attributes:
        ids: int64 [windows, length].
        start: the character of the text that they begin at.
        tokens: found from there on; where there are fewer windows than wanted, all there are.
    """

    ids: npt.NDArray[np.int64]
    start: int
    tokens: int


def text_windows(
    path: Path, encode: Encode, windows: int, length: int, skip_chars: int = 0, offset: float = 0.0
) -> TextWindows:
    """At most ``windows`` windows of ``length`` tokens; a large file is read in part.

    Args:
        skip_chars, offset: where to start: after these characters, and after this fraction of all.
    Raises:
        CalibrationError: not a readable UTF-8 text, or too short for one window.
    """
    start = skip_chars + (int(offset * len(_read(path, None))) if offset else 0)
    characters = max(_FIRST_READ, _CHARACTERS * windows * length)
    while True:
        text = _read(path, start + characters)
        tokens = encode(text[start:])
        if len(text) < start + characters or len(tokens) >= windows * length + _MARGIN:
            break
        characters *= 2
    found = min(windows, len(tokens) // length)
    if found == 0:
        place = f" from character {start} on" if start else ""
        raise CalibrationError(
            f"{path}: {len(tokens)} tokens{place}, not one window of {length}; "
            "give more text, or a smaller --length (--set calib.length=N of a compile)"
        )
    ids = np.asarray(tokens[: found * length], dtype=np.int64).reshape(found, length)
    return TextWindows(ids, start, len(tokens))


def _read(path: Path, characters: int | None) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(characters)
    except UnicodeDecodeError as error:
        raise CalibrationError(f"{path}: not UTF-8 text (byte {error.start}); convert it first") from error
    except OSError as error:
        raise CalibrationError(
            f"{path}: cannot be read ({error.strerror or error}); give a file that can"
        ) from error
