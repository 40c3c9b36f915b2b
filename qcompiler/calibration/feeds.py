"""Complete feeds for a model from whatever the user gave: data, or nothing (then the model's own samples)."""

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.calibration.data import TOKENS, open_calibration
from qcompiler.calibration.fill import InputSpec, complete_feed, token_input
from qcompiler.calibration.sampling import is_causal, random_feeds, sample_tokens
from qcompiler.errors import CalibrationError
from qcompiler.graph.extract import Piece
from qcompiler.graph.weights import constant_view

Feed = Mapping[str, npt.NDArray[Any]]
Progress = Callable[[str, int, int], None]
REQUIRED = "required"  # --calib required: no data is an error, not a reason to sample


@dataclass(frozen=True)
class CalibrationFeeds:
    """Feeds with every input filled in.

    Attributes:
        description: source and number of samples, for the report.
        sha256: of all arrays in order.
    """

    feeds: list[Feed]
    description: dict[str, Any]
    sha256: str
    warnings: list[str] = field(default_factory=list)


def make_feeds(
    model: ir.Model,
    source: str | os.PathLike[str] | Iterable[Feed] | None,
    tokenizer: str | os.PathLike[str] | None,
    samples: int,
    length: int,
    seed: int,
    progress: Progress,
) -> CalibrationFeeds:
    """At most ``samples`` feeds from ``source``, or from the model itself where there is none.

    Args:
        model: prepared (it runs on ONNX Runtime's CPU provider).
        length: tokens in one sample.
    Raises:
        CalibrationError: the data does not fit the model's inputs, or there is none where it is required.
    """
    specs = input_specs(model)
    if source is None:
        return _own_feeds(model, specs, samples, length, seed, progress)
    if isinstance(source, str) and source == REQUIRED:
        raise CalibrationError(
            "--calib required: this recipe calibrates, and no data was given; give --calib PATH"
        )
    data = open_calibration(source, tokenizer, samples, length)
    feeds: list[Feed] = []
    for feed in data:
        feeds.append(complete_feed(feed, specs))
        progress("reading calibration data", len(feeds), samples)
    return _described(feeds, data.source, list(data.warnings))


def input_specs(model: ir.Model) -> list[InputSpec]:
    """The model's inputs: name, NumPy type and shape with symbols."""
    specs = []
    for value in model.graph.inputs:
        if value.dtype is None or value.name is None:
            raise CalibrationError(f"input {value.name}: has no type; export the model with typed inputs")
        dims = None if value.shape is None else [d if isinstance(d, int) else d.value for d in value.shape]
        specs.append(InputSpec(value.name, np.dtype(value.dtype.numpy()), tuple(dims or ())))
    return specs


def _own_feeds(
    model: ir.Model, specs: list[InputSpec], samples: int, length: int, seed: int, progress: Progress
) -> CalibrationFeeds:
    """Sequences sampled from a language model, or random inputs of any other."""
    drawn = _sampled_tokens(model, specs, samples, length, seed, progress)
    if drawn is not None:
        return _described(
            [complete_feed({TOKENS: row[None, :]}, specs) for row in drawn],
            "sampled from the model",
            [
                "no calibration data: sequences sampled from the model itself were used; "
                "give --calib TEXT --tokenizer FILE for better scales"
            ],
        )
    random = random_feeds(specs, samples, seed, highs=_index_bounds(model))
    return _described(
        [complete_feed(feed, specs) for feed in random],
        "random inputs",
        ["no calibration data: random inputs were used; give --calib PATH for better scales"],
    )


def _sampled_tokens(
    model: ir.Model, specs: list[InputSpec], samples: int, length: int, seed: int, progress: Progress
) -> npt.NDArray[np.int64] | None:
    """Sequences [samples, length] that a causal language model speaks; None for any other model."""
    if token_input(specs) is None:
        return None
    candidates = (out for out in model.graph.outputs if out.shape is None or len(out.shape) == 3)
    logits = next((out for out in candidates if out.dtype is None or out.dtype.is_floating_point()), None)
    if logits is None:
        return None
    piece = Piece(model, list(model.graph), tuple(model.graph.inputs), [logits])
    inputs = {value.name: value for value in model.graph.inputs}

    def run(batch: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        feed = complete_feed({TOKENS: batch}, specs)
        result = piece.run({inputs[name]: array for name, array in feed.items()})[logits]
        return result.astype(np.float32, copy=False)

    try:
        first = run(np.zeros((1, 2), np.int64))
    except CalibrationError:  # it wants more than tokens, or tokens of a length of its own
        return None
    if first.ndim != 3 or first.shape[:2] != (1, 2) or not is_causal(run, first.shape[2], seed):
        return None
    return sample_tokens(
        run,
        int(first.shape[2]),
        samples,
        length,
        seed,
        progress=lambda done, total: progress("sampling calibration data", done, total),
    )


def _index_bounds(model: ir.Model) -> dict[str, int]:
    """Rows of the smallest table that each integer input indexes."""
    bounds: dict[str, int] = {}
    for value in model.graph.inputs:
        for node, place in value.uses():
            table = constant_view(node.inputs[0]) if node.op_type == "Gather" and place == 1 else None
            if table is not None and value.name is not None:
                bounds[value.name] = min(table.final_shape[0], bounds.get(value.name, table.final_shape[0]))
    return bounds


def _described(feeds: list[Feed], source: str, warnings: list[str]) -> CalibrationFeeds:
    if not feeds:
        raise CalibrationError(f"{source}: gives no feeds; calibration needs at least one")
    digest = hashlib.sha256()
    for feed in feeds:
        for name in sorted(feed):
            digest.update(f"{name} {feed[name].dtype} {feed[name].shape}".encode())
            digest.update(feed[name].tobytes())
    return CalibrationFeeds(feeds, {"source": source, "samples": len(feeds)}, digest.hexdigest(), warnings)
