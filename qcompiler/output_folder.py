"""The output folder: built beside its final place and renamed at the end, so that it is there whole or not at all."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qcompiler.errors import ResourceError


@contextmanager
def output_folder(place: Path, force: bool, sources: list[Path]) -> Iterator[tuple[Path, Path]]:
    """Yields (folder to fill, work folder); on success the first becomes ``place`` and the second is removed.

    Args:
        place: the final folder.
        force: replace what is there.
        sources: files that must not lie inside ``place``, since it may be replaced.
    Raises:
        ResourceError: it exists, cannot be written, or holds the input.
    """
    place = place.absolute()
    if place.exists() and not force:
        raise ResourceError(f"{place}: exists; choose another with -o, or replace it with --force")
    if place.exists() and not place.is_dir():
        raise ResourceError(f"{place}: is a file, not a folder; choose another with -o")
    for source in sources:
        if place in source.resolve().parents or place in source.absolute().parents:
            raise ResourceError(
                f"{place}: holds the input {source.name}, which is never overwritten; choose another with -o"
            )
    work = place.with_name(place.name + ".work")
    staged = work / "out"
    try:
        shutil.rmtree(work, ignore_errors=True)  # of a run that was killed
        staged.mkdir(parents=True)
    except OSError as error:
        raise ResourceError(
            f"{work}: cannot be made ({error.strerror}); choose another place with -o"
        ) from error
    try:
        yield staged, work
        old = work / "old"
        if place.exists():
            place.rename(old)
        staged.rename(place)
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        raise ResourceError(
            f"{error.filename or place}: {error.strerror}; free space or choose another place with -o"
        ) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Sorted, so that the same value gives the same bytes."""
    path.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")
