"""Complete feeds for a model from whatever the user gave: data, or nothing (then the model's own samples)."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.calibration.borders import KeptFeeds
from qcompiler.calibration.data import TOKENS, open_calibration
from qcompiler.calibration.fill import InputSpec, complete_feed, token_input
from qcompiler.calibration.sampling import is_causal, random_feeds, sample_tokens
from qcompiler.errors import CalibrationError
from qcompiler.graph import own_gather_nbits
from qcompiler.graph.census import reaches_output, take_census
from qcompiler.graph.extract import Piece
from qcompiler.graph.weights import Role, constant_view

Feed = Mapping[str, npt.NDArray[Any]]
Progress = Callable[[str, int, int], None]
IN_MEMORY = 64 << 20  # bytes of the user's feeds; what is sampled or drawn is little
REQUIRED = "required"  # --calib required: no data is an error, not a reason to sample


@dataclass(frozen=True)
class CalibrationFeeds:
    """Feeds with every input filled in.

    Attributes:
        description: source, number of samples and tokens in the longest, for the report.
        sha256: of all arrays in order.
    """

    feeds: Sequence[Feed]
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
    folder: Path | None = None,
) -> CalibrationFeeds:
    """At most ``samples`` feeds from ``source``, or from the model itself where there is none.

    Args:
        model: prepared (it runs on ONNX Runtime's CPU provider).
        tokenizer: tokenizer.json, given or found beside the model; text needs it.
        length: tokens in one sample.
        folder: where feeds past ``IN_MEMORY`` bytes go; None: all stay in memory.
    Raises:
        CalibrationError: the data does not fit the model's inputs, or there is none where it is required.
    """
    specs = input_specs(model)
    if source is None:
        return _own_feeds(model, specs, tokenizer, samples, length, seed, progress)
    if isinstance(source, str) and source == REQUIRED:
        raise CalibrationError(
            "--calib required: this recipe calibrates, and no data was given; give --calib PATH"
        )
    data = open_calibration(source, tokenizer, samples, length)
    bounds, tokens = index_bounds(model), token_input(specs)
    feeds: list[Feed] | KeptFeeds = [] if folder is None else KeptFeeds(folder, IN_MEMORY)
    for feed in data:
        if feed and not any(array.size for array in map(np.asarray, feed.values())):
            raise CalibrationError(
                f"{data.source}: feed {len(feeds) + 1}: all its arrays are empty; give rows, or drop it"
            )
        complete = complete_feed(feed, specs)
        feeds.append(complete)
        check_indices(complete, bounds, tokens, f"{data.source}: feed {len(feeds)}")
        progress("reading calibration data", len(feeds), samples)
    warnings = list(data.warnings)
    if len(feeds) < samples and not warnings:
        warnings.append(f"{data.source}: gives {len(feeds)} of the {samples} feeds of calib.samples")
    return _described(feeds, data.source, warnings, token_input(specs))


def input_specs(model: ir.Model) -> list[InputSpec]:
    """The model's inputs: name, NumPy type, shape with symbols, and the default of one that is also an initializer."""
    specs = []
    for value in model.graph.inputs:
        if value.dtype is None or value.name is None:
            raise CalibrationError(f"input {value.name}: has no type; export the model with typed inputs")
        if value.shape is None:
            raise CalibrationError(
                f"input {value.name}: has no shape, so no data fits it; export the model with its dimensions (symbols will do), "
                "or take a recipe that needs no data"
            )
        dims = [d if isinstance(d, int) else d.value for d in value.shape]
        default = (
            value.const_value.numpy() if value.is_initializer() and value.const_value is not None else None
        )
        specs.append(InputSpec(value.name, np.dtype(value.dtype.numpy()), tuple(dims), default))
    return specs


def example_feed(model: ir.Model, length: int) -> Feed:
    """A window of ``length`` tokens, or what a model of another kind gets where no data is given; for its shapes, not its numbers."""
    specs = input_specs(model)
    if token_input(specs) is not None:
        try:
            return complete_feed({TOKENS: np.zeros((1, length), np.int64)}, specs)
        except CalibrationError:
            pass  # it wants more than tokens, or tokens of a length of its own
    return next(random_feeds(specs, 1, seed=0, highs=index_bounds(model)))


def _own_feeds(
    model: ir.Model,
    specs: list[InputSpec],
    tokenizer: str | os.PathLike[str] | None,
    samples: int,
    length: int,
    seed: int,
    progress: Progress,
) -> CalibrationFeeds:
    """Sequences sampled from a language model, or random inputs of any other."""
    drawn = _sampled_tokens(model, specs, samples, length, seed, progress)
    if drawn is not None:
        data = "--calib TEXT" if tokenizer is not None else "--calib TEXT --tokenizer FILE"
        return _described(
            [complete_feed({TOKENS: row[None, :]}, specs) for row in drawn],
            "sampled from the model",
            [
                "no calibration data: sequences sampled from the model itself were used; "
                f"give {data} for better scales"
            ],
            token_input(specs),
        )
    random = random_feeds(specs, samples, seed, highs=index_bounds(model))
    return _described(
        [complete_feed(feed, specs) for feed in random],
        "random inputs",
        ["no calibration data: random inputs were used; give --calib PATH for better scales"],
        None,
    )


def _sampled_tokens(
    model: ir.Model, specs: list[InputSpec], samples: int, length: int, seed: int, progress: Progress
) -> npt.NDArray[np.int64] | None:
    """Sequences [samples, length] that a causal language model speaks; None for any other model."""
    tokens, logits = token_input(specs), _logits(model)
    if tokens is None or logits is None:
        return None
    piece = Piece(model, list(model.graph), tuple(model.graph.inputs), [logits])
    inputs = {value.name: value for value in model.graph.inputs}

    def run(batch: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        feed = complete_feed({TOKENS: batch}, specs)
        result = piece.run({inputs[name]: array for name, array in feed.items()})[logits]
        return result.astype(np.float32, copy=False)

    try:
        first = run(np.zeros((1, 2), np.int64))
        if first.ndim != 3 or first.shape[:2] != (1, 2):
            return None
        # Logits may be padded past the embedding's rows; no token is.
        vocabulary = min(first.shape[2], index_bounds(model).get(tokens, first.shape[2]))
        if not is_causal(run, vocabulary, seed):
            return None
    except CalibrationError:  # it wants more than tokens, or tokens of a length of its own
        return None
    return sample_tokens(
        run,
        vocabulary,
        samples,
        length,
        seed,
        progress=lambda done, total: progress("sampling calibration data", done, total),
    )


def _logits(model: ir.Model) -> ir.Value | None:
    """The first output [batch, sequence, vocabulary] that a head makes; hidden states are none."""
    uses = [use for weight in take_census(model).weights for use in weight.uses]
    heads = [use.node.outputs[0] for use in uses if use.role is Role.HEAD]
    for output in model.graph.outputs:
        if output.shape is not None and len(output.shape) != 3:
            continue
        if output.dtype is not None and not output.dtype.is_floating_point():
            continue
        if any(reaches_output(head, {output}) for head in heads):
            return output
    return None


def index_bounds(model: ir.Model) -> dict[str, int]:
    """Rows of the smallest table that each integer input indexes."""
    bounds: dict[str, int] = {}
    for value in model.graph.inputs:
        for rows in _table_rows(value):
            if value.name is not None:
                bounds[value.name] = min(rows, bounds.get(value.name, rows))
    return bounds


_LOOKUPS = {"Gather": "axis", "GatherBlockQuantized": "gather_axis"}
_SAME_INDICES = ("Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze")


def _table_rows(indices: ir.Value) -> Iterator[int]:
    for node, place in indices.uses():
        if node.op_type in _SAME_INDICES and place == 0:
            yield from _table_rows(node.outputs[0])
        table = constant_view(node.inputs[0]) if node.op_type in _LOOKUPS and place == 1 else None
        if (node.op_type, place) == (own_gather_nbits.OP, 0):
            yield node.attributes.get_int("N")
        if table is not None:
            yield table.final_shape[node.attributes.get_int(_LOOKUPS[node.op_type], 0)]


def check_indices(feed: Feed, bounds: Mapping[str, int], tokens: str | None, where: str) -> None:
    """Refuse an index past its table: most often a token of another model's tokenizer.

    Args:
        feed: complete.
        bounds: from ``index_bounds``.
        tokens: the input that takes tokens.
        where: the data, for the message.
    Raises:
        CalibrationError: an index is past its table, or a token negative.
    """
    for name, rows in bounds.items():
        largest, least = (int(feed[name].max()), int(feed[name].min())) if feed[name].size else (0, 0)
        if name == tokens and least < 0:  # ONNX would count it from the table's end
            raise CalibrationError(
                f"{where}: token {least}; tokens are 0 to {rows - 1}: leave padding out, or mask it"
            )
        if largest < rows:
            continue
        if name == tokens:
            raise CalibrationError(
                f"{where}: token {largest}, but the model's vocabulary is {rows}: is this the model's tokenizer?"
            )
        raise CalibrationError(
            f"{where}: {name} holds {largest}, but the table that it indexes has {rows} rows; cut or change it"
        )


def _described(
    feeds: Sequence[Feed], source: str, warnings: list[str], tokens: str | None
) -> CalibrationFeeds:
    """With the length of the longest window, where the input ``tokens`` takes some."""
    if not feeds:
        raise CalibrationError(f"{source}: gives no feeds; at least one is needed")
    digest = hashlib.sha256()
    for feed in feeds:
        for name in sorted(feed):
            digest.update(f"{name} {feed[name].dtype} {feed[name].shape}".encode())
            digest.update(feed[name].tobytes())
    description: dict[str, Any] = {"source": source, "samples": len(feeds)}
    if tokens is not None:
        description["length"] = max(feed[tokens].shape[1] for feed in feeds)
    return CalibrationFeeds(feeds, description, digest.hexdigest(), warnings)
