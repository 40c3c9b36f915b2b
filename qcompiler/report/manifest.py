"""manifest.json: what made this model: hashes, versions and the seed; no time and no place, so equal runs give equal bytes."""

import hashlib
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from qcompiler.calibration.feeds import CalibrationFeeds
from qcompiler.graph.model_file import sha256_of
from qcompiler.recipe import Recipe

PACKAGES = ("qcompiler", "numpy", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "torch", "tokenizers")


def make_manifest(fingerprint: dict[str, Any], saved: Path) -> dict[str, Any]:
    """What the model was made from, and the hashes of the result; plain values for JSON."""
    return {**fingerprint, "output": sha256_of(saved)}


def make_fingerprint(
    source: Path,
    recipe: Recipe,
    seed: int,
    target: str,
    function_body: bool,
    mapped_weights: bool,
    data: CalibrationFeeds | None,
    ranges: Path | None = None,
) -> dict[str, Any]:
    """Everything that the bytes of the result follow from, but for the kind of CPU and the number of threads."""
    return {
        "input": sha256_of(source),
        "recipe": hashlib.sha256(recipe.to_yaml().encode()).hexdigest(),
        "calibration": None if data is None else data.sha256,
        "ranges": None if ranges is None else hashlib.sha256(ranges.read_bytes()).hexdigest(),
        "seed": seed,
        "target": target,
        "function_body": function_body and not mapped_weights,
        "mapped_weights": mapped_weights,
        "machine": platform.machine(),
        "versions": {name: found for name in PACKAGES if (found := installed_version(name)) is not None},
    }


def installed_version(name: str) -> str | None:
    """Of a package; None where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None
