"""What the disk refuses, in one line: full, not writable, too large."""

import errno
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
