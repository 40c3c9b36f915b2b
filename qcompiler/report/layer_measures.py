"""Every layer of a model beside its reference, on data that both run: errors through depth, and how the worst ones' outputs lie."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from qcompiler.calibration.feeds import Progress
from qcompiler.report.alignment import AlignedValue, align
from qcompiler.report.comparison_feeds import LAYERS, comparison_feeds, described
from qcompiler.report.diff_models import BlockError, block_errors, not_comparable, tap_notes, worst_first
from qcompiler.report.evaluate import Array, EvaluationData
from qcompiler.report.tapped_model import TappedModel, open_tapped
from qcompiler.report.tensor_errors import TensorErrors, tensor_errors
from qcompiler.report.weight_histograms import HistogramPair, histogram_pair

HISTOGRAMS = 4
"""Of the layers with the least SQNR."""


@dataclass(frozen=True)
class LayerMeasures:
    """What was measured.

    Attributes:
        data: what both ran on.
        errors: of every layer, with all rounding before it.
        growth: the same by block.
        activations: histograms of the worst layers' outputs in the first feed.
        notes: what a reader should know.
    """

    data: str
    errors: TensorErrors
    growth: list[BlockError]
    activations: list[HistogramPair]
    notes: list[str]


def measure_layers(
    path: Path, reference: Path, data: EvaluationData, progress: Progress
) -> LayerMeasures | str:
    """Run both models and compare their layers; why they cannot be compared, where they cannot.

    Args:
        data: of which a few short feeds are taken, enough to tell layers apart.
    Raises:
        InputError: a model cannot be run.
        CalibrationError: the data does not fit.
    """
    short = replace(data, windows=min(data.windows, LAYERS.windows), length=min(data.length, LAYERS.length))
    with open_tapped(reference) as theirs, open_tapped(path) as ours:
        alignment = align(theirs.model, ours.model)
        why = not_comparable(theirs, ours, alignment)
        if why:
            return why
        feeds = comparison_feeds(theirs, short, progress, path)
        errors = tensor_errors(theirs, ours, alignment, alignment.layers, feeds.feeds, progress)
        pairs = {value.name: value for value in alignment.layers}
        worst = [pairs[error.name] for error in worst_first(errors)[:HISTOGRAMS] if error.name in pairs]
        return LayerMeasures(
            described(feeds), errors, block_errors(errors), _histograms(theirs, ours, worst, feeds.feeds[0]),
            [*feeds.warnings, *errors.notes, *tap_notes(errors)],
        )  # fmt: skip


def _histograms(
    theirs: TappedModel, ours: TappedModel, values: Sequence[AlignedValue], feed: Mapping[str, Array]
) -> list[HistogramPair]:
    before = theirs.session([value.reference for value in values]).run(feed)
    after = ours.session([value.other for value in values]).run(theirs.complete(feed))
    found = []
    for value in values:
        pair = [
            array[np.isfinite(array)].astype(np.float32)
            for array in (before[value.reference.value], after[value.other.value])
        ]
        if all(array.size for array in pair):
            found.append(histogram_pair(" + ".join(value.layers) or value.name, *pair))
    return found
