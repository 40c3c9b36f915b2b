"""The output folder: there whole or not at all, and nobody else's file is lost on the way."""

import json
from pathlib import Path

import pytest

from qcompiler.errors import ResourceError
from qcompiler.output_folder import MANIFEST, MARKER, check_place, output_folder


def compile_to(place: Path, *sources: Path, force: bool = False, content: str = "new") -> None:
    with output_folder(place, force, sources) as (staged, _):
        (staged / "model.onnx").write_text(content)
        (staged / MANIFEST).write_text(json.dumps({"input": {}, "output": {}, "recipe": "", "versions": {}}))


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_the_folder_appears_whole_and_the_work_folder_goes(tmp_path: Path) -> None:
    with output_folder(tmp_path / "out", False, []) as (staged, work):
        (staged / "model.onnx").touch()
        (work / "spill").touch()
        assert not (tmp_path / "out").exists()
    assert tree(tmp_path) == ["out", "out/model.onnx"]


def test_nothing_is_left_of_a_failure(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="ours"), output_folder(tmp_path / "out", False, []) as (staged, _):
        (staged / "model.onnx").touch()
        raise ValueError("ours")
    assert tree(tmp_path) == []


def test_an_error_of_the_body_stays_what_it_is(tmp_path: Path) -> None:
    """It is not taken for a failure to write the folder."""
    with pytest.raises(FileNotFoundError, match="feeds"), output_folder(tmp_path / "out", False, []):
        (tmp_path / "feeds").read_bytes()


def test_what_exists_is_replaced_only_when_forced(tmp_path: Path) -> None:
    compile_to(tmp_path / "out")
    with pytest.raises(ResourceError, match=r"out: exists; .*--force"):
        compile_to(tmp_path / "out")
    compile_to(tmp_path / "out", force=True, content="newer")
    assert (tmp_path / "out" / "model.onnx").read_text() == "newer"
    assert tree(tmp_path) == ["out", f"out/{MANIFEST}", "out/model.onnx"]


def test_an_empty_folder_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    compile_to(tmp_path / "out", force=True)
    assert (tmp_path / "out" / "model.onnx").read_text() == "new"


@pytest.mark.parametrize("manifest", [None, "not JSON", "[]", '{"name": "a web page"}'])
def test_a_folder_of_others_is_never_replaced(tmp_path: Path, manifest: str | None) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years")
    if manifest is not None:
        (tmp_path / "out" / MANIFEST).write_text(manifest)
    before = tree(tmp_path)
    with pytest.raises(ResourceError, match=r"out: holds files but no manifest\.json of an earlier compile"):
        compile_to(tmp_path / "out", force=True)
    assert tree(tmp_path) == before


def test_the_root_is_no_place() -> None:
    with pytest.raises(ResourceError, match=r"^/: is the root of all folders"):
        compile_to(Path("/"))


def test_a_work_folder_of_others_is_never_removed(tmp_path: Path) -> None:
    (tmp_path / "out.work").mkdir()
    (tmp_path / "out.work" / "thesis.txt").write_text("years")
    with pytest.raises(ResourceError, match=r"out\.work: .*files of others"):
        compile_to(tmp_path / "out")
    assert tree(tmp_path) == ["out.work", "out.work/thesis.txt"]


def test_the_work_folder_of_a_killed_run_is_removed(tmp_path: Path) -> None:
    (tmp_path / "out.work" / "out").mkdir(parents=True)
    (tmp_path / "out.work" / MARKER).touch()
    compile_to(tmp_path / "out")
    assert tree(tmp_path) == ["out", f"out/{MANIFEST}", "out/model.onnx"]


def fail(place: Path, resume: bool = False) -> None:
    with pytest.raises(ValueError, match="ours"), output_folder(place, False, [], resume) as (staged, work):
        (staged / "model.onnx").touch()
        (work / "checkpoint-000000.json").touch()
        raise ValueError("ours")


def test_a_failure_keeps_what_is_finished(tmp_path: Path) -> None:
    fail(tmp_path / "out")
    assert tree(tmp_path) == ["out.work", "out.work/checkpoint-000000.json", f"out.work/{MARKER}"]


@pytest.mark.parametrize("resume", [True, False])
def test_what_is_finished_is_there_for_those_who_resume(tmp_path: Path, resume: bool) -> None:
    fail(tmp_path / "out")
    with output_folder(tmp_path / "out", False, [], resume) as (staged, work):
        assert (work / "checkpoint-000000.json").exists() is resume
        assert not any(staged.iterdir())
    assert tree(tmp_path) == ["out"]


def test_what_is_half_removed_is_ours_and_nothing_to_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill in the middle of the removal: checkpoints have gone, the marker has not."""
    fail(tmp_path / "out")
    (tmp_path / "out.work" / "weights.bin").touch()
    unlink = Path.unlink

    def killed_at_the_weights(self: Path) -> None:
        if self.name == "weights.bin":
            raise KeyboardInterrupt
        unlink(self)

    monkeypatch.setattr(Path, "unlink", killed_at_the_weights)
    with pytest.raises(KeyboardInterrupt):
        compile_to(tmp_path / "out")
    monkeypatch.setattr(Path, "unlink", unlink)
    assert tree(tmp_path) == ["out.work", f"out.work/{MARKER}", "out.work/weights.bin"]
    compile_to(tmp_path / "out")
    assert tree(tmp_path) == ["out", f"out/{MANIFEST}", "out/model.onnx"]


def test_the_earlier_output_comes_back_when_the_new_one_cannot_follow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_to(tmp_path / "out", content="earlier")
    rename = Path.rename

    def fails_for_the_new_one(self: Path, target: Path) -> Path:
        if self.name == "out" and self.parent.name == "out.work":
            raise OSError(5, "Input/output error", str(self))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails_for_the_new_one)
    with pytest.raises(ResourceError, match=r"out: cannot be put in place \(Input/output error\)"):
        compile_to(tmp_path / "out", force=True)
    assert (tmp_path / "out" / "model.onnx").read_text() == "earlier"
    assert not (tmp_path / "out.work").exists()


def test_the_earlier_output_comes_back_after_a_kill_between_the_renames(tmp_path: Path) -> None:
    compile_to(tmp_path / "out", content="earlier")
    (tmp_path / "out.work").mkdir()
    (tmp_path / "out.work" / MARKER).touch()
    (tmp_path / "out").rename(tmp_path / "out.work" / "old")
    with pytest.raises(ResourceError, match="exists"):
        compile_to(tmp_path / "out")
    assert (tmp_path / "out" / "model.onnx").read_text() == "earlier"


@pytest.fixture
def real(tmp_path: Path) -> Path:
    """``real/out`` holds an input and an earlier output's manifest; ``link`` leads to ``real``."""
    compile_to(tmp_path / "real" / "out")
    (tmp_path / "link").symlink_to("real")
    return tmp_path / "real"


@pytest.mark.parametrize("place", ["real/out", "link/out"])
@pytest.mark.parametrize("source", ["real/out/model.onnx", "link/out/model.onnx", "real/out", "seen"])
def test_no_source_is_lost_whatever_path_leads_to_it(
    tmp_path: Path, real: Path, place: str, source: str
) -> None:
    (tmp_path / "seen").symlink_to("real/out/model.onnx")
    with pytest.raises(ResourceError, match=r"out: holds .*which would be lost"):
        compile_to(tmp_path / place, tmp_path / source, force=True)
    assert (real / "out" / "model.onnx").read_text() == "new"


def test_a_source_that_is_a_link_inside_is_not_lost(tmp_path: Path, real: Path) -> None:
    (tmp_path / "weights").touch()
    (real / "out" / "link.onnx").symlink_to("../../weights")
    with pytest.raises(ResourceError, match="which would be lost"):
        compile_to(real / "out", real / "out" / "link.onnx", force=True)


def test_nothing_may_lie_in_the_work_folder(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=r"out\.work: holds .*ir"):
        compile_to(tmp_path / "out", tmp_path / "out.work" / "ir")


@pytest.mark.parametrize(
    ("name", "message"),
    [("out.onnx", r"the output is a folder, with model\.onnx in it"), ("file", "is a file, not a folder")],
)
def test_places_that_are_no_folder(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match=message):
        check_place(tmp_path / name, True, [])


def test_a_place_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match=r"out\.work: cannot be made"):
        compile_to(tmp_path / "file" / "out")
