"""What the disk refuses, in one line: full, not writable, too large."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qcompiler.errors import ResourceError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS}


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """Turns an ``OSError`` while writing ``place`` into a ResourceError that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise ResourceError(f"{place}: the disk is full; free space or choose another place") from error
        if error.errno in _REFUSED:
            raise ResourceError(f"{place}: not writable; choose a place that is") from error
        reason = error.strerror or str(error)
        raise ResourceError(f"{place}: cannot be written ({reason}); choose another place") from error


def require_free(folder: Path, needed: int) -> None:
    """Refuses a write of ``needed`` bytes into ``folder`` that its disk cannot hold.

    Raises:
        ResourceError: fewer bytes are free.
    """
    with writing(folder):
        free = shutil.disk_usage(folder).free
    if free < needed:
        raise ResourceError(
            f"{folder}: {needed / 1e6:.0f} MB needed, {free / 1e6:.0f} MB free; "
            "free space or choose another place"
        )


def write_whole(path: Path, content: bytes) -> None:
    """A file that is there whole or not at all, whatever happens to the machine; then it stays there.

    Raises:
        ResourceError: it cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    with writing(path):
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
