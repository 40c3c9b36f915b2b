"""What flows through a model for a given input: of every layer shape, range, mean, deviation, zeros, saturated codes, NaN and infinity.

Without anything to look for the first feed alone is run. Where a value is NaN or infinite, all values of the graph are read, to find the
first of them.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from qcompiler.calibration.feeds import Progress
from qcompiler.errors import InputError
from qcompiler.graph.weights import constant_values
from qcompiler.quant.value_summary import CodeSaturation, ValueSummary
from qcompiler.report.alignment import AlignedValue, Alignment, align
from qcompiler.report.comparison_feeds import comparison_feeds, described
from qcompiler.report.evaluate import EvaluationData
from qcompiler.report.origin import origin_notes
from qcompiler.report.tapped_model import Tap, TappedModel, open_tapped
from qcompiler.report.tensor_errors import CHUNK_BYTES, chunks_of, tensor_errors

Array = npt.NDArray[Any]
Feeds = Sequence[Mapping[str, Array]]
FIRST_FEED = EvaluationData(windows=1, length=128)


@dataclass(frozen=True)
class TracedValue:
    """One value over all feeds.

    Attributes:
        name: of the value; node, op: what makes it; layers: products that show first in it.
        shape: for the first feed.
        least, greatest, mean, deviation: of the finite numbers; None without any.
        zeros: share of numbers that are 0; saturated: share of codes at an end of their range, None where there are none.
        nan, infinite: how many.
        sqnr_db: against the reference; None without one, and where it has no such value.
    """

    name: str
    node: str
    op: str
    block: str
    layers: tuple[str, ...]
    shape: tuple[int, ...]
    least: float | None
    greatest: float | None
    mean: float | None
    deviation: float | None
    zeros: float
    saturated: float | None
    nan: int
    infinite: int
    sqnr_db: float | None = None

    @property
    def title(self) -> str:
        """What people know it by."""
        return " + ".join(self.layers) or self.name


@dataclass(frozen=True)
class Trace:
    """A finished run.

    Attributes:
        values: in graph order.
        first_nan, first_infinite: the first values of the graph that hold any; None where none does.
    """

    model: str
    reference: str | None
    data: str
    values: list[TracedValue]
    first_nan: TracedValue | None
    first_infinite: TracedValue | None
    notes: list[str] = field(default_factory=list)


def trace(
    model: Path,
    data: EvaluationData = FIRST_FEED,
    reference: Path | None = None,
    layers: str = "",
    progress: Progress = lambda what, done, total: None,
) -> Trace:
    """Run a model and look at its layers.

    Args:
        reference: its float model, for an SQNR beside each layer.
        layers: a regular expression that a layer's name or its value's name has to hold; empty for all.
    Raises:
        InputError: the model cannot be read or run, or no layer is named so.
        CalibrationError: the data does not fit.
    """
    with ExitStack() as stack:
        opened = stack.enter_context(open_tapped(model))
        theirs = None if reference is None else stack.enter_context(open_tapped(reference))
        feeds = comparison_feeds(opened, data, progress, None if theirs is None else theirs.path, rows=None)
        known = align(opened.model, opened.model).values
        alignment = None if theirs is None else align(theirs.model, opened.model)
        if alignment is not None:
            known = _named_as(known, alignment)
        wanted = [value for value in known if value.layers and _holds(value, layers)]
        if not wanted:
            raise InputError(
                f"{opened.path}: no layer whose name holds {layers!r}; qcompile trace without --layers lists them"
                if layers
                else f"{opened.path}: no product in its main graph, so there is no layer to trace"
            )
        found = list(_look(opened, wanted, feeds.feeds, progress))
        nan, infinite = _first_beyond(opened, known, found, feeds.feeds, progress)
        notes = list(feeds.warnings)
        if theirs is not None and alignment is not None:
            errors = tensor_errors(theirs, opened, alignment, alignment.layers, feeds.feeds, progress)
            by_name = {error.name: error.sqnr_db for error in errors.values}
            # An output is compared as it is, where its own layer may be read through its codes.
            figures = {pair.other.value: by_name.get(pair.name) for pair in alignment.layers}
            taps = {value.name: value.other.value for value in wanted}
            found = [replace(value, sqnr_db=figures.get(taps[value.name])) for value in found]
            notes += [*errors.notes, *origin_notes(opened.path, theirs.path)]
        place = None if theirs is None else str(theirs.path)
        return Trace(str(opened.path), place, described(feeds), found, nan, infinite, notes)


def _named_as(values: Sequence[AlignedValue], alignment: Alignment) -> list[AlignedValue]:
    """With the layers' names in the reference, which a quantizer may have dropped."""
    names = {value.other.value: value.layers for value in alignment.layers}
    return [
        replace(value, layers=names.get(value.other.value, value.layers) if value.layers else ())
        for value in values
    ]


def _holds(value: AlignedValue, pattern: str) -> bool:
    return any(re.search(pattern, name) for name in (value.name, *value.layers))


def _look(
    model: TappedModel, values: Sequence[AlignedValue], feeds: Feeds, progress: Progress
) -> Iterator[TracedValue]:
    """Of each value that holds floats; a chunk at a time."""
    chunks = list(chunks_of(values, model, feeds, CHUNK_BYTES))
    producers = {output.name: node for node in model.model.graph for output in node.outputs}
    for number, chunk in enumerate(chunks):
        progress("tracing", number, len(chunks))
        taps = [value.other for value in chunk]
        codes = {value.name: pair for value in chunk if (pair := _codes(value.other, producers)) is not None}
        session = model.session(taps)
        of_codes = model.session([Tap(name) for name, _ in codes.values()]) if codes else None
        sums = {value.name: ValueSummary() for value in chunk}
        ends = {name: CodeSaturation(zero_point) for name, (_, zero_point) in codes.items()}
        shapes: dict[str, tuple[int, ...]] = {}
        for feed in feeds:
            arrays = session.run(feed)
            for value in chunk:
                array = arrays[value.other.value]
                if array.dtype.kind in "fV":
                    shapes.setdefault(value.name, array.shape)
                    sums[value.name].add(array)
            integers = {} if of_codes is None else of_codes.run(feed)
            for name, end in ends.items():
                end.add(integers[codes[name][0]])
        for value in chunk:
            if value.name in shapes:
                yield _traced(value, shapes[value.name], sums[value.name], ends.get(value.name))
    progress("tracing", len(chunks), len(chunks))


def _codes(tap: Tap, producers: Mapping[str | None, ir.Node]) -> tuple[str, int] | None:
    """(name of the codes behind a value that is read through them, their zero point); None of any other."""
    if tap.scale is not None:
        maker = producers.get(tap.value)
        point = None if maker is None or tap.zero_point is None else _initial(maker, tap.zero_point)
        return tap.value, point or 0
    node = producers.get(tap.value)
    if node is None or node.op_type != "DequantizeLinear" or node.inputs[0] is None:
        return None
    middle = constant_values(node.inputs[2]) if len(node.inputs) > 2 else None
    return node.inputs[0].name or "", 0 if middle is None or middle.size != 1 else int(middle.reshape(-1)[0])


def _initial(node: ir.Node, name: str) -> int | None:
    """The number of a scalar initializer of the node's graph."""
    graph = node.graph
    value = graph.initializers.get(name) if isinstance(graph, ir.Graph) else None
    numbers = constant_values(value)
    return None if numbers is None or numbers.size != 1 else int(numbers.reshape(-1)[0])


def _traced(
    value: AlignedValue, shape: tuple[int, ...], summary: ValueSummary, ends: CodeSaturation | None
) -> TracedValue:
    count = max(summary.elements, 1)
    finite = summary.elements > summary.nan + summary.infinite
    return TracedValue(
        value.name,
        value.node,
        value.op,
        value.block,
        value.layers,
        shape,
        summary.least if finite else None,
        summary.greatest if finite else None,
        summary.mean if finite else None,
        summary.deviation if finite else None,
        summary.zeros / count,
        None if ends is None else ends.share,
        summary.nan,
        summary.infinite,
    )


def _first_beyond(
    model: TappedModel,
    values: Sequence[AlignedValue],
    found: Sequence[TracedValue],
    feeds: Feeds,
    progress: Progress,
) -> tuple[TracedValue | None, TracedValue | None]:
    """The first NaN and the first infinity; every value is read only where one was seen."""
    nan, infinite = any(value.nan for value in found), any(value.infinite for value in found)
    if not nan and not infinite:
        return None, None
    everything = list(_look(model, values, feeds, progress))
    return (
        next((value for value in everything if value.nan), None) if nan else None,
        next((value for value in everything if value.infinite), None) if infinite else None,
    )
