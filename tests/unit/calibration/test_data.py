"""Calibration data in every form the command line takes, and each way in which it can be wrong."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from qcompiler.calibration import data, text_windows
from qcompiler.calibration.data import TOKENS, Feed, check_exists, open_calibration
from qcompiler.errors import CalibrationError


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    """Words w0..w99 to 0..99; its special token, truncation and padding are not for calibration."""
    made = Tokenizer(models.WordLevel({f"w{n}": n for n in range(100)} | {"[X]": 100}, unk_token="[X]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(single="[X] $A", special_tokens=[("[X]", 100)])
    made.enable_truncation(3)
    made.enable_padding(pad_id=100, pad_token="[X]", length=50)
    path = tmp_path / "tokenizer.json"
    made.save(str(path))
    return path


def words(count: int) -> str:
    return " ".join(f"w{n % 100}" for n in range(count))


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def feeds_of(source: object, tokenizer: Path | None = None, samples: int = 4, length: int = 5) -> list[Feed]:
    opened = open_calibration(source, tokenizer, samples, length)  # type: ignore[arg-type]
    first, second = list(opened), list(opened)
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert all(np.array_equal(one[name], other[name]) for name in one)
    return first


def refused(source: object, tokenizer: Path | None = None, samples: int = 4, length: int = 5) -> str:
    with pytest.raises(CalibrationError) as caught:
        list(open_calibration(source, tokenizer, samples, length))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_text_gives_consecutive_windows_of_the_whole_text(tmp_path: Path, tokenizer: Path) -> None:
    feeds = feeds_of(write(tmp_path / "t.txt", words(23)), tokenizer, samples=3)
    assert [feed[TOKENS].tolist() for feed in feeds] == [[[*range(5 * n, 5 * n + 5)]] for n in range(3)]
    assert feeds[0][TOKENS].dtype == np.int64


def test_short_text_gives_what_there_is_with_a_warning(tmp_path: Path, tokenizer: Path) -> None:
    opened = open_calibration(write(tmp_path / "t.txt", words(13)), tokenizer, 4, 5)
    assert len(list(opened)) == 2
    assert len(opened.warnings) == 1 and "13 tokens give 2 windows of 5, not 4" in opened.warnings[0]


def test_a_large_text_is_read_in_part_with_the_same_tokens(
    tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "t.txt", words(5000))
    whole = feeds_of(path, tokenizer, samples=30, length=10)
    monkeypatch.setattr(text_windows, "_FIRST_READ", 100)
    part = feeds_of(path, tokenizer, samples=30, length=10)
    assert all(np.array_equal(one[TOKENS], other[TOKENS]) for one, other in zip(whole, part, strict=True))


def test_text_errors(tmp_path: Path, tokenizer: Path) -> None:
    assert "4 tokens, not one window of 5" in refused(write(tmp_path / "t.txt", words(4)), tokenizer)
    assert "text needs a tokenizer; give --tokenizer" in refused(tmp_path / "t.txt")
    assert "empty" in refused(write(tmp_path / "e.txt", ""), tokenizer)
    (tmp_path / "b.txt").write_bytes(b"w1 \xff\xff")
    assert "not UTF-8 text" in refused(tmp_path / "b.txt", tokenizer)


def test_tokenizer_errors(tmp_path: Path) -> None:
    text = write(tmp_path / "t.txt", words(10))
    assert "none.json: cannot be read as a tokenizer: No such file" in refused(text, tmp_path / "none.json")
    assert "not a tokenizer.json" in refused(text, write(tmp_path / "bad.json", "{"))
    assert "not a tokenizer.json" in refused(text, write(tmp_path / "other.json", '{"a": 1}'))


def test_tokens_become_text_again_special_ones_too(tmp_path: Path, tokenizer: Path) -> None:
    decode = data.text_decoder(tokenizer, "t.txt")
    assert decode([3, 100, 4]) == "w3 [X] w4" and decode([]) == ""
    with pytest.raises(CalibrationError, match=r"none\.json: cannot be read as a tokenizer"):
        data.text_decoder(tmp_path / "none.json", "t.txt")


def test_tokenizers_package_missing(tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert "pip install tokenizers" in refused(write(tmp_path / "t.txt", words(10)), tokenizer)


def test_one_npz_is_one_feed(tmp_path: Path) -> None:
    stack = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    np.savez(tmp_path / "a.npz", x=stack)
    (feed,) = feeds_of(tmp_path / "a.npz")
    assert np.array_equal(feed["x"], stack)


def test_folder_of_npz_in_order_of_names(tmp_path: Path) -> None:
    for n in (3, 1, 2):
        np.savez(tmp_path / f"{n}.npz", x=np.full(2, n))
    assert [feed["x"][0] for feed in feeds_of(tmp_path)] == [1, 2, 3]
    opened = open_calibration(tmp_path, None, 2, 5)
    assert [feed["x"][0] for feed in opened] == [1, 2]
    assert "the first 2 of 3 feeds are used" in opened.warnings[0]


def test_npz_errors(tmp_path: Path) -> None:
    assert "no .npz files" in refused(tmp_path)
    write(tmp_path / "bad.npz", "not a zip")
    assert "bad.npz: not a readable .npz" in refused(tmp_path / "bad.npz")
    assert "pickle" not in refused(tmp_path / "bad.npz")  # NumPy's advice would run what the file says
    assert "bad.npz: not a readable .npz" in refused(tmp_path)
    whole = tmp_path / "cut.npz"
    np.savez(whole, x=np.zeros(1000))
    whole.write_bytes(whole.read_bytes()[:500])
    assert "cut.npz: not a readable .npz" in refused(whole)
    with (tmp_path / "array.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    assert "a single array, not an .npz" in refused(tmp_path / "array.npz")
    np.savez(tmp_path / "none.npz")
    assert "holds no arrays" in refused(tmp_path / "none.npz")
    np.savez(tmp_path / "object.npz", x=np.array([{}], dtype=object))
    assert "not a readable .npz" in refused(tmp_path / "object.npz")
    np.savez(tmp_path / "nan.npz", x=np.array([1.0, np.nan]))
    assert "x holds NaN" in refused(tmp_path / "nan.npz")


def test_infinity_is_data(tmp_path: Path) -> None:
    np.savez(tmp_path / "mask.npz", mask=np.array([0.0, -np.inf]))
    assert len(feeds_of(tmp_path / "mask.npz")) == 1


def test_jsonl_of_inputs_and_of_text(tmp_path: Path, tokenizer: Path) -> None:
    lines = [{"x": [[1, 2]], "y": [0.5]}, {"text": words(9)}, {"text": "w7"}]
    path = write(tmp_path / "f.jsonl", "\n\n".join(json.dumps(line) for line in lines) + "\n")
    arrays, cut, short = feeds_of(path, tokenizer)
    assert (
        arrays["x"].tolist() == [[1, 2]] and arrays["x"].dtype.kind == "i" and arrays["y"].tolist() == [0.5]
    )
    assert cut[TOKENS].tolist() == [[0, 1, 2, 3, 4]]
    assert short[TOKENS].tolist() == [[7]]
    assert len(feeds_of(path, tokenizer, samples=2)) == 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not JSON"),
        ("[1]", "line 2: expected"),
        ("{}", "line 2: expected"),
        ('{"x": [[1], [1, 2]]}', "line 2: x: its lists have different lengths"),
        (
            '{"txt": "a"}',
            'line 2: txt: holds text (a), and inputs take numbers; a line of text is {"text": "..."}',
        ),
        ('{"text": ["a"]}', "line 2: text: holds text (['a']), and inputs take numbers; a line of text is"),
        ('{"x": null}', "line 2: x: expected numbers"),
        ('{"text": "w1", "x": [1]}', "line 2: text stands alone, drop x"),
        ('{"text": ""}', "line 2: the text gives no tokens"),
        ('{"x": [NaN]}', "feed 2: x holds NaN"),
    ],
)
def test_jsonl_errors_name_the_line(tmp_path: Path, tokenizer: Path, line: str, message: str) -> None:
    assert message in refused(write(tmp_path / "f.jsonl", '{"x": [1]}\n' + line + "\n"), tokenizer)


def test_jsonl_of_arrays_reads_no_tokenizer(tmp_path: Path) -> None:
    broken = write(tmp_path / "tokenizer.json", "{")
    arrays = write(tmp_path / "arrays.jsonl", '{"x": [[1, 2]]}\n')
    (feed,) = feeds_of(arrays, broken)
    np.testing.assert_array_equal(feed["x"], [[1, 2]])
    assert "not a tokenizer.json" in refused(write(tmp_path / "text.jsonl", '{"text": "a"}\n'), broken)


def test_jsonl_without_what_it_needs(tmp_path: Path) -> None:
    assert "line 1: text needs a tokenizer" in refused(write(tmp_path / "f.jsonl", '{"text": "w1"}'))
    assert "empty" in refused(write(tmp_path / "blank.jsonl", "\n \n"))
    (tmp_path / "bytes.jsonl").write_bytes(b'{"x": "\xff"}')
    assert "line 1: not JSON" in refused(tmp_path / "bytes.jsonl")


def test_paths_that_say_nothing(tmp_path: Path) -> None:
    assert "no such file" in refused(tmp_path / "none.txt")
    assert ".csv says no form of data; use .txt, .jsonl, .npz, a folder of .npz or module" in refused(
        write(tmp_path / "a.csv", "1")
    )
    assert "no suffix says no form" in refused(write(tmp_path / "a", "1"))


def test_function_of_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(
        tmp_path / "my_calibration.py",
        "import numpy as np\n"
        "def feeds():\n    for n in range(9):\n        yield {'x': np.full(2, n)}\n"
        "def nothing():\n    return []\n"
        "def number():\n    return 3\n"
        "def lists():\n    yield {'x': [1]}\n"
        "def bare():\n    yield 3\n"
        "def one():\n    return {'x': np.zeros(2)}\n"
        "count = 3\n",
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert [feed["x"][0] for feed in feeds_of("my_calibration:feeds")] == [0, 1, 2, 3]
    assert "my_calibration has no fedes; did you mean 'feeds'?" in refused("my_calibration:fedes")
    assert "must be a function, not int" in refused("my_calibration:count")
    assert "gives no feeds" in refused("my_calibration:nothing")
    assert "must give feeds, gave int; yield them one by one" in refused("my_calibration:number")
    assert "must give feeds, gave dict; yield it, or put it in a list" in refused("my_calibration:one")
    assert "x is list, not a NumPy array" in refused("my_calibration:lists")
    assert "expected a mapping of input names" in refused("my_calibration:bare")
    assert "no module no_such_module_here" in refused("no_such_module_here:feeds")


def test_a_function_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "feeds_beside.py", "import numpy as np\ndef feeds():\n    return [{'x': np.ones(2)}]\n")
    monkeypatch.chdir(tmp_path)
    assert len(feeds_of("feeds_beside:feeds")) == 1
    assert "a module; name its function too, feeds_beside:FUNCTION" in refused("feeds_beside.py")


def test_iterables_from_python() -> None:
    feeds = [{"x": np.full(2, n)} for n in range(9)]
    assert [feed["x"][0] for feed in feeds_of(feeds)] == [0, 1, 2, 3]
    assert [feed["x"][0] for feed in feeds_of(iter(feeds))] == [0, 1, 2, 3]
    assert "gives no feeds" in refused([])
    assert "expected a path or feeds" in refused({"x": np.zeros(2)})
    assert "expected a path or feeds" in refused(3)


def test_files_are_read_one_feed_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(3):
        np.savez(tmp_path / f"{n}.npz", x=np.full(2, n))
    read: list[str] = []
    load = data._load_npz

    def counted(path: Path) -> Feed:
        read.append(path.name)
        return load(path)

    monkeypatch.setattr(data, "_load_npz", counted)
    stream: Iterator[Feed] = iter(open_calibration(tmp_path, None, 9, 5))
    assert read == []
    next(stream)
    assert read == ["0.npz"]


@pytest.mark.parametrize("name", ["t.txt", "f.jsonl"])
def test_a_file_that_the_system_will_not_read(
    tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = write(tmp_path / name, words(50))

    def fails(self: Path, *arguments: object, **options: object) -> None:
        raise OSError(5, "Input/output error", str(self))

    monkeypatch.setattr(data, "text_encoder", lambda tokenizer, text: lambda text: [])
    monkeypatch.setattr(Path, "open", fails)
    assert f"{name}: cannot be read (Input/output error)" in refused(path, tokenizer)


def test_whether_there_is_such_data(tmp_path: Path) -> None:
    for source in (tmp_path, str(tmp_path), "package.module:function", [], {"x": np.zeros(1)}):
        check_exists(source)
    for missing in (tmp_path / "a.txt", "a.txt", "C:a.npz", "nowhere"):
        with pytest.raises(CalibrationError, match="no such file or folder; check the path"):
            check_exists(missing)


@pytest.mark.parametrize("body", ["return {}[1]", "yield {'x': np.ones(2)}; {}[1]"])
def test_a_users_function_that_fails_is_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str
) -> None:
    write(tmp_path / "failing_feeds.py", f"import numpy as np\ndef feeds():\n    {body}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "failing_feeds", raising=False)
    assert "failing_feeds:feeds: failed: KeyError: 1; correct it" in refused("failing_feeds:feeds")
