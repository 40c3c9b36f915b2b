from pathlib import Path

import pytest

from models import cache


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def _write(folder: Path) -> None:
    (folder / "file").write_text("content")


def _refuse(folder: Path) -> None:
    _write(folder)
    raise ValueError("half way")


def test_an_entry_is_built_once() -> None:
    first = cache.entry("thing", {"form": "a"}, [], _write)
    assert (first / "file").read_text() == "content"
    assert cache.entry("thing", {"form": "a"}, [], _refuse) == first


def test_facts_and_sources_make_the_entry(tmp_path: Path) -> None:
    source = tmp_path / "source.py"
    source.write_text("one")
    folders = {cache.entry("thing", {"form": form}, [source], _write) for form in ("a", "b")}
    source.write_text("two")
    folders.add(cache.entry("thing", {"form": "a"}, [source], _write))
    assert len(folders) == 3


def test_a_failed_build_leaves_no_entry() -> None:
    with pytest.raises(ValueError, match="half way"):
        cache.entry("thing", {}, [], _refuse)
    assert [path for path in cache.root().iterdir() if path.is_dir()] == []
    assert (cache.entry("thing", {}, [], _write) / "file").exists()


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "package.whl"
    file.write_bytes(b"other")
    with pytest.raises(cache.UnavailableError, match=r"package\.whl: SHA-256 is"):
        cache.check_sha256(file, cache.sha256_of(b"pinned"))


def test_a_command_that_fails_or_is_absent_is_one_line() -> None:
    with pytest.raises(cache.UnavailableError, match="thing: sh failed with status 3: no luck"):
        cache.run(["sh", "-c", "echo no luck >&2; exit 3"], what="thing")
    with pytest.raises(cache.UnavailableError, match="thing: this machine has no absent-command"):
        cache.run(["absent-command"], what="thing")


def test_an_absent_distribution_is_named() -> None:
    with pytest.raises(cache.UnavailableError, match="pip install absent-distribution"):
        cache.versions("absent-distribution")
