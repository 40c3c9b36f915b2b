"""Where two models part: the first value, in the reference's order, that is not alike although all that it is computed from is.

What is compared are the values in which products show, as in ``diff``, and those that products read. A layer's own noise is what its
output has and its inputs do not: it tells a layer that breaks from errors that grow evenly through depth.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import onnx_ir as ir

from qcompiler.calibration.feeds import CalibrationFeeds, Progress
from qcompiler.errors import InputError
from qcompiler.report.alignment import AlignedValue, Alignment, align, read_values, upstream
from qcompiler.report.comparison_feeds import LAYERS, comparison_feeds, described
from qcompiler.report.diff_models import tap_notes
from qcompiler.report.evaluate import EvaluationData
from qcompiler.report.origin import origin_notes
from qcompiler.report.tapped_model import TappedModel, open_tapped
from qcompiler.report.tensor_errors import TURNED, TensorError, tensor_errors

SQNR_DB = 10.0
"""A value with less holds noise of a tenth of its own power: 4-bit weights of a model that still works leave more in most layers."""
SHARP_DB = 6.0
"""A layer whose output is so much worse than its inputs breaks the model; less is growth."""


@dataclass(frozen=True)
class Bound:
    """What counts as alike: one of the three is set, or the default SQNR holds.

    Attributes:
        min_sqnr: dB. max_error: largest absolute difference. max_kl: nats, of outputs that hold classes; layers are judged by SQNR then.
    """

    min_sqnr: float | None = None
    max_error: float | None = None
    max_kl: float | None = None

    @property
    def sqnr(self) -> float:
        """Of layers, where no largest error is given."""
        return SQNR_DB if self.min_sqnr is None else self.min_sqnr

    def holds(self, error: TensorError) -> bool:
        """Whether a value is alike in both models; rotated ones say nothing, and pass."""
        if error.relation == TURNED:
            return True
        if self.max_error is not None and not error.relation:
            return not error.unlike and error.max_error <= self.max_error
        return error.sqnr_db >= self.sqnr

    @property
    def label(self) -> str:
        """``SQNR of 10 dB``."""
        if self.max_kl is not None:
            return f"KL of {self.max_kl:g} nats"
        return f"SQNR of {self.sqnr:g} dB" if self.max_error is None else f"error of {self.max_error:g}"


@dataclass(frozen=True)
class LayerBreak:
    """A layer and what it adds.

    Attributes:
        layer: the value in which it shows.
        input_sqnr_db: the least of what it reads; infinity where that is the same in both models.
        own_sqnr_db: of its output against what it adds to the noise of its inputs.
    """

    layer: TensorError
    input_sqnr_db: float
    own_sqnr_db: float

    @property
    def sharp(self) -> bool:
        """Its output is much worse than its inputs."""
        return self.layer.sqnr_db <= min(self.input_sqnr_db, 100.0) - SHARP_DB


@dataclass(frozen=True)
class LayerBisection:
    """Where two models part.

    Attributes:
        bound: in words; data: what both ran on.
        first: the first value beyond the bound of which those that it is computed from are within it; None where all are within.
        noisiest: layers by what they add themselves, the most first.
        layers: how many were compared.
    """

    reference: str
    other: str
    bound: str
    data: str
    first: LayerBreak | None
    noisiest: list[LayerBreak]
    layers: int
    seconds: float
    notes: list[str] = field(default_factory=list)


def bisect_layers(
    reference: Path,
    other: Path,
    bound: Bound,
    data: EvaluationData = LAYERS,
    progress: Progress = lambda what, done, total: None,
) -> LayerBisection:
    """Find the layer where two models part.

    Raises:
        InputError: a model cannot be read or run, or they have nothing in common.
        CalibrationError: the data does not fit.
    """
    with open_tapped(reference) as theirs, open_tapped(other) as ours:
        feeds = comparison_feeds(theirs, data, progress, ours.path)
        found = bisect_opened(theirs, ours, bound, feeds, progress)
        return replace(found, notes=[*found.notes, *origin_notes(ours.path, theirs.path)])


def bisect_opened(
    theirs: TappedModel, ours: TappedModel, bound: Bound, feeds: CalibrationFeeds, progress: Progress
) -> LayerBisection:
    """The same for models that are open, on feeds that are complete for the first."""
    start = time.perf_counter()
    alignment = align(theirs.model, ours.model)
    values = _values(theirs.model, alignment)
    if not any(value.layers for value in values):
        raise InputError(
            f"{theirs.path} and {ours.path} have no product in common; is it the model's own reference?"
        )
    errors = tensor_errors(theirs, ours, alignment, values, feeds.feeds, progress)
    found = {error.name: error for error in errors.values}
    sources = upstream(theirs.model, found)
    layers = [error for error in errors.values if error.layers]
    return LayerBisection(
        str(theirs.path),
        str(ours.path),
        bound.label,
        described(feeds),
        _first(errors.values, found, sources, bound),
        sorted(
            (_break(error, found, sources) for error in layers if error.relation != TURNED),
            key=lambda each: each.own_sqnr_db,
        ),
        len(layers),
        time.perf_counter() - start,
        [*feeds.warnings, *errors.notes, *tap_notes(errors)],
    )


def _values(reference: ir.Model, alignment: Alignment) -> list[AlignedValue]:
    """Pairs in which products show, and those that products read, in order."""
    wanted = {value.name for value in alignment.layers} | read_values(reference, alignment)
    return [value for value in alignment.values if value.name in wanted]


def _first(
    values: Sequence[TensorError],
    found: Mapping[str, TensorError],
    sources: Mapping[str, frozenset[str]],
    bound: Bound,
) -> LayerBreak | None:
    for error in values:
        if not bound.holds(error) and all(bound.holds(found[name]) for name in sources.get(error.name, ())):
            return _break(error, found, sources)
    return None


def _break(
    error: TensorError, found: Mapping[str, TensorError], sources: Mapping[str, frozenset[str]]
) -> LayerBreak:
    read = [found[name] for name in sources.get(error.name, ())]
    before = min((each.sqnr_db for each in read if each.relation != TURNED), default=math.inf)
    noise, given = _noise(error.sqnr_db), _noise(before)
    own = noise - given if noise > given else 0.0
    return LayerBreak(error, before, -10 * math.log10(own) if 0 < own < math.inf else _extreme(own))


def _noise(sqnr_db: float) -> float:
    """Power of the noise in that of the signal."""
    return math.inf if sqnr_db == -math.inf else 10 ** (-sqnr_db / 10)


def _extreme(own: float) -> float:
    return math.inf if own == 0.0 else -math.inf
