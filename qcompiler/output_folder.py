"""The output folder: built beside its final place and renamed at the end, so that it is there whole or not at all."""

import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from qcompiler.errors import ResourceError
from qcompiler.graph.checkpoints import has_checkpoints

MANIFEST = "manifest.json"
MARKER = "qcompiler-work-folder"  # a file that says: this work folder is ours to remove
_MANIFEST_KEYS = {"input", "output", "recipe", "versions"}


@contextmanager
def output_folder(
    place: Path, force: bool, sources: Iterable[Path], resume: bool = False
) -> Iterator[tuple[Path, Path]]:
    """Yields (folder to fill, work folder); on success the first becomes ``place`` and the second is removed.

    After a failure the work folder stays where it holds a checkpoint.

    Args:
        place: the final folder.
        force: replace an earlier output that is there.
        sources: files and folders that must not lie inside ``place``, since it may be replaced.
        resume: leave what an earlier run has finished in the work folder.
    Raises:
        ResourceError: as ``check_place``, or the folder cannot be made or renamed.
    """
    place = place.absolute()
    work = work_folder(place)
    staged = work / "out"
    _put_back(place, work)  # after a run that was killed while it replaced an output
    check_place(place, force, sources)
    try:
        if work.exists():
            _clear(work, keep=resume)  # of a run that was killed or failed
        staged.mkdir(parents=True)
        (work / MARKER).touch()
    except OSError as error:
        raise ResourceError(
            f"{work}: cannot be made ({error.strerror}); choose another place with -o"
        ) from error
    try:
        yield staged, work
        _replace(place, staged, work)
    except BaseException:
        _put_back(place, work)
        with suppress(OSError):
            _clear(work, keep=True)
        raise
    with suppress(OSError):
        _clear(work, keep=False)


def work_folder(place: Path) -> Path:
    """Where the work on ``place`` is done."""
    place = place.absolute()
    if not place.name:
        raise ResourceError(f"{place}: is the root of all folders; choose another place with -o")
    return place.with_name(place.name + ".work")


def check_place(place: Path, force: bool, sources: Iterable[Path]) -> None:
    """Refuses a place for the output where something else would be lost.

    Raises:
        ResourceError: it exists and is no earlier output or ``force`` is not given, its work folder is
            someone else's, it is named like a file, or it holds one of ``sources``.
    """
    place = place.absolute()
    work = work_folder(place)
    if place.suffix == ".onnx":
        raise ResourceError(
            f"{place}: the output is a folder, with model.onnx in it; give -o a name without .onnx"
        )
    if place.exists() and not place.is_dir():
        raise ResourceError(f"{place}: is a file, not a folder; choose another with -o")
    for source in sources:
        for folder in (place, work):
            if _holds(folder, source):
                raise ResourceError(f"{folder}: holds {source}, which would be lost; choose another with -o")
    if place.exists() and not _is_output(place):
        raise ResourceError(
            f"{place}: holds files but no {MANIFEST} of an earlier compile, so --force leaves it alone; choose another with -o"
        )
    if place.exists() and not force:
        raise ResourceError(
            f"{place}: exists; choose another with -o, or replace it with --force (in Python: output=, Options(force=True))"
        )
    if work.exists() and not _is_work_folder(work):
        raise ResourceError(
            f"{work}: is needed for the work and holds files of others; move it, or choose another place with -o"
        )


def _clear(work: Path, keep: bool) -> None:
    """Removes the work folder; with ``keep`` only the unfinished output in it, where anything else is finished."""
    if keep and has_checkpoints(work):
        for name in ("out", "old"):  # where old is still here, place has its successor
            if (work / name).exists():
                shutil.rmtree(work / name)
        return
    # Checkpoints go first and the marker last: whatever is left of it is ours to remove, and nothing to go on from.
    paths = sorted(
        work.iterdir(), key=lambda path: (path.name == MARKER, not path.name.startswith("checkpoint"))
    )
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    work.rmdir()


def _replace(place: Path, staged: Path, work: Path) -> None:
    try:
        if place.exists():
            place.rename(work / "old")
        staged.rename(place)
    except OSError as error:
        raise ResourceError(
            f"{place}: cannot be put in place ({error.strerror}); choose another with -o"
        ) from error


def _put_back(place: Path, work: Path) -> None:
    """The output that was to be replaced, where its replacement did not follow."""
    old = work / "old"
    if _is_work_folder(work) and old.exists() and not place.exists():
        old.rename(place)


def _is_work_folder(folder: Path) -> bool:
    return folder.is_dir() and ((folder / MARKER).is_file() or not any(folder.iterdir()))


def _is_output(folder: Path) -> bool:
    """Whether the folder is empty or has the manifest of a compile."""
    if not any(folder.iterdir()):
        return True
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(manifest, dict) and manifest.keys() >= _MANIFEST_KEYS


def _holds(folder: Path, source: Path) -> bool:
    """Whether the source is the folder or lies in it, by its own path or, where it is a link, by what it leads to."""
    real = folder.resolve()
    paths = (source.resolve(), source.parent.resolve() / source.name)
    return any(path == real or real in path.parents for path in paths)


def write_json(path: Path, value: Any) -> None:
    """Sorted, so that the same value gives the same bytes."""
    path.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")
