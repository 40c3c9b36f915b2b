"""The user's calibration data, whatever its form, as a re-iterable stream of feeds (input name -> array).

    text.txt          with a tokenizer.json: windows of `length` tokens of the whole text, one after another
    feeds.jsonl       one feed a line: {"input": [[...]]}; or {"text": "..."}, cut at `length` tokens
    feed.npz          one feed, its arrays by input name, used as they are
    folder            of .npz files, in the order of their names
    module:function   called without arguments; yields feeds
    an iterable       of feeds, from Python

The first `samples` of them are used. Tokens come under the name `TOKENS`; `fill.complete_feed` finds their
input.
"""

import itertools
import json
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qcompiler.calibration.text_windows import Decode, Encode, text_windows
from qcompiler.errors import CalibrationError
from qcompiler.user_code import describe, import_reference

Feed = Mapping[str, npt.NDArray[Any]]

TOKENS = "input_ids"
SUFFIXES = (".txt", ".npz", ".jsonl")


@dataclass(frozen=True)
class CalibrationData:
    """Feeds that can be iterated again and again; files are read while iterating, one feed at a time.

    Attributes:
        source: for messages and the report.
        warnings: what the user should know about it, one line each.

    Iterating raises CalibrationError where a feed is broken; it names the file and line.
    """

    source: str
    warnings: tuple[str, ...]
    read: Callable[[], Iterator[Feed]]

    def __iter__(self) -> Iterator[Feed]:
        empty = True
        for number, feed in enumerate(self.read(), 1):
            empty = False
            _check_feed(feed, f"{self.source}: feed {number}")
            yield feed
        if empty:
            raise CalibrationError(f"{self.source}: gives no feeds; at least one is needed")


def open_calibration(
    source: str | os.PathLike[str] | Iterable[Feed],
    tokenizer: str | os.PathLike[str] | None,
    samples: int,
    length: int,
) -> CalibrationData:
    """The first `samples` feeds of `source`, whose forms the head of this file lists.

    Args:
        source: a path, ``module:function``, or an iterable of feeds.
        tokenizer: tokenizer.json; needed for text alone.
        samples: how many feeds are used at most.
        length: tokens in a window of text.

    Raises:
        CalibrationError: what `source` names is missing, empty, of no known form, or too short a text.
    """
    if not isinstance(source, (str, os.PathLike)):
        return _from_iterable(source, samples)
    if _is_function(source):
        return _from_function(str(source), samples)
    check_exists(source)
    text = os.fspath(source)
    path = Path(text)
    if path.is_dir():
        return _from_folder(path, samples)
    if path.suffix == ".py":
        raise CalibrationError(f"{text}: a module; name its function too, {path.stem}:FUNCTION")
    if path.suffix not in SUFFIXES:
        raise CalibrationError(
            f"{text}: {path.suffix or 'no suffix'} says no form of data; "
            "use .txt, .jsonl, .npz, a folder of .npz or module:function"
        )
    if path.stat().st_size == 0:
        raise CalibrationError(f"{text}: empty; give a file with data in it")
    if path.suffix == ".txt":
        return _from_text(path, text_encoder(tokenizer, text), samples, length)
    if path.suffix == ".npz":
        return CalibrationData(text, (), lambda: iter([_load_npz(path)]))
    return _limited(text, lambda: _read_jsonl(path, tokenizer, length), _count_lines(path), samples)


def check_exists(source: str | os.PathLike[str] | Iterable[Feed]) -> None:
    """Raises CalibrationError where `source` names a file or folder that is not there."""
    if isinstance(source, (str, os.PathLike)) and not _is_function(source) and not Path(source).exists():
        raise CalibrationError(f"{os.fspath(source)}: no such file or folder; check the path")


def _is_function(source: str | os.PathLike[str]) -> bool:
    return (
        isinstance(source, str)
        and ":" in source
        and Path(source).suffix not in SUFFIXES
        and not Path(source).exists()
    )


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CalibrationError(
            f"{path}: cannot be read ({error.strerror or error}); give a file that can"
        ) from error


def _from_text(path: Path, encode: Encode, samples: int, length: int) -> CalibrationData:
    found = text_windows(path, encode, samples, length)
    windows = len(found.ids)
    warnings = (
        (f"{path}: {found.tokens} tokens give {windows} windows of {length}, not {samples}",)
        if windows < samples
        else ()
    )
    return CalibrationData(str(path), warnings, lambda: iter([{TOKENS: row[None, :]} for row in found.ids]))


def tokenizer_beside(model: str | os.PathLike[str]) -> Path | None:
    """tokenizer.json in the model's folder, or None."""
    path = Path(model).parent / "tokenizer.json"
    return path if path.is_file() else None


def text_encoder(tokenizer: str | os.PathLike[str] | None, data: str) -> Encode:
    """Text to token ids, without special tokens and whatever truncation or padding the file asks for.

    Args:
        tokenizer: tokenizer.json.
        data: what needs it, for messages.

    Raises:
        CalibrationError: no tokenizer, or not one that can be read.
    """
    loaded = _tokenizer(tokenizer, data)
    loaded.no_truncation()
    loaded.no_padding()

    def encode(text: str) -> list[int]:
        ids: list[int] = loaded.encode(text, add_special_tokens=False).ids
        return ids

    return encode


def text_decoder(tokenizer: str | os.PathLike[str], data: str) -> Decode:
    """Token ids to text, special tokens too.

    Raises:
        CalibrationError: as ``text_encoder``.
    """
    loaded = _tokenizer(tokenizer, data)

    def decode(ids: Sequence[int]) -> str:
        return str(loaded.decode(list(ids), skip_special_tokens=False))

    return decode


def _tokenizer(tokenizer: str | os.PathLike[str] | None, data: str) -> Any:
    if tokenizer is None:
        raise CalibrationError(
            f"{data}: text needs a tokenizer; give --tokenizer tokenizer.json, or put it beside the model"
        )
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise CalibrationError(
            f"{data}: text needs the tokenizers package: pip install tokenizers"
        ) from error
    path = Path(tokenizer)
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        cause = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise CalibrationError(f"{path}: cannot be read as a tokenizer: {cause}") from error
    try:
        loaded = Tokenizer.from_str(content)
    except Exception as error:  # the bindings raise plain Exception for whatever is wrong with the file
        raise CalibrationError(f"{path}: not a tokenizer.json: {' '.join(str(error).split())}") from error
    return loaded


def _from_folder(path: Path, samples: int) -> CalibrationData:
    files = sorted(path.glob("*.npz"))
    if not files:
        raise CalibrationError(f"{path}: no .npz files in it; one .npz is one feed, its arrays by input name")
    return _limited(str(path), lambda: (_load_npz(file) for file in files), len(files), samples)


def _load_npz(path: Path) -> Feed:
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise CalibrationError(
                f"{path}: a single array, not an .npz; save it with numpy.savez(path, input_name=array)"
            )
        with archive:
            feed = {name: archive[name] for name in archive.files}
    except ValueError as error:  # NumPy says how to unpickle it, which would run whatever the file says
        raise CalibrationError(
            f"{path}: not a readable .npz of plain arrays; save it with numpy.savez(path, input_name=array)"
        ) from error
    except (OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise CalibrationError(f"{path}: not a readable .npz: {' '.join(str(error).split())}") from error
    if not feed:
        raise CalibrationError(f"{path}: holds no arrays; save it with numpy.savez(path, input_name=array)")
    return feed


def _read_jsonl(path: Path, tokenizer: str | os.PathLike[str] | None, length: int) -> Iterator[Feed]:
    encode: Encode | None = None
    with _reading(path), path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            where = f"{path}: line {number}"
            values = _parse_line(line, where)
            if not isinstance(values.get("text"), str):
                yield {name: _array(value, f"{where}: {name}") for name, value in values.items()}
                continue
            if set(values) != {"text"}:
                raise CalibrationError(
                    f"{where}: text stands alone, drop {', '.join(sorted(set(values) - {'text'}))}"
                )
            if encode is None:  # at the first text: arrays need no tokenizer
                encode = text_encoder(tokenizer, where)
            tokens = encode(values["text"])[:length]
            if not tokens:
                raise CalibrationError(f"{where}: the text gives no tokens")
            yield {TOKENS: np.asarray([tokens], dtype=np.int64)}


def _parse_line(line: bytes, where: str) -> dict[str, Any]:
    try:
        values = json.loads(line)
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError alike
        raise CalibrationError(f"{where}: not JSON: {error}") from error
    if not isinstance(values, dict) or not values:
        raise CalibrationError(f'{where}: expected {{"input": [...]}} or {{"text": "..."}}')
    return values


def _array(value: object, where: str) -> npt.NDArray[Any]:
    try:
        array = np.asarray(value)
    except (ValueError, OverflowError) as error:
        raise CalibrationError(f"{where}: its lists have different lengths") from error
    if array.dtype.kind == "U":
        raise CalibrationError(
            f"{where}: holds text ({str(value)[:40]}), and inputs take numbers; "
            'a line of text is {"text": "..."}, one string and no other key'
        )
    if array.dtype.kind not in "biuf":
        raise CalibrationError(f"{where}: expected numbers in lists of equal length, got {str(value)[:40]}")
    return array


def _count_lines(path: Path) -> int:
    with _reading(path), path.open("rb") as file:
        count = sum(1 for line in file if line.strip())
    if count == 0:
        raise CalibrationError(f"{path}: empty; give a file with data in it")
    return count


def _from_function(source: str, samples: int) -> CalibrationData:
    """``package.module:function``, from the Python path or the current folder."""
    function = import_reference(source, CalibrationError)
    if not callable(function):
        raise CalibrationError(f"{source}: must be a function, not {type(function).__name__}")

    def read() -> Iterator[Feed]:
        try:
            feeds = function()
            if isinstance(feeds, Iterable) and not isinstance(feeds, Mapping):
                yield from itertools.islice(feeds, samples)
                return
        except Exception as error:  # a user's function may raise anything
            raise CalibrationError(
                f"{source}: failed: {describe(error)}; correct it, --traceback shows where"
            ) from error
        hint = "yield it, or put it in a list" if isinstance(feeds, Mapping) else "yield them one by one"
        raise CalibrationError(f"{source}: must give feeds, gave {type(feeds).__name__}; {hint}")

    return CalibrationData(source, (), read)


def _from_iterable(source: object, samples: int) -> CalibrationData:
    if not isinstance(source, Iterable) or isinstance(source, Mapping):
        raise CalibrationError(
            f"calibration: expected a path or feeds (input name -> array), got {type(source).__name__}"
        )
    if isinstance(source, Iterator):  # it runs once, so what is used of it is kept
        source = list(itertools.islice(source, samples))
    feeds = source
    return CalibrationData("feeds from Python", (), lambda: itertools.islice(iter(feeds), samples))


def _limited(source: str, read: Callable[[], Iterator[Feed]], count: int, samples: int) -> CalibrationData:
    warnings = (
        (f"{source}: the first {samples} of {count} feeds are used; set calib.samples for more",)
        if count > samples
        else ()
    )
    return CalibrationData(source, warnings, lambda: itertools.islice(read(), samples))


def _check_feed(feed: object, where: str) -> None:
    if not isinstance(feed, Mapping) or not feed:
        raise CalibrationError(
            f"{where}: expected a mapping of input names to arrays, got {type(feed).__name__}"
        )
    for name, array in feed.items():
        if not isinstance(array, np.ndarray):
            raise CalibrationError(f"{where}: {name} is {type(array).__name__}, not a NumPy array")
        if array.dtype.kind in "fV" and bool(np.isnan(array).any()):
            raise CalibrationError(
                f"{where}: {name} holds NaN; it would poison every statistic, so drop that sample"
            )
