"""Ranges of a model's activations: it runs over the calibration data, piece by piece, and what it computes is observed and forgotten.

The graph is cut into segments, each a session of its own that gives the observed values in it and what later ones read. A feed goes through
all of them before the next one, so that memory holds the activations of one feed in one segment, however many feeds and segments there are,
and nothing goes to the disk. Sessions keep no memory between runs. Measured on two cores that other work shared, 512 tokens or one image,
all inputs of products (of the CNN also of Clip and Add) observed:

    SmolLM2-135M        one session with 241 more outputs 779 MB, 6.6 s a feed; 31 segments 186 MB, 3.2 s (with arenas 1598 MB)
    EfficientNet-Lite0  one session with 91 more outputs 72 MB, 0.11 s a feed; 19 segments 49 MB, 0.15 s
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from qcompiler.calibration.body_outputs import reach_into_bodies
from qcompiler.calibration.range_observers import RangeMethod, RangeObserver, RangeOptions
from qcompiler.calibration.segments import Segment, cut_segments
from qcompiler.errors import CalibrationError
from qcompiler.graph.extract import Piece, is_constant
from qcompiler.graph.weights import constant_view
from qcompiler.quant.ranges import Range

Array = npt.NDArray[Any]
Feed = Mapping[str, Array]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class ObservedRange(Range):
    """A range, and what it was found from.

    Attributes:
        method: how it was found.
        batches: how many runs, or iterations of a loop, gave at least one number.
        numbers: how many numbers were seen.
    """

    method: RangeMethod
    batches: int
    numbers: int


def observe_ranges(
    model: ir.Model,
    values: Sequence[ir.Value],
    feeds: Iterable[Feed],
    method: RangeMethod = "minmax",
    *,
    progress: Progress | None = None,
    options: RangeOptions | None = None,
    bits: int = 8,
    symmetric: bool = False,
) -> dict[str, ObservedRange]:
    """Ranges by name; a value of which nothing was seen (in a branch never taken, or without a number on any feed) is not among them.

    Args:
        model: prepared (it runs on ONNX Runtime's CPU provider); not changed.
        values: float values of its graph or of bodies inside it (see ``body_outputs``), inputs and constants too.
        feeds: complete feeds by input name; gone through once.
        method: see ``range_observers``.
        options: of the method.
        bits: of the codes that are to cover the range.
        symmetric: whether these lie symmetrically about 0.
    Raises:
        CalibrationError: NaN, infinity or no floats in a value; ONNX Runtime refuses the model or a feed; no feeds; two values of one name.
    """
    values = list(dict.fromkeys(values))
    observers = {_name(value): RangeObserver(method, _name(value), options) for value in values}
    if not observers:
        return {}
    if len(observers) < len(values):
        given = [_name(value) for value in values]
        twice = next(name for name in given if given.count(name) > 1)
        raise CalibrationError(
            f"{twice}: two tensors have this name (in bodies of the graph); give each its own"
        )
    lifted, reached = reach_into_bodies(model, values)
    names = {value: name for name, value in reached.items()}
    inputs = {value.name: value for value in lifted.graph.inputs}
    chain = None
    total = len(feeds) if isinstance(feeds, Sized) else 0
    for index, feed in enumerate(feeds):
        if chain is None:
            chain = _Chain(lifted, list(names))
            for value, array in chain.of_constants():
                observers[names[value]].add(array)
        for value, array in chain.over({inputs[name]: array for name, array in feed.items()}):
            observers[names[value]].add(array)
        if progress is not None:
            progress("observing ranges", index + 1, max(total, index + 1))
    if chain is None:
        raise CalibrationError(
            "ranges of activations need calibration data, and there are no feeds; give --calib PATH"
        )
    return {
        name: ObservedRange(seen.lowest, seen.highest, method, observer.batches, observer.numbers)
        for name, observer in observers.items()
        if (seen := observer.range(bits, symmetric)) is not None
    }


class _Chain:
    """The pieces that lead to the values, and what of each piece is kept until when."""

    def __init__(self, model: ir.Model, values: Sequence[ir.Value]) -> None:
        self.constants = [value for value in values if is_constant(value)]
        self._model = model
        self._observed = frozenset(values) - set(self.constants)
        made_by = {value.producer() for value in self._observed}
        anchors = {node for node in made_by if node is not None}
        self._pieces = self._needed_pieces(cut_segments(model.graph, anchors) if anchors else [])
        self._last_reader = {
            value: index for index, piece in enumerate(self._pieces) for value in piece.inputs
        }

    def _needed_pieces(self, segments: Sequence[Segment]) -> list[Piece]:
        """From the last backwards: each gives what is observed in it and what the pieces after it read."""
        wanted, pieces = set(self._observed), list[Piece]()
        for segment in reversed(segments):
            outputs = [value for node in segment.nodes for value in node.outputs if value in wanted]
            if not outputs:
                continue
            piece = Piece(self._model, segment.nodes, segment.inputs, outputs, arena=False)
            wanted.update(piece.inputs)
            pieces.append(piece)
        return pieces[::-1]

    def over(self, feed: Mapping[ir.Value, Array]) -> Iterator[tuple[ir.Value, Array]]:
        """The observed values on one feed, each as soon as it is computed; an array is let go when the next is asked for."""
        alive = {value: array for value, array in feed.items() if value in self._last_reader}
        yield from ((value, array) for value, array in feed.items() if value in self._observed)
        for index, piece in enumerate(self._pieces):
            made = piece.run(alive)
            for value in piece.inputs:
                if self._last_reader[value] == index:
                    del alive[value]
            for value in piece.outputs:
                array = made.pop(value)
                if value in self._last_reader:
                    alive[value] = array
                if value in self._observed:
                    yield value, array

    def of_constants(self) -> Iterator[tuple[ir.Value, Array]]:
        """The values that are the same on any feed."""
        for value in self.constants:
            view = constant_view(value)
            if view is not None:
                yield value, view.array()
            else:
                yield value, Piece(self._model, list(self._model.graph), [], [value]).run({})[value]


def _name(value: ir.Value) -> str:
    if value.name is None:
        raise CalibrationError("a value without a name cannot have a range; name the model's values first")
    return value.name
