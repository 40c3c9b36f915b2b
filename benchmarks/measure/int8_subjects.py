"""The models of ``benchmarks.int8_models``: what each is judged by, and who quantizes it how."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.version_converter

from models import digits_cnn, language, minilm, rapidocr_rec
from qcompiler.quant import metrics

Feed = Mapping[str, npt.NDArray[Any]]
PEERS_OPSET = (
    17  # DequantizeLinear has an axis from 13 on: of what quantize_static makes at 12, nothing loads
)


@dataclass(frozen=True)
class Entry:
    """A way to quantize a model.

    Attributes:
        key: of its row.
        what: how the table calls it.
        method: of a peer, or our recipe; ``settings``: of ours, as ``--set`` takes them; ``target``: of ours.
    """

    key: str
    what: str
    job: str
    method: str
    settings: tuple[str, ...] = ()
    target: str = "ort"

    @property
    def ours(self) -> bool:
        """Whether it is a recipe of ours."""
        return self.job == "compile"


@dataclass(frozen=True)
class Subject:
    """A float model with its data.

    Attributes:
        judge: what there is to say of the quality of a file, in figures.
        said: the same in words, for the table.
        sample: the feed that is timed.
        peers_read: writes, of the model, the file that ONNX Runtime's quantizers are given; None for the model itself.
        peers_infer_shapes: whether its symbolic shape inference prepares the model, which gives up on some.
    """

    name: str
    build: Callable[[], Path]
    calibration: Callable[[], Path]
    judge: Callable[[Path], dict[str, float]]
    said: Callable[[Mapping[str, float]], str]
    sample: Callable[[], Feed]
    entries: tuple[Entry, ...]
    peers_read: Callable[[Path, Path], None] | None = None
    peers_infer_shapes: bool = True


def _ours(recipe: str, *settings: str, target: str = "ort") -> Entry:
    of_target = [] if target == "ort" else [f"target {target}"]
    key = "-".join(["ours", recipe, *settings, *of_target]).replace(" ", "-")
    return Entry(key, ", ".join([recipe, *settings, *of_target]), "compile", recipe, settings, target)


STATIC = (
    Entry("ort-minmax", "peer: ORT quantize_static, minmax", "ort-int8", "MinMax"),
    Entry("ort-entropy", "peer: ORT quantize_static, entropy", "ort-int8", "Entropy"),
    Entry("ort-percentile", "peer: ORT quantize_static, percentile", "ort-int8", "Percentile"),
)
DYNAMIC = Entry("ort-dynamic", "peer: ORT quantize_dynamic", "ort-int8", "dynamic")


def _judge_lines(model: Path) -> dict[str, float]:
    """Lines read right, and mean KL(float || it) over the steps of all lines, in nats."""
    feeds = rapidocr_rec.load(rapidocr_rec.evaluation_data())
    reference, session = language.session(rapidocr_rec.build().path), language.session(model)
    found = []
    for feed in feeds:
        wanted, given = (np.log(np.maximum(each.run(None, feed)[0], 1e-12)) for each in (reference, session))
        found.append(metrics.kl_divergence(wanted, given))
    return rapidocr_rec.measure(model) | {"kl": float(np.mean(found))}


def _say_lines(row: Mapping[str, float]) -> str:
    return f"{row['right']:.0f} of {row['lines']:.0f} lines, KL {row['kl']:.4f}"


def _raise_opset(model: Path, output: Path) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(onnx.version_converter.convert_version(onnx.load(model), PEERS_OPSET), output)


def _join_data(model: Path, output: Path) -> None:
    """One file: ``quant_pre_process`` does not find the data of a model with a file beside it."""
    output.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(onnx.load(model), output)


def _say_cosine(row: Mapping[str, float]) -> str:
    return f"cosine {row['cosine_to_float']:.4f}, least {row['worst_cosine_to_float']:.4f}"


def _sentence() -> Feed:
    """The first evaluation sentence, without padding."""
    with np.load(minilm.evaluation_data()) as arrays:
        length = int(arrays["attention_mask"][0].sum())
        return {name: arrays[name][:1, :length] for name in arrays.files}


def _digits() -> Feed:
    """64 images: the processor's clock has no steps for one."""
    with np.load(digits_cnn.evaluation_data()) as arrays:
        return {"image": arrays["image"][:64]}


SUBJECTS = (
    Subject(
        "rapidocr_rec",
        lambda: rapidocr_rec.build().path,
        rapidocr_rec.calibration_data,
        _judge_lines,
        _say_lines,
        lambda: rapidocr_rec.load(rapidocr_rec.evaluation_data())[0],
        # entropy and percentile fail: lines of several widths do not stack
        (STATIC[0], DYNAMIC, _ours("w8a8-static")),
        _raise_opset,
        peers_infer_shapes=False,
    ),
    Subject(
        "digits_cnn",
        lambda: digits_cnn.build().path,
        digits_cnn.calibration_data,
        digits_cnn.measure,
        lambda row: f"accuracy {row['accuracy']:.4f}",
        _digits,
        (*STATIC, DYNAMIC, _ours("w8a8-static")),
        _join_data,
    ),
    Subject(
        "minilm",
        lambda: minilm.build().path,
        minilm.calibration_data,
        minilm.measure,
        _say_cosine,
        _sentence,
        (
            STATIC[0],  # entropy fails: no bins for the range of a constant tensor
            DYNAMIC,
            _ours("w8a8-dynamic"),
            _ours("w8a8-smoothquant"),
            _ours("w8a8-smoothquant", "level=o3"),
            _ours("w8a8-dynamic", target="qcompiler"),
        ),
        _join_data,
        peers_infer_shapes=False,
    ),
)
