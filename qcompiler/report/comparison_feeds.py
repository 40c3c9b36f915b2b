"""What two models are compared on where every layer is looked at: the user's data, or invented as a compile would."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from qcompiler.calibration.feeds import CalibrationFeeds, Progress, make_feeds
from qcompiler.graph.model_file import model_path
from qcompiler.report.evaluate import Array, EvaluationData
from qcompiler.report.sizes import counted
from qcompiler.report.tapped_model import TappedModel
from qcompiler.report.tokenizer_place import find_tokenizer

INVENTED = {
    "sampled from the model": "no data: sequences sampled from the reference itself",
    "random inputs": "no data: random inputs",
}
LAYERS = EvaluationData(windows=4, length=128)
"""Enough to tell layers apart: errors of a layer hardly depend on the data, and each chunk of values runs all of it."""


ROWS = 8
"""Of a feed's batch, likewise."""


def comparison_feeds(
    reference: TappedModel,
    data: EvaluationData,
    progress: Progress,
    beside: Path | None = None,
    rows: int | None = ROWS,
) -> CalibrationFeeds:
    """Feeds that are complete for the reference; warnings say where they were invented.

    Args:
        beside: another model, whose folder may hold the tokenizer.
        rows: of each batch, at most; None for all.
    Raises:
        CalibrationError: the data does not fit the reference.
    """
    models = [reference.path, *([] if beside is None else [model_path(beside)])]
    tokenizer = find_tokenizer(data.tokenizer, data.text, *models)
    source = str(data.text) if data.text is not None else data.data
    found = make_feeds(reference.model, source, tokenizer, data.windows, data.length, data.seed, progress)
    if rows is not None:
        cut = [_first_rows(feed, reference, rows) for feed in found.feeds]
        fewer = any(part is not feed for part, feed in zip(cut, found.feeds, strict=True))
        found = replace(
            found, feeds=cut, description={**found.description, **({"rows": rows} if fewer else {})}
        )
    if source is not None:
        return replace(found, warnings=[line for line in found.warnings if "calib.samples" not in line])
    what = INVENTED.get(found.description["source"], "no data")
    return replace(
        found,
        warnings=[f"{what} (seed {data.seed}); give --data or --text for figures that mean something"],
    )


def _first_rows(feed: Mapping[str, Array], reference: TappedModel, rows: int) -> Mapping[str, Array]:
    """At most so many rows of a batch, where every input has the batch in front: every layer's values are as many times smaller."""
    specs = {spec.name: spec for spec in reference.inputs if spec.name in feed}
    batches = {spec.shape[0] if spec.shape else None for spec in specs.values()}
    if len(batches) != 1 or not isinstance(next(iter(batches)), str):
        return feed
    if all(len(feed[name]) <= rows for name in specs):
        return feed
    return {name: array[:rows].copy() if name in specs else array for name, array in feed.items()}


def described(feeds: CalibrationFeeds) -> str:
    """``4 feeds of text.txt, at most 128 tokens each``."""
    source = feeds.description["source"]
    what = counted(len(feeds.feeds), "feed") + (
        f" {source}" if source == "sampled from the model" else f" of {source}"
    )
    rows, tokens = feeds.description.get("rows"), feeds.description.get("length")
    what += "" if rows is None else f", {rows} rows of each"
    return what if tokens is None else f"{what}, at most {tokens} tokens each"
