"""Run a graph segment by segment over the calibration data, holding only the activations at the borders.

Segment i is run twice: once with taps, before its weights are quantized, and once after, so that what it hands on is what the
quantized model computes. Border activations stay in memory up to a limit and go to files in the work folder past it.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.algorithms import Need
from qcompiler.calibration.observers import InputObserver
from qcompiler.calibration.segments import Segment, cut_segments
from qcompiler.graph.disk import writing
from qcompiler.graph.extract import Piece
from qcompiler.quant.statistics import InputStatistics

Array = npt.NDArray[Any]


class Borders:
    """Arrays of each sample by value, in memory or, past ``limit`` bytes, in files."""

    def __init__(self, samples: int, folder: Path, limit: int) -> None:
        self._samples: list[dict[ir.Value, Array]] = [{} for _ in range(samples)]
        self._spilled: set[tuple[int, ir.Value]] = set()
        self._folder = folder
        self._limit = limit
        self._held = 0
        self._numbers = itertools.count()

    def __len__(self) -> int:
        return len(self._samples)

    def sample(self, index: int) -> Mapping[ir.Value, Array]:
        """Everything kept of one sample."""
        return self._samples[index]

    def put(self, index: int, value: ir.Value, array: Array) -> None:
        """Keep an array; past the limit it goes to a file that is mapped back.

        Raises:
            ResourceError: the disk is full.
        """
        if self._held + array.nbytes > self._limit and array.nbytes > 0:
            path = self._folder / f"border-{next(self._numbers)}"
            with writing(path):  # raw bytes: the .npy format knows no bfloat16
                np.ascontiguousarray(array).reshape(-1).view(np.uint8).tofile(path)
            array = np.memmap(path, np.uint8, "r").view(array.dtype).reshape(array.shape)
            path.unlink()  # the mapping keeps the bytes until it is dropped
            self._spilled.add((index, value))
        else:
            self._held += array.nbytes
        self._samples[index][value] = array

    def drop(self, value: ir.Value) -> None:
        """Forget a value of every sample."""
        for index, sample in enumerate(self._samples):
            array = sample.pop(value, None)
            if array is not None and (index, value) not in self._spilled:
                self._held -= array.nbytes
            self._spilled.discard((index, value))


class Collector:
    """Drives the segments of a model over calibration feeds.

    Args:
        model: its graph may be edited between runs, inside the segment that is at hand.
        anchors: the nodes whose weights are to be quantized.
        feeds: complete feeds by input name; read once.
        folder: for border activations past ``limit`` bytes.
    """

    def __init__(
        self,
        model: ir.Model,
        anchors: Sequence[ir.Node],
        feeds: Iterable[Mapping[str, Array]],
        folder: Path,
        limit: int,
    ) -> None:
        self._model = model
        self.segments: list[Segment] = cut_segments(model.graph, set(anchors))
        taken = list(feeds)
        self._borders = Borders(len(taken), folder, limit)
        inputs = {value.name: value for value in model.graph.inputs}
        for index, feed in enumerate(taken):
            for name, array in feed.items():
                self._borders.put(index, inputs[name], array)
        self._home = {node: segment.index for segment in self.segments for node in segment.nodes}
        self._last_reader = {value: segment.index for segment in self.segments for value in segment.inputs}

    def nodes_of(self, segment: Segment) -> list[ir.Node]:
        """The segment's nodes as they now are: the original ones that are left, and what edits put in front of them."""
        nodes: list[ir.Node] = []
        added: list[ir.Node] = []
        for node in self._model.graph:
            home = self._home.get(node)
            if home is None:
                added.append(
                    node
                )  # edits insert in front of a reader, so it belongs to the next original node's segment
                continue
            if home == segment.index:
                nodes += [*added, node]
            added.clear()
        return nodes

    def observe(
        self, segment: Segment, taps: Mapping[ir.Value, tuple[int, frozenset[Need]]]
    ) -> dict[ir.Value, InputStatistics | None]:
        """Statistics of the values in ``taps`` (value -> (K, needs)) over all samples."""
        if not taps:
            return {}
        observers = {value: InputObserver(k, needs, value.name or "") for value, (k, needs) in taps.items()}
        wanted = [value for value in taps if value not in segment.inputs]
        piece = Piece(self._model, self.nodes_of(segment), segment.inputs, wanted) if wanted else None
        for index in range(len(self._borders)):
            sample = self._borders.sample(index)
            made = piece.run(sample) if piece is not None else {}
            for value, observer in observers.items():
                observer.add(made[value] if value in made else sample[value])
        return {value: observer.statistics() for value, observer in observers.items()}

    def advance(self, segment: Segment) -> None:
        """Run the segment as it now is and hand its outputs on; drop what no later segment reads."""
        wanted = [value for value in segment.outputs if self._last_reader.get(value, -1) > segment.index]
        if wanted:
            piece = Piece(self._model, self.nodes_of(segment), segment.inputs, wanted)
            for index in range(len(self._borders)):
                for value, array in piece.run(self._borders.sample(index)).items():
                    self._borders.put(index, value, array)
        for value, reader in self._last_reader.items():
            if reader == segment.index:
                self._borders.drop(value)

    def sample(self, index: int) -> Mapping[ir.Value, Array]:
        """Border activations of one sample, for probing."""
        return self._borders.sample(index)
