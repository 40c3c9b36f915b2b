"""Two models side by side: what changed in the graph, in the numbers of each layer, and in size."""

import math
import time
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir

from qcompiler.calibration.feeds import Progress
from qcompiler.graph import model_file
from qcompiler.report.alignment import Alignment, align
from qcompiler.report.comparison_feeds import LAYERS, comparison_feeds, described
from qcompiler.report.evaluate import EvaluationData
from qcompiler.report.graph_changes import GraphChanges, graph_changes
from qcompiler.report.origin import origin_notes
from qcompiler.report.quantized_products import read_products
from qcompiler.report.tapped_model import TappedModel, open_tapped
from qcompiler.report.tensor_errors import TURNED, TensorError, TensorErrors, tensor_errors


@dataclass(frozen=True)
class ModelSize:
    """What a model takes.

    Attributes:
        file_bytes: of the model with its data files; files: how many.
        weight_bytes: of quantized weights with scales and zero points; weights: how many numbers they hold.
        bits_per_weight: over these; None without any.
        nodes: of the main graph.
    """

    path: str
    files: int
    file_bytes: int
    nodes: int
    weights: int
    weight_bytes: int
    bits_per_weight: float | None


@dataclass(frozen=True)
class BlockError:
    """How far the models are apart in one block.

    Attributes:
        block: its name, or that of a value that is in none.
        sqnr_db: of the last layer in it, which is what the next block gets.
        worst_sqnr_db, worst: the least of its layers, and which that is.
    """

    block: str
    sqnr_db: float
    worst_sqnr_db: float
    worst: str


@dataclass(frozen=True)
class Numbers:
    """What the models compute on the same data.

    Attributes:
        data: what they ran on.
        errors: of layers, in the reference's order, and of the outputs.
        growth: block by block, in order.
    """

    data: str
    errors: TensorErrors
    growth: list[BlockError]


@dataclass(frozen=True)
class ModelDiff:
    """A finished comparison.

    Attributes:
        equal: the same nodes and the same weights.
        numbers: None where they were not compared; ``without_numbers`` says why.
        lost: products of the reference that could not be matched.
    """

    reference: ModelSize
    other: ModelSize
    equal: bool
    graph: GraphChanges
    numbers: Numbers | None
    without_numbers: str
    lost: list[str]
    seconds: float
    notes: list[str] = field(default_factory=list)


def diff(
    reference: str | Path,
    other: str | Path,
    data: EvaluationData = LAYERS,
    progress: Progress = lambda what, done, total: None,
) -> ModelDiff:
    """Compare two models.

    Args:
        reference, other: ONNX files or folders with a model.onnx; what other has more or less is told as added or removed.
        data: what both run on; without any, what a compile would calibrate on.
    Raises:
        InputError: a model cannot be read, or one that shares its inputs with the other cannot be run.
        CalibrationError: the data does not fit.
    """
    start = time.perf_counter()
    with open_tapped(Path(reference)) as theirs, open_tapped(Path(other)) as ours:
        alignment = align(theirs.model, ours.model)
        changes = graph_changes(theirs.model, ours.model, alignment)
        numbers, why, notes = None, "the models are equal", list[str]()
        if not changes.none:
            why = not_comparable(theirs, ours, alignment)
        if not why:
            numbers, notes = _numbers(theirs, ours, alignment, data, progress)
        notes += [] if changes.none else origin_notes(ours.path, theirs.path)
        notes += [
            f"{side.path}: computes in bfloat16, which ONNX Runtime's CPU does not; what is compared is a copy in float32"
            for side in (theirs, ours)
            if side.widened
        ]
        return ModelDiff(
            _size(theirs.path, theirs.model),
            _size(ours.path, ours.model),
            changes.none,
            changes,
            numbers,
            why,
            alignment.lost,
            time.perf_counter() - start,
            notes,
        )


def worst_first(errors: TensorErrors) -> list[TensorError]:
    """Layers by SQNR, the least first; without those that were rotated, whose figures say nothing."""
    return sorted(
        (error for error in errors.values if error.relation != TURNED), key=lambda error: error.sqnr_db
    )


def block_errors(errors: TensorErrors) -> list[BlockError]:
    """Of blocks in order; what is in none stands for itself."""
    layers: dict[str, list[TensorError]] = {}
    for error in errors.values:
        if error.relation != TURNED:
            layers.setdefault(error.block or error.name, []).append(error)
    found = []
    for members in layers.values():
        worst = min(members, key=lambda error: error.sqnr_db)
        last = members[-1]
        found.append(BlockError(last.block or last.name, last.sqnr_db, worst.sqnr_db, worst.title))
    return found


def _numbers(
    theirs: TappedModel, ours: TappedModel, alignment: Alignment, data: EvaluationData, progress: Progress
) -> tuple[Numbers, list[str]]:
    feeds = comparison_feeds(theirs, data, progress, ours.path)
    errors = tensor_errors(theirs, ours, alignment, alignment.layers, feeds.feeds, progress)
    return Numbers(described(feeds), errors, block_errors(errors)), [
        *feeds.warnings, *errors.notes, *tap_notes(errors)
    ]  # fmt: skip


def tap_notes(errors: TensorErrors) -> list[str]:
    """What reading values changed, where it changed something."""
    if errors.tap_sqnr_db == math.inf:
        return []
    return [
        "reading values keeps ONNX Runtime from fusing nodes around them; outputs with and without are alike to "
        f"{errors.tap_sqnr_db:.0f} dB"
    ]


def not_comparable(theirs: TappedModel, ours: TappedModel, alignment: Alignment) -> str:
    """Why numbers cannot be compared; empty where they can."""
    needed = {spec.name: spec for spec in ours.inputs if spec.default is None}
    given = {spec.name: spec for spec in theirs.inputs}
    extra = [name for name in needed if name not in given]
    if extra:
        return f"{ours.path} alone takes {', '.join(extra)}"
    lost = [spec.name for spec in theirs.inputs if spec.default is None and spec.name not in needed]
    if lost:
        return f"{theirs.path} alone takes {', '.join(lost)}"
    for name, spec in needed.items():
        other = given[name]
        if spec.dtype != other.dtype or len(spec.shape) != len(other.shape):
            return f"input {name} is {other.label} in {theirs.path} and {spec.label} in {ours.path}"
        sizes = zip(spec.shape, other.shape, strict=True)
        if any(isinstance(a, int) and isinstance(b, int) and a != b for a, b in sizes):
            return f"input {name} is {other.label} in {theirs.path} and {spec.label} in {ours.path}"
    if not alignment.values:
        return "they have no value of one name in common"
    return ""


def _size(path: Path, model: ir.Model) -> ModelSize:
    files = model_file.files_of(path)
    stored = read_products(model)
    weights, size = sum(weight.size for weight in stored), sum(weight.bytes for weight in stored)
    return ModelSize(
        str(path),
        len(files),
        sum(file.stat().st_size for file in files.values()),
        len(list(model.graph)),
        weights,
        size,
        8 * size / weights if weights else None,
    )
