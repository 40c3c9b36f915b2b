"""Run a graph segment by segment over the calibration data, holding only the activations at the borders.

Segment i is run stage by stage: its first weights are quantized, then what they compute is observed by the next, and so on, so that what
it hands on is what the quantized model computes, and nothing is computed twice. Where scales move between its weights, the whole segment is
observed once before. Border activations stay in memory up to a limit and go to a file in the work folder past it.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from qcompiler.algorithms import Need
from qcompiler.calibration.borders import Borders
from qcompiler.calibration.observers import GroupsObserver, InputObserver, WindowObserver
from qcompiler.calibration.segments import FEWEST, Segment, cut_segments
from qcompiler.calibration.windows import Tap
from qcompiler.graph.extract import Piece, is_constant, nodes_needed
from qcompiler.graph.reads import node_reads
from qcompiler.quant.statistics import GroupedStatistics, InputStatistics

Array = npt.NDArray[Any]
Statistics = InputStatistics | GroupedStatistics


class Collector:
    """Drives the segments of a model over calibration feeds.

    Args:
        model: its graph may be edited between runs, inside the segment that is at hand.
        anchors: the nodes whose weights are to be quantized.
        feeds: complete feeds by input name; read once.
        folder: for border activations past ``limit`` bytes.
        fewest: weights of a segment, see cut_segments.
    """

    def __init__(
        self,
        model: ir.Model,
        anchors: Sequence[ir.Node],
        feeds: Sequence[Mapping[str, Array]],
        folder: Path,
        limit: int,
        fewest: int = FEWEST,
    ) -> None:
        self._model = model
        self.segments: list[Segment] = cut_segments(model.graph, set(anchors), fewest)
        self._borders = Borders[ir.Value](len(feeds), folder, limit)
        inputs = {value.name: value for value in model.graph.inputs}
        for index, feed in enumerate(feeds):
            for name, array in feed.items():
                self._borders.put(index, inputs[name], array)
        self._home = {node: segment.index for segment in self.segments for node in segment.nodes}
        self._last_reader = {value: segment.index for segment in self.segments for value in segment.inputs}
        self._extra: list[ir.Value] = []  # kept past the segment that made them, for whoever asked for them
        self._kept: dict[ir.Value, None] = {}  # made inside the segment at hand, for its later stages
        self._ran: set[ir.Node] = set()  # its nodes that are done with

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
        self, segment: Segment, taps: Mapping[Tap, tuple[int, frozenset[Need]]]
    ) -> dict[Tap, Statistics | None]:
        """Statistics of what is read at ``taps`` (with K and needs) over all samples, computed and forgotten."""
        return self._observe(segment, taps, ())

    def observe_stage(
        self, segment: Segment, taps: Mapping[Tap, tuple[int, frozenset[Need]]]
    ) -> dict[Tap, Statistics | None]:
        """Like ``observe``, and what was computed stays: later stages and ``advance`` go on from there.

        Nothing upstream of ``taps`` may change afterwards.
        """
        nodes = self.nodes_of(segment)
        given = [*segment.inputs, *self._kept]
        self._ran |= nodes_needed(nodes, given, [tap.value for tap in taps if tap.value not in given])
        later = [node for node in nodes if node not in self._ran]
        wanted = {value for node in later for value in node_reads(node)} | set(self.read_later(segment))
        made = [value for node in nodes if node in self._ran for value in node.outputs]
        border = [
            value for value in made if value in wanted and value not in given and not is_constant(value)
        ]
        seen = self._observe(segment, taps, border)
        for value in list(self._kept):
            if value not in wanted:
                del self._kept[value]
                self._borders.drop(value)
        self._kept.update(dict.fromkeys(border))
        return seen

    def _observe(
        self,
        segment: Segment,
        taps: Mapping[Tap, tuple[int, frozenset[Need]]],
        keep: Sequence[ir.Value],
    ) -> dict[Tap, Statistics | None]:
        if not taps:
            return {}
        observers = {tap: _observer(tap, k, needs) for tap, (k, needs) in taps.items()}
        given = [*segment.inputs, *self._kept]
        wanted = list(dict.fromkeys([*(tap.value for tap in taps if tap.value not in given), *keep]))
        piece = Piece(self._model, self.nodes_of(segment), given, wanted) if wanted else None
        for index in range(len(self._borders)):
            sample = self._borders.sample(index)
            made = piece.run(sample) if piece is not None else {}
            for tap, observer in observers.items():
                observer.add(made[tap.value] if tap.value in made else sample[tap.value])
            for value in keep:
                self._borders.put(index, value, made[value])
        return {tap: observer.statistics() for tap, observer in observers.items()}

    def begin_again(self, segment: Segment) -> None:
        """Forget what the stages of a segment computed: its weights have changed."""
        for value in self._kept:
            self._borders.drop(value)
        self._kept, self._ran = {}, set()

    def advance(self, segment: Segment, keep: Sequence[ir.Value] = ()) -> None:
        """Run what is left of the segment as it now is and hand its outputs on; drop what no later segment reads.

        Args:
            keep: outputs that stay although no later segment reads them, until the next is run.
        """
        self._drop_extra()
        later = self.read_later(segment)
        self._extra = [value for value in keep if value not in later]
        outputs = [*later, *self._extra]
        wanted = [value for value in outputs if value not in self._kept]
        if wanted:
            given = [*segment.inputs, *self._kept]
            piece = Piece(self._model, self.nodes_of(segment), given, wanted)
            for index in range(len(self._borders)):
                for value, array in piece.run(self._borders.sample(index)).items():
                    self._borders.put(index, value, array)
        for value in self._kept:
            if value not in outputs:
                self._borders.drop(value)
        self._kept, self._ran = {}, set()
        for value, reader in self._last_reader.items():
            if reader == segment.index:
                self._borders.drop(value)

    def _drop_extra(self) -> None:
        for value in self._extra:
            self._borders.drop(value)
        self._extra = []

    def read_later(self, segment: Segment) -> list[ir.Value]:
        """The segment's outputs that another segment reads; the graph's own outputs nobody here wants."""
        return [value for value in segment.outputs if self._last_reader.get(value, -1) > segment.index]

    def handed_on(self, segment: Segment) -> dict[str, Iterator[Array]]:
        """What segments up to this one, which was just advanced, made for later ones: by name, for each sample in turn."""
        made = [
            value for value in self._made_until(segment) if self._last_reader.get(value, -1) > segment.index
        ]
        return {value.name or "": self._arrays(value) for value in made}

    def _arrays(self, value: ir.Value) -> Iterator[Array]:
        for index in range(len(self._borders)):
            yield self._borders.array(index, value)

    def go_on_after(self, segment: Segment, handed_on: Mapping[str, Sequence[Array]]) -> None:
        """As if every segment up to this one had run and ``handed_on`` were what they made; their graph is as it was then."""
        for value, reader in self._last_reader.items():
            if reader <= segment.index:
                self._borders.drop(value)
        for value in self._made_until(segment):
            for index, array in enumerate(handed_on.get(value.name or "", ())):
                self._borders.put(index, value, array)

    def _made_until(self, segment: Segment) -> list[ir.Value]:
        return [value for earlier in self.segments[: segment.index + 1] for value in earlier.outputs]

    @property
    def samples(self) -> int:
        """How many there are."""
        return len(self._borders)

    def array(self, index: int, value: ir.Value) -> Array:
        """A border activation of one sample."""
        return self._borders.array(index, value)

    def sample(self, index: int) -> Mapping[ir.Value, Array]:
        """Border activations of one sample, for probing."""
        return self._borders.sample(index)


def _observer(tap: Tap, k: int, needs: frozenset[Need]) -> InputObserver | WindowObserver | GroupsObserver:
    where = tap.value.name or ""
    if tap.window is None:
        return InputObserver(k, needs, where)
    if tap.window.groups == 1:
        return WindowObserver(tap.window, k, needs, where)
    return GroupsObserver(tap.window, k, where)
