"""What a command of the tests came to, and what it left in the folder."""

import hashlib
from collections.abc import Callable
from pathlib import Path

RTN = ["--recipe", "w4a16-rtn"]


class Outcome:
    """Exit status and what was written."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err

    @property
    def error(self) -> str:
        """The one line of an error."""
        lines = self.err.strip().splitlines()
        assert len(lines) == 1 and lines[0].startswith("error: "), self.err
        return lines[0]


Command = Callable[..., Outcome]


def digests(folder: Path) -> dict[str, str]:
    """Of every file in the folder."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def left_behind() -> list[str]:
    """What is in the current folder."""
    return sorted(path.name for path in Path().iterdir())
