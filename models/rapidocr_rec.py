"""PP-OCRv4 recognition (Apache-2.0), as the package rapidocr-onnxruntime has it: reads a line of text.

    python -m models.rapidocr_rec [--copy-to DIR] [--measure]

Input x float32 [batch, 3, 48, width], blue, green, red, (pixel / 255 - 0.5) / 0.5; output probabilities [batch, steps, 6625] of its
characters, the first of which is none. Opset 12, its weights are Constant nodes; convolutions with HardSwish, then two blocks of attention.
Calibration and evaluation: lines of Python's reference topics drawn with Pillow, each a feed of its own width. The 38 lines to judge are
such that the float model reads right: what is illegible to it hangs on the last digit. Metric: how many of them are read so.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from models import cache, language, python_text, rendered_text
from models.built_model import BuiltModel, ModelFiles, exit_from, parser, print_built

PACKAGE = (
    "rapidocr-onnxruntime",
    "1.4.4",
    "971d7d5f223a7a808662229df1ef69893809d8457d834e6373d3854bc1782cbf",
)
FILE = Path("rapidocr_onnxruntime", "models", "ch_PP-OCRv4_rec_infer.onnx")
HEIGHT = 48
SMALLEST_WIDTH = 320  # narrower lines are padded, as the package does
CALIBRATION = 32
LINES = 38
DRAWN = 48  # of which the first LINES that are legible judge
Feeds = list[dict[str, NDArray[np.float32]]]


def build() -> BuiltModel:
    """The model as it is in the package.

    Raises:
        UnavailableError: the package cannot be had.
    """
    source = cache.package(*PACKAGE) / FILE

    def fill(folder: Path) -> None:
        shutil.copyfile(source, folder / "model.onnx")

    return BuiltModel(cache.entry("rapidocr-rec", {"sha256": PACKAGE[2]}, [], fill) / "model.onnx")


def calibration_data() -> Path:
    """A folder of 32 lines, each an .npz: x float32 [1, 3, 48, width].

    Raises:
        UnavailableError: Pillow is not installed.
    """
    return _data() / "calibration"


def evaluation_data() -> Path:
    """A folder of 38 lines of other topics. Raises what ``calibration_data`` raises."""
    return _data() / "evaluation"


def evaluation_texts() -> list[str]:
    """What the 38 lines say."""
    found: list[str] = json.loads((_data() / "texts.json").read_text("utf-8"))
    return found


def measure(model: Path) -> dict[str, float]:
    """The number of lines, and how many of them are read right, as the float model reads them all.

    Raises:
        UnavailableError: the lines cannot be had.
    """
    found = read(language.session(model), load(evaluation_data()))
    right = sum(a == b for a, b in zip(evaluation_texts(), found, strict=True))
    return {"lines": len(found), "right": right}


def load(folder: Path) -> Feeds:
    """The feeds of a folder, in order."""
    feeds = []
    for path in sorted(folder.glob("*.npz")):
        with np.load(path) as arrays:
            feeds.append({name: arrays[name] for name in arrays.files})
    return feeds


def read(session: onnxruntime.InferenceSession, lines: Feeds) -> list[str]:
    """What a model reads: at each step its likeliest character, repetitions, the empty one and spaces at the ends left out."""
    characters = alphabet(build().path)
    (output,) = (value.name for value in session.get_outputs())
    return [_text(session.run([output], line)[0][0].argmax(1), characters) for line in lines]


def alphabet(model: Path) -> list[str]:
    """The characters of the classes after the first; the last is the space, which the model's list leaves out."""
    found: str = language.session(model).get_modelmeta().custom_metadata_map["character"]
    return [*found.splitlines(), " "]


def normalized(line: rendered_text.Pixels) -> NDArray[np.float32]:
    """float32 [1, 3, 48, width] of uint8 [height, width, 3], red, green, blue."""
    from PIL import Image

    height, width, _ = line.shape
    scaled = Image.fromarray(line).resize((round(width * HEIGHT / height), HEIGHT), Image.Resampling.BILINEAR)
    pixels = (np.asarray(scaled, np.float32)[:, :, ::-1] / 255 - 0.5) / 0.5
    padding = max(SMALLEST_WIDTH - scaled.width, 0)
    return np.pad(pixels.transpose(2, 0, 1), ((0, 0), (0, 0), (0, padding)))[None]


def _text(classes: NDArray[np.int64], characters: Sequence[str]) -> str:
    new = np.concatenate([[True], classes[1:] != classes[:-1]])
    return "".join(characters[index - 1] for index in classes[new & (classes > 0)]).strip()


def _data() -> Path:
    calibration, evaluation = python_text.topic_text(), python_text.evaluation_text()
    model = build()

    def fill(folder: Path) -> None:
        rng = np.random.default_rng(0)
        _save(folder / "calibration", _drawn(calibration, CALIBRATION, rng))
        drawn = _drawn(evaluation, DRAWN, rng)
        found = read(language.session(model.path), [feed for _, feed in drawn])
        legible = [line for line, read_as in zip(drawn, found, strict=True) if line[0] == read_as][:LINES]
        if len(legible) < LINES:
            raise cache.UnavailableError(
                f"rapidocr_rec: the float model reads {len(legible)} of {DRAWN} drawn lines, {LINES} are needed; raise DRAWN"
            )
        _save(folder / "evaluation", legible)
        (folder / "texts.json").write_text(json.dumps([text for text, _ in legible], indent=1), "utf-8")

    here = Path(__file__)
    facts = {"calibration": calibration, "evaluation": evaluation, "model": model.path.parent.name}
    sources = [here, here.with_name("rendered_text.py")]
    return cache.entry("rapidocr-lines", {**facts, **rendered_text.facts()}, sources, fill)


def _drawn(
    text: str, count: int, rng: np.random.Generator
) -> list[tuple[str, dict[str, NDArray[np.float32]]]]:
    phrases = rendered_text.phrases(text, count)
    return [(phrase, {"x": normalized(rendered_text.draw_line(phrase, rng).pixels)}) for phrase in phrases]


def _save(folder: Path, lines: list[tuple[str, dict[str, NDArray[np.float32]]]]) -> None:
    folder.mkdir()
    for index, (_, feed) in enumerate(lines):
        np.savez(folder / f"{index:03}.npz", x=feed["x"])


def main() -> None:
    """Command line."""
    given = parser(__doc__).parse_args()
    built = build()
    measured = measure(built.path) if given.measure else None
    print_built(
        ModelFiles(built, calibration_data(), evaluation_data()), measured, given.copy_to, "w8a8-static"
    )


if __name__ == "__main__":
    exit_from(main)
