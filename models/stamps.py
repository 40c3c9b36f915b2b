"""Photographs of animals, each with its English label: the stamps of the drawing program Tux Paint.

Derived from Debian's package tuxpaint-stamps-default 2022.06.04-1 (GPL-2 and others, see its copyright file),
fetched with apt-get (161 MB); nothing is installed.

The stamps are cut out, of 100 to 500 pixels, with their label in a text beside them. 123 of them are photographs of
animals by this rule: under animals/, not under a folder named cartoon or toys, and of at least 1,000 distinct
colours (the four below that are drawings or greys of 1 to 476). Each is laid on white and scaled, whole, to 224 pixels at its
longer side. In the order of numpy's default_rng(0) the first 30 calibrate and 93 judge.

With ONNX Runtime's quantize_static (minmax) on efficientnet-lite0 this order gives KL 0.012 and agreement 0.957; the
paths in alphabetic order, which calibrate on birds alone, 0.031 and 0.903; and the same order on black 0.021 and on
grey 0.091, which photographs cut out do not have around them.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from models import cache

if TYPE_CHECKING:
    from PIL.Image import Image

PACKAGE = "tuxpaint-stamps-default=2022.06.04-1"
FILES_SHA256 = (
    "fbc18ce88799ffeea87da5af647e16299905abeab0db5bbdc90c081c481871b1"  # of the chosen files, path by path
)
FOLDER = Path("usr", "share", "tuxpaint", "stamps")
CALIBRATION = 30
SIDE = 224  # pixels
MIN_COLOURS = 1000
NO_PHOTOGRAPHS = frozenset({"cartoon", "toys"})  # folders


@dataclass(frozen=True, slots=True)
class Photographs:
    """Images with what they show.

    Attributes:
        pixels: uint8 [count, 3, 224, 224], red, green, blue.
        labels: of each, as "A badger."
    """

    pixels: NDArray[np.uint8]
    labels: tuple[str, ...]


def calibration() -> Photographs:
    """30 photographs.

    Raises:
        UnavailableError: the package or Pillow cannot be had.
    """
    found = _all()
    return Photographs(found.pixels[:CALIBRATION], found.labels[:CALIBRATION])


def evaluation() -> Photographs:
    """93 others. Raises what ``calibration`` raises."""
    found = _all()
    return Photographs(found.pixels[CALIBRATION:], found.labels[CALIBRATION:])


def _all() -> Photographs:
    facts = cache.versions("pillow", "numpy")

    def fill(folder: Path) -> None:
        advice = "run apt-get update"
        with cache.debian_package(PACKAGE, advice) as files:
            chosen = choose(files / FOLDER)
            found = _digest(chosen, files / FOLDER)
            if found != FILES_SHA256:
                raise cache.UnavailableError(
                    f"{PACKAGE}: {len(chosen)} photographs have SHA-256 {found}, pinned is {FILES_SHA256}"
                )
            order = np.random.default_rng(0).permutation(len(chosen))
            photographs = [chosen[index] for index in order]
            np.save(folder / "pixels.npy", np.stack([_pixels(path) for path in photographs]))
            labels = [_label(path) for path in photographs]
        (folder / "labels.json").write_text(json.dumps(labels, ensure_ascii=False, indent=1), "utf-8")

    folder = cache.entry("stamps", facts, [Path(__file__)], fill)
    labels = json.loads((folder / "labels.json").read_text("utf-8"))
    return Photographs(np.load(folder / "pixels.npy"), tuple(labels))


def choose(folder: Path) -> list[Path]:
    """The photographs of animals in a folder of stamps, sorted by path; the rule is this file's first text."""
    found = []
    for path in sorted((folder / "animals").rglob("*.png")):
        if NO_PHOTOGRAPHS.intersection(path.relative_to(folder).parts):
            continue
        rgba = np.asarray(_open(path))
        shown = rgba[rgba[:, :, 3] > 0][:, :3]
        if len(np.unique(shown, axis=0)) >= MIN_COLOURS:
            found.append(path)
    return found


def _pixels(path: Path) -> NDArray[np.uint8]:
    """uint8 [3, 224, 224]: on white, in the middle, the longer side 224."""
    from PIL import Image

    stamp = _open(path)
    on_white = Image.new("RGBA", stamp.size, "white")
    on_white.alpha_composite(stamp)
    share = SIDE / max(stamp.size)
    width, height = (max(1, round(length * share)) for length in stamp.size)
    scaled = on_white.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    square = Image.new("RGB", (SIDE, SIDE), "white")
    square.paste(scaled, ((SIDE - width) // 2, (SIDE - height) // 2))
    return np.asarray(square).transpose(2, 0, 1)


def _label(path: Path) -> str:
    return path.with_suffix(".txt").read_text("utf-8").splitlines()[0].strip()


def _open(path: Path) -> "Image":
    from PIL import Image  # only needed to derive

    with Image.open(path) as image:
        return image.convert("RGBA")


def _digest(paths: list[Path], folder: Path) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.relative_to(folder)}\n".encode())
        for file in (path, path.with_suffix(".txt")):
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()
