"""The regions of a graph between its linears: what linears and embeddings write, what linears read, and all that lies between.

*Given* a model with its census. Cut at every linear and at every table that is gathered from, its values fall apart into regions: the
residual stream with its norms is one, what attention does between its projections another, and so is the inside of each MLP. A change
of basis of what a region's writers write can only be seen by the region's readers, its graph outputs, and nothing else.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import onnx_ir as ir

from qcompiler.graph.census import Census
from qcompiler.graph.reads import node_reads
from qcompiler.graph.weights import Role, Weight, WeightUse

OF_SHAPES = frozenset({"Shape", "Size"})
"""What these read is how large a value is, not its numbers."""


@dataclass(eq=False)
class Region:
    """One region.

    Attributes:
        values: every activation in it, in graph order: a writer's first.
        nodes: between writers and readers, in graph order.
        writers: what a linear or a table writes.
        readers: linears that read one of ``values``.
    """

    values: list[ir.Value] = field(default_factory=list)
    nodes: list[ir.Node] = field(default_factory=list)
    writers: dict[ir.Value, "Product"] = field(default_factory=dict)
    readers: list["Product"] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Product:
    """A node that multiplies with, or gathers from, a weight."""

    weight: Weight
    use: WeightUse

    @property
    def node(self) -> ir.Node:
        """The node."""
        return self.use.node

    @property
    def input(self) -> ir.Value:
        """X [..., K] of a linear."""
        value = self.node.inputs[0]
        assert value is not None
        return value

    @property
    def output(self) -> ir.Value:
        """What it writes."""
        return self.node.outputs[0]

    @property
    def width(self) -> int:
        """Channels that it writes: N of a linear, K of a table [N, K]."""
        return self.weight.shape[1 if self.use.role is Role.EMBEDDING else 0]


@dataclass(frozen=True, eq=False)
class Regions:
    """All of them, in graph order, and the values that no linear or table has a part in: masks, positions, shapes."""

    regions: list[Region]
    computed: frozenset[ir.Value]
    """Every value that follows from what a linear or a table wrote."""
    products: dict[ir.Node, Product]


def find_regions(model: ir.Model, census: Census) -> Regions:
    """The regions of the main graph; a linear inside a control-flow body does not cut: it belongs to the node with the body."""
    products = {
        use.node: Product(weight, use)
        for weight in census.weights
        for use in weight.uses
        if use.in_body is None
    }
    computed: set[ir.Value] = set()
    joined = _Joined()
    for node in model.graph:
        if node in products:
            computed.update(node.outputs)
            continue
        reads = [value for value in node_reads(node) if value in computed]
        if not reads or node.op_type in OF_SHAPES:
            continue
        computed.update(node.outputs)
        joined.join([*reads, *node.outputs])
    return Regions(list(_collect(model, computed, joined, products)), frozenset(computed), products)


def _collect(
    model: ir.Model, computed: set[ir.Value], joined: "_Joined", products: dict[ir.Node, Product]
) -> Iterator[Region]:
    regions: dict[ir.Value, Region] = {}
    for node in model.graph:
        product = products.get(node)
        if product is not None and product.use.role is not Role.EMBEDDING and product.input in computed:
            regions[joined.root(product.input)].readers.append(product)
        for index, value in enumerate(node.outputs):
            if value not in computed:
                continue
            region = regions.setdefault(joined.root(value), Region())
            region.values.append(value)
            if product is not None:
                region.writers[value] = product
            elif index == 0:
                region.nodes.append(node)
    yield from regions.values()


class _Joined:
    """Sets of values that were joined, by union and find."""

    def __init__(self) -> None:
        self._parent: dict[ir.Value, ir.Value] = {}

    def root(self, value: ir.Value) -> ir.Value:
        """One value that stands for the set."""
        while (parent := self._parent.get(value, value)) is not value:
            self._parent[value] = value = self._parent.get(parent, parent)
        return value

    def join(self, values: list[ir.Value]) -> None:
        """Makes one set of theirs."""
        first = self.root(values[0])
        for value in values[1:]:
            self._parent[self.root(value)] = first
