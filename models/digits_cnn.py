"""digits_cnn: a small convolutional classifier, trained in seconds on scikit-learn's handwritten digits.

    python -m models.digits_cnn [--form folded|batchnorm] [--copy-to DIR] [--measure]

Input image float32 [batch, 1, 8, 8] in 0..1; output logits [batch, 10]. Three times Conv, BatchNorm, ReLU,
with two max pools, then two Gemm. Metric: accuracy on 360 held-out images.
"""

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from models import cache, language
from models.built_model import BuiltModel, ModelFiles, exit_from, parser, print_built

if TYPE_CHECKING:
    import torch

HELD_OUT = 360
CALIBRATION = 128
EPOCHS = 12
BATCH = 64
Images = NDArray[np.float32]
Labels = NDArray[np.int64]


class Form(str, Enum):
    """What the exporter does with BatchNorm."""

    FOLDED = "folded"  # into the convolution's weights, its default
    BATCHNORM = "batchnorm"  # BatchNormalization nodes, as models from elsewhere have


def build(form: Form = Form.FOLDED) -> BuiltModel:
    """The trained and exported model, from the cache.

    Raises:
        UnavailableError: torch or scikit-learn is not installed.
    """
    here = Path(__file__)
    facts = {"form": form.value, **cache.versions("torch", "onnxscript", "scikit-learn")}

    def fill(folder: Path) -> None:
        import torch  # only needed to build

        from models.torch_export import export_module

        images, labels = training_images()
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # 3 s; 60 s with two threads on a busy machine, and the same sums every time
        try:
            model = _train(torch.from_numpy(images), torch.from_numpy(labels))
        finally:
            torch.set_num_threads(threads)
        inputs = {"input": torch.from_numpy(images[:2])}
        shapes = {"input": {0: "batch"}}
        path, optimize = folder / "model.onnx", form is Form.FOLDED
        export_module(model, inputs, shapes, ["image"], ["logits"], path, optimize)

    folder = cache.entry(f"digits_cnn-{form.value}", facts, [here, here.with_name("torch_export.py")], fill)
    return BuiltModel(folder / "model.onnx")


def calibration_data() -> Path:
    """calibration.npz: image float32 [128, 1, 8, 8], of the training images.

    Raises:
        UnavailableError: scikit-learn is not installed.
    """
    return _data() / "calibration.npz"


def evaluation_data() -> Path:
    """evaluation.npz: image float32 [360, 1, 8, 8]; ``evaluation_images`` has the labels too.

    Raises:
        UnavailableError: scikit-learn is not installed.
    """
    return _data() / "evaluation.npz"


def training_images() -> tuple[Images, Labels]:
    """float32 [1437, 1, 8, 8] in 0..1, int64 [1437]. Raises what ``calibration_data`` raises."""
    images, labels = _digits()
    return images[HELD_OUT:], labels[HELD_OUT:]


def evaluation_images() -> tuple[Images, Labels]:
    """float32 [360, 1, 8, 8] in 0..1, int64 [360]. Raises what ``calibration_data`` raises."""
    images, labels = _digits()
    return images[:HELD_OUT], labels[:HELD_OUT]


def measure(model: Path) -> dict[str, float]:
    """Share of the evaluation images that are classified right. Raises what ``calibration_data`` raises."""
    images, labels = evaluation_images()
    logits: NDArray[np.float32] = language.session(model).run(["logits"], {"image": images})[0]
    return {"accuracy": float((logits.argmax(1) == labels).mean())}


def _digits() -> tuple[Images, Labels]:
    """All images and labels in a fixed random order."""
    cache.versions("scikit-learn")
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    images = (digits.images[order] / 16).astype(np.float32)[:, None]
    return images, digits.target[order].astype(np.int64)


def _train(images: "torch.Tensor", labels: "torch.Tensor") -> "torch.nn.Module":
    import torch
    from torch import nn

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            *_block(1, 16),
            *_block(16, 32),
            nn.MaxPool2d(2),
            *_block(32, 64),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(64 * 2 * 2, 64),
            nn.ReLU(),
            nn.Linear(64, 10),
        )
        steps = EPOCHS * (len(images) // BATCH)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=steps)
        for _ in range(steps):
            chosen = torch.randint(len(images), (BATCH,))
            loss = nn.functional.cross_entropy(model(images[chosen]), labels[chosen], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return model.eval()


def _block(inputs: int, outputs: int) -> "list[torch.nn.Module]":
    from torch import nn

    return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]


def _data() -> Path:
    facts = cache.versions("scikit-learn", "numpy")

    def fill(folder: Path) -> None:
        np.savez(folder / "calibration.npz", image=training_images()[0][:CALIBRATION])
        np.savez(folder / "evaluation.npz", image=evaluation_images()[0])

    return cache.entry("digits_cnn-images", facts, [Path(__file__)], fill)


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
