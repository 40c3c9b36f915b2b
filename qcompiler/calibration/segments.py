"""Cut a graph into segments that can run one after another with few activations between them.

*Trunk* values depend on a weight that is to be quantized, or are what the first such weights multiply; everything
else (masks, positions, rotary tables) is *side*: computed once and carried. The trunk is cut where the number of
trunk values alive is least: one, on a residual stream. A piece that still holds many weights (a decoder with
cross-attention keeps the encoder's output alive throughout) is cut again at its own minimum.
"""

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from qcompiler.graph.extract import is_constant
from qcompiler.graph.reads import moved_by, node_reads

FEWEST = 3  # weights of a segment, where the graph leaves a choice: in a plain chain each linear could stand alone, and no scale move
LARGEST_SEGMENT = 16  # weights; past it a piece is cut again at the least number of live values inside it


@dataclass(frozen=True)
class Segment:
    """A run of consecutive nodes.

    Attributes:
        index: place in the order of execution.
        nodes: in graph order.
        inputs: values made by earlier segments or graph inputs; constants are not listed, wherever their nodes stand.
        outputs: values that later segments or the graph's outputs need.
    """

    index: int
    nodes: tuple[ir.Node, ...]
    inputs: tuple[ir.Value, ...]
    outputs: tuple[ir.Value, ...]


def cut_segments(graph: ir.Graph, anchors: Collection[ir.Node], fewest: int = FEWEST) -> list[Segment]:
    """Segments of a graph, given the nodes whose weights are to be quantized (``anchors``), at least ``fewest`` of them before each cut.

    The order of nodes is kept, so the concatenation of all segments is the graph.
    """
    nodes = list(graph)
    trunk = _trunk_values(nodes, set(anchors))
    last_use = _last_uses(graph, nodes)
    alive = _alive_after(nodes, trunk, last_use, graph.inputs)
    is_anchor = [node in anchors for node in nodes]
    cuts = sorted(_cuts(alive, is_anchor, 0, len(nodes), fewest))
    return _build(graph, nodes, cuts)


def _trunk_values(nodes: Sequence[ir.Node], anchors: set[ir.Node]) -> set[ir.Value]:
    """Values that depend on an anchor's output through data, not through their shape alone."""
    trunk = moved_by(nodes, [value for node in anchors for value in node.outputs])
    return trunk | _before_trunk(anchors, trunk)


def _before_trunk(anchors: set[ir.Node], trunk: set[ir.Value]) -> set[ir.Value]:
    """Float values that lead to the first anchors: a residual stream that begins at an input or a float embedding."""
    stack = [value for node in anchors if trunk.isdisjoint(node_reads(node)) for value in node_reads(node)]
    before: set[ir.Value] = set()
    while stack:
        value = stack.pop()
        if (
            value in before
            or is_constant(value)
            or (value.dtype is not None and not value.dtype.is_floating_point())
        ):
            continue
        before.add(value)
        producer = value.producer()
        if producer is not None:
            stack += node_reads(producer)
    return before


def _last_uses(graph: ir.Graph, nodes: Sequence[ir.Node]) -> dict[ir.Value, int]:
    """Index of the last node that reads a value; graph outputs count only where they are made (they are stored, not carried)."""
    last: dict[ir.Value, int] = {}
    for index, node in enumerate(nodes):
        for value in node_reads(node):
            last[value] = index
    return last


def _alive_after(
    nodes: Sequence[ir.Node], trunk: set[ir.Value], last_use: dict[ir.Value, int], inputs: Sequence[ir.Value]
) -> list[int]:
    """Number of trunk values made at or before node i and read after it."""
    change = [0] * (len(nodes) + 1)
    for value in inputs:
        if value in trunk and last_use.get(value, 0) > 0:
            change[0] += 1
            change[last_use[value]] -= 1
    for index, node in enumerate(nodes):
        for value in node.outputs:
            end = last_use.get(value, index)
            if value in trunk and end > index:
                change[index] += 1
                change[end] -= 1
    alive, total = [], 0
    for index in range(len(nodes)):
        total += change[index]
        alive.append(total)
    return alive


def _cuts(alive: Sequence[int], is_anchor: Sequence[bool], start: int, end: int, fewest: int) -> set[int]:
    """Positions (cut after node i) inside [start, end), at least ``fewest`` anchors before each."""
    anchors = [i for i in range(start, end) if is_anchor[i]]
    if len(anchors) < 2:
        return set()
    # A cut lies between the first and the last anchor: the nodes around them stay with their neighbours.
    interior = range(anchors[0], anchors[-1])
    counts = [alive[i] for i in interior if alive[i] > 0]
    if not counts:
        return set()
    least = min(counts)
    cuts: set[int] = set()
    since_cut = 0
    for i in interior:
        since_cut += is_anchor[i]
        if alive[i] == least and since_cut >= fewest:
            cuts.add(i)
            since_cut = 0
    if not cuts:
        return set()
    bounds = [start, *(cut + 1 for cut in sorted(cuts)), end]
    for left, right in itertools.pairwise(bounds):
        held = sum(is_anchor[left:right])
        if held > LARGEST_SEGMENT and held < len(anchors):
            cuts |= _cuts(alive, is_anchor, left, right, fewest)
    return cuts


def _build(graph: ir.Graph, nodes: Sequence[ir.Node], cuts: Sequence[int]) -> list[Segment]:
    bounds = [0, *(cut + 1 for cut in cuts), len(nodes)]
    home: dict[ir.Value, int] = {}
    reads: list[list[ir.Value]] = []
    pieces = [tuple(nodes[a:b]) for a, b in itertools.pairwise(bounds) if b > a]
    for index, piece in enumerate(pieces):
        wanted: dict[ir.Value, None] = {}
        for node in piece:
            for value in node_reads(node):
                if home.get(value) != index and not is_constant(value):
                    wanted[value] = None
            for value in node.outputs:
                home[value] = index
        reads.append(list(wanted))
    needed_later: dict[ir.Value, None] = dict.fromkeys(v for v in graph.outputs)
    segments: list[Segment] = []
    for index in reversed(range(len(pieces))):
        made = [value for node in pieces[index] for value in node.outputs]
        outputs = tuple(value for value in made if value in needed_later)
        segments.append(Segment(index, pieces[index], tuple(reads[index]), outputs))
        needed_later.update(dict.fromkeys(reads[index]))
    return segments[::-1]
