"""Where a compiled model came from: the manifest.json beside it names the SHA-256 of every file that it was made from."""

import hashlib
import json
from pathlib import Path

from qcompiler.graph import model_file
from qcompiler.report.sizes import format_bytes

MANIFEST = "manifest.json"
MOST_BYTES = 1 << 30
"""That are hashed of a reference: a second or two, beside the minutes that a model of more takes to compare."""


def origin_notes(model: Path, reference: Path) -> list[str]:
    """A line where ``reference`` is not what ``model`` was compiled from, or where that was not looked at; none without a manifest.

    Args:
        model, reference: model files, which exist.
    """
    wanted = _inputs(model)
    if not wanted or model.samefile(reference) or wanted == _inputs(reference):  # siblings have one origin
        return []
    other = [
        f"the reference {reference} is not the model that {model} was compiled from: "
        f"{model.with_name(MANIFEST)} names another SHA-256"
    ]
    digests = set(wanted.values())
    if reference.stat().st_size <= MOST_BYTES and _sha256(reference) not in digests:
        return other  # without a look at its data
    files = list(model_file.files_of(reference).values())
    size = sum(file.stat().st_size for file in files)
    if size > MOST_BYTES:
        return [
            f"whether {model} was compiled from the reference was not looked at: {format_bytes(size)} to hash, "
            f"more than {format_bytes(MOST_BYTES)}"
        ]
    return [] if all(_sha256(file) in digests for file in files) else other


def origin_beside(model: Path) -> Path | None:
    """The model that ``model`` was compiled from, if it lies in the folder around that of ``model``, or in the current one."""
    wanted = {name: digest for name, digest in _inputs(model).items() if Path(name).suffix == ".onnx"}
    for folder in origin_folders(model):
        for name, digest in wanted.items():
            place = folder / name
            if place.is_file() and place.stat().st_size <= MOST_BYTES and _sha256(place) == digest:
                return place
    return None


def origin_folders(model: Path) -> list[Path]:
    """Where compiles are most often started; none for what no manifest says to be of one."""
    if not _inputs(model):
        return []
    return [model.absolute().parent.parent, Path.cwd()]


def _inputs(model: Path) -> dict[str, str]:
    """SHA-256 of the files that ``model`` was made from, by name; empty where nothing says so."""
    try:
        found = json.loads(model.with_name(MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # none, or not ours
    made, source = (found.get(key) if isinstance(found, dict) else None for key in ("output", "input"))
    if not isinstance(made, dict) or not isinstance(source, dict) or model.name not in made:
        return {}  # of another file
    return {str(name): str(digest) for name, digest in source.items()}


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
