"""What a compile has finished, kept in its work folder so that another run can go on from there.

A part (a segment of the model, a weight outside any) is finished when its ``checkpoint-NNNNNN.json`` is there. The JSON says what was
done; the tensors that it names by their offsets are in the spill file, on the disk before the JSON appears, by a rename. So whatever
the moment of a kill, each checkpoint that is there is whole, and what lies in the spill file after the last of them is cut off.
"""

import json
import zlib
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qcompiler.errors import ResumeError
from qcompiler.graph.disk import write_whole
from qcompiler.graph.weight_store import WeightStore

FINGERPRINT = "fingerprint.json"
BEGIN_ANEW = "leave out --resume to begin anew"
_PATTERN = "checkpoint-*.json"


def has_checkpoints(folder: Path) -> bool:
    """Whether anything in a work folder is finished."""
    return next(folder.glob(_PATTERN), None) is not None


class Checkpoints:
    """The finished parts in ``folder``, in order: first those that an earlier run left are taken, then new ones are added.

    Args:
        store: the spill file in that folder, opened to be continued.
        fingerprint: plain values; everything that the bytes of the result follow from.
    Raises:
        ResumeError: what is there was made from something else, or is damaged.
        ResourceError: the folder cannot be written.
    """

    def __init__(self, folder: Path, store: WeightStore, fingerprint: Mapping[str, Any]) -> None:
        self.folder = folder
        self._store = store
        self._digest = f"{zlib.crc32(_text(fingerprint)):08x}"
        self._found: deque[tuple[Path, dict[str, Any]]] = deque()
        self._count = self._end = 0
        paths = sorted(folder.glob(_PATTERN))
        if not paths:
            _write(folder / FINGERPRINT, fingerprint)
            return
        difference = _difference(_read(folder / FINGERPRINT), fingerprint)
        if difference:
            raise ResumeError(
                f"{folder}: cannot go on: {difference}; compile as it was begun, or {BEGIN_ANEW}"
            )
        for path in paths:
            self._found.append((path, self._checked(path, _read(path))))
        store.cut(self._end)

    @property
    def found(self) -> list[Any]:
        """What ``add`` was given for the parts that are still to be taken, in order."""
        return [body["content"] for _, body in self._found]

    def take(self, part: str) -> Any:
        """What ``add`` was given for the next part, or None where no more is finished.

        Raises:
            ResumeError: the next finished part is another one.
        """
        if not self._found:
            return None
        path, body = self._found.popleft()
        if body["part"] != part:
            raise damaged(path, f"is of {body['part']}, not of {part}")
        return body["content"]

    def add(self, part: str, content: Any) -> None:
        """Makes a part finished, with what was added to the spill file since the last one.

        Args:
            part: its name; the next run asks for it by that name, in the same order.
            content: plain values for JSON.
        Raises:
            ResourceError: the disk is full; the parts before it are still finished.
        """
        start, end = self._end, self._store.nbytes
        self._store.sync()
        body = {
            "part": part,
            "number": self._count,
            "fingerprint": self._digest,
            "stored": [start, end, self._store.crc32(start, end)],
            "content": content,
        }
        _write(self.folder / f"checkpoint-{self._count:06d}.json", body)
        self._count, self._end = self._count + 1, end

    def _checked(self, path: Path, body: Any) -> dict[str, Any]:
        """Counts a checkpoint in; raises ResumeError where it does not follow the one before it."""
        if not isinstance(body, dict) or body.keys() != {
            "part",
            "number",
            "fingerprint",
            "stored",
            "content",
        }:
            raise damaged(path, "is damaged")
        if body["fingerprint"] != self._digest:
            raise damaged(path, "is of another compile")
        start, end, checksum = body["stored"]
        if body["number"] != self._count or start != self._end:
            raise damaged(path, "does not follow the one before it")
        try:
            whole = self._store.crc32(start, end) == checksum
        except ValueError as error:
            raise damaged(self._store.path, f"is damaged ({error})") from error
        if not whole:
            raise damaged(self._store.path, f"is damaged (between bytes {start} and {end})")
        self._count, self._end = self._count + 1, end
        return body


def damaged(path: Path, what: str) -> ResumeError:
    """The refusal to go on from what a file says."""
    return ResumeError(f"{path}: {what}; {BEGIN_ANEW}")


def _write(path: Path, body: Any) -> None:
    write_whole(path, _text({"crc32": zlib.crc32(_text(body)), "body": body}))


def _read(path: Path) -> Any:
    try:
        document = json.loads(path.read_bytes())
        whole = document["crc32"] == zlib.crc32(_text(document["body"]))
    except OSError as error:
        raise damaged(path, f"cannot be read ({error.strerror})") from error
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise damaged(path, "is damaged") from error
    if not whole:
        raise damaged(path, "is damaged")
    return document["body"]


def _text(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True).encode()


_DIFFERENT = {
    "input": "the model is another",
    "recipe": "the recipe is another",
    "calibration": "the calibration data is other data",
}


def _difference(then: Any, now: Mapping[str, Any]) -> str:
    """What is not as it was, for a message; empty where all is."""
    then = then if isinstance(then, dict) else {}
    for key in [*_DIFFERENT, *sorted((now.keys() | then.keys()) - _DIFFERENT.keys())]:
        before, after = then.get(key), now.get(key)
        if before == after:
            continue
        if key in _DIFFERENT:
            return _DIFFERENT[key]
        if isinstance(before, dict) and isinstance(after, dict):
            name = next(name for name in sorted(before.keys() | after) if before.get(name) != after.get(name))
            return f"{name} was {before.get(name)} and is {after.get(name)}"
        return f"{key} was {before} and is {after}"
    return ""
