"""Lines and pages of English drawn with Pillow's own font: pictures that are at hand on every machine.

Sizes, colours, tilt, blur and noise vary by a seed, so that no two lines have the same statistics, as photographs of text have not.
"""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from models import cache
from qcompiler.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

Pixels = NDArray[np.uint8]
FONT_SIZES = (20, 44)  # pixels, from and to
TILT = 1.5  # degrees at most
BLUR = 0.8  # pixels at most
NOISE = 10.0  # standard deviation at most, of 255


@dataclass(frozen=True, slots=True)
class Line:
    """A drawn line: uint8 [height, width, 3], and what it says."""

    pixels: Pixels
    text: str


def facts() -> dict[str, str]:
    """What pictures depend on beside the text.

    Raises:
        UnavailableError: Pillow is not installed.
    """
    return cache.versions("pillow", "numpy")


def phrases(text: str, count: int) -> list[str]:
    """``count`` different runs of 3 to 6 words, of 12 to 40 plain characters, evenly spread over the text.

    Raises:
        InputError: the text has fewer.
    """
    words, found, step = text.split(), dict[str, None](), 0
    while words:
        take, words, step = words[: 3 + step % 4], words[3 + step % 4 :], step + 1
        phrase = " ".join(take)
        if 12 <= len(phrase) <= 40 and re.fullmatch(r"[A-Za-z0-9 .,:;()'\-]+", phrase):
            found[phrase] = None
    if len(found) < count:
        raise InputError(f"text: {len(found)} phrases are fewer than {count}; give a longer text")
    return list(found)[:: len(found) // count][:count]


def draw_line(text: str, rng: np.random.Generator) -> Line:
    """One line, closely cropped: dark on light or, one time in four, light on dark."""
    from PIL import ImageDraw

    font = _font(int(rng.integers(FONT_SIZES[0], FONT_SIZES[1], endpoint=True)))
    ink, paper = _colours(rng)
    left, top, right, bottom = font.getbbox(text)
    margin = int(rng.integers(3, 9))
    picture = _paper((int(right - left) + 2 * margin, int(bottom - top) + 2 * margin), paper)
    ImageDraw.Draw(picture).text((margin - left, margin - top), text, fill=ink, font=font)
    return Line(_worn(picture, paper, rng), text)


def draw_page(texts: list[str], side: int, rng: np.random.Generator) -> Pixels:
    """uint8 [side, side, 3]: lines below each other, each at its own place and size."""
    from PIL import ImageDraw

    ink, paper = _colours(rng)
    picture = _paper((side, side), paper)
    pen, y = ImageDraw.Draw(picture), int(rng.integers(8, 40))
    for text in texts:
        font = _font(int(rng.integers(14, 36, endpoint=True)))
        left, top, right, bottom = font.getbbox(text)
        if y + bottom - top > side:
            break
        x = int(rng.integers(4, max(5, side - int(right - left))))
        pen.text((x - left, y - top), text, fill=ink, font=font)
        y += int(bottom - top) + int(rng.integers(8, 60))
    return _worn(picture, paper, rng)


def _font(size: int):  # type: ignore[no-untyped-def] # Pillow's classes are only known where it is installed
    from PIL import ImageFont

    return ImageFont.load_default(size)


def _colours(rng: np.random.Generator) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Ink and paper."""
    dark, light = (tuple(map(int, rng.integers(low, low + 80, 3))) for low in (0, 175))
    return (light, dark) if rng.random() < 0.25 else (dark, light)


def _paper(size: tuple[int, int], colour: tuple[int, ...]) -> "Image":
    from PIL import Image

    return Image.new("RGB", size, colour)


def _worn(picture: "Image", paper: tuple[int, ...], rng: np.random.Generator) -> Pixels:
    """Tilted, blurred, noisy."""
    from PIL import Image, ImageFilter

    tilted = picture.rotate(float(rng.uniform(-TILT, TILT)), Image.Resampling.BICUBIC, fillcolor=paper)
    blurred = tilted.filter(ImageFilter.GaussianBlur(float(rng.uniform(0, BLUR))))
    pixels = np.asarray(blurred, np.float64)
    noise = rng.normal(0, float(rng.uniform(0, NOISE)), pixels.shape)
    return np.clip(np.rint(pixels + noise), 0, 255).astype(np.uint8)
