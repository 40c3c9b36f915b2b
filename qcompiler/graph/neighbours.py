"""Blocks of nodes that nothing names, from those of the nodes around them.

*Given* the blocks of some nodes of a graph. *Result* the blocks of all: what lies between two nodes of a block is in it; what lies between
two blocks is in the earlier one as long as it reads what that one made, and in the later one from there on. What several blocks read and
none made (masks, positions) is outside.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from qcompiler.graph.reads import node_reads

OUTSIDE = ""
_OUTSIDE_PLACE = -1


def spread(
    nodes: Sequence[ir.Node], known: Mapping[ir.Node, str], products: Collection[ir.Node]
) -> dict[ir.Node, str]:
    """The blocks of ``nodes`` (a graph's, in its order), of which ``known`` has some; ``products`` read weights."""
    return _Spread(nodes, known, products).run()


@dataclass
class _After:
    """Of the nearest known nodes that read from a node: places of the first and the last block, and whether one is outside."""

    first: float = math.inf
    last: float = -1
    outside: bool = False


class _Spread:
    def __init__(
        self, nodes: Sequence[ir.Node], known: Mapping[ir.Node, str], products: Collection[ir.Node]
    ) -> None:
        self._nodes = nodes
        self._known = known
        self._products = products
        in_order = dict.fromkeys(known[node] for node in nodes if node in known)
        self._names = [block for block in in_order if block != OUTSIDE]
        self._place = {name: index for index, name in enumerate(self._names)} | {OUTSIDE: _OUTSIDE_PLACE}
        self._after = self._look_ahead()
        self._before: dict[
            ir.Node, int | None
        ] = {}  # the latest block among the nearest known nodes that it reads from
        self._found: dict[ir.Node, str] = {}
        self._ahead: list[ir.Node] = []  # given to the block behind them, for want of one that they read

    def run(self) -> dict[ir.Node, str]:
        inside = set(self._nodes)
        for node in self._nodes:
            producers = [
                p for value in node_reads(node) if (p := value.producer()) is not None and p in inside
            ]
            places = [self._place[self._known[p]] if p in self._known else self._before[p] for p in producers]
            self._before[node] = max((place for place in places if place is not None), default=None)
            self._found[node] = self._known[node] if node in self._known else self._between(node, producers)
        for node in reversed(self._ahead):  # what only the block before reads is of that block
            readers = {self._found.get(user) for value in node.outputs for user, _ in value.uses()}
            before = self._before[node]
            if before is not None and readers == {self._names[before]}:
                self._found[node] = self._names[before]
        return self._found

    def _between(self, node: ir.Node, producers: Sequence[ir.Node]) -> str:
        before, after = self._before[node], self._after[node]
        behind = OUTSIDE if after.first == math.inf else self._names[int(after.first)]
        if before is None or before == _OUTSIDE_PLACE:
            reads_outside = any(p in self._known for p in producers)
            return behind if after.first == after.last and not reads_outside else OUTSIDE
        block = self._names[before]
        if behind == OUTSIDE and node in self._products:
            return OUTSIDE  # a head
        ends_here = behind == OUTSIDE and not after.outside
        if ends_here or after.first <= before or any(self._carries(p, block, node) for p in producers):
            return block
        self._ahead.append(node)
        return behind

    def _carries(self, producer: ir.Node, block: str, reader: ir.Node) -> bool:
        """Whether what ``producer`` makes is of ``block`` and not yet on its way to others."""
        if self._found.get(producer) != block:
            return False
        readers = (user for value in producer.outputs for user, _ in value.uses())
        return producer in self._known or all(user is reader for user in readers)

    def _look_ahead(self) -> dict[ir.Node, _After]:
        after = {node: _After() for node in self._nodes}
        for node in reversed(self._nodes):
            own = after[node]
            if node in self._known:
                place = self._place[self._known[node]]
                own = _After(outside=True) if place == _OUTSIDE_PLACE else _After(place, place)
            for value in node_reads(node):
                producer = value.producer()
                seen = None if producer is None else after.get(producer)
                if seen is not None:
                    seen.first, seen.last = min(seen.first, own.first), max(seen.last, own.last)
                    seen.outside |= own.outside
        return after
