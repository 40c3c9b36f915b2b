"""Run one region of a graph on random numbers: how what its linears read follows from what its linears write."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.errors import CalibrationError
from qcompiler.graph.extract import Piece, is_constant
from qcompiler.graph.left_alone import RefusalError
from qcompiler.graph.reads import node_reads
from qcompiler.graph.regions import OF_SHAPES, Product, Region, Regions
from qcompiler.graph.weights import Role, constant_view

Array = npt.NDArray[Any]
Types = Mapping[str, tuple[ir.DataType, tuple[int, ...]]]
"""Type and shape of values by name, for the sizes of one feed."""

BOUNDING = frozenset(
    {"Clip", "Min", "Max", "Where", "ThresholdedRelu", "Shrink", "HardSigmoid", "HardSwish", "Sign", "Mod", "Equal", "Greater",
     "GreaterOrEqual", "Less", "LessOrEqual", "QuantizeLinear", "IsInf", "IsNaN"}
)  # fmt: skip
"""The same function until some value crosses a bound, so no run on random numbers clears them."""


@contextmanager
def _refused_as_one() -> Iterator[None]:
    """What keeps a piece from running names its values, which differ from region to region: one fact for all of them."""
    try:
        yield
    except RefusalError:
        raise
    except CalibrationError as error:
        raise RefusalError("it cannot be run: {}", str(error)) from error


class RegionRun:
    """A region that can be run.

    Args:
        model: the region belongs to it; not changed.
        feed: one feed of the model: its masks and positions are computed from it.
        types: of values for that feed, as far as they are known.
        constants: constants of the region that a run may replace.
        exits: values of the region that are wanted beside what its readers read.
    Raises:
        RefusalError: what it needs does not follow from its writers and the model's inputs, or ONNX Runtime cannot run it; says what.
    """

    @_refused_as_one()
    def __init__(
        self,
        model: ir.Model,
        regions: Regions,
        region: Region,
        feed: Mapping[str, Array],
        types: Types,
        constants: Collection[ir.Value] = (),
        exits: Sequence[ir.Value] = (),
    ) -> None:
        self.targets = list(dict.fromkeys([*(product.input for product in region.readers), *exits]))
        random = np.random.default_rng(0)
        self.given: dict[ir.Value, Array] = {value: constant_array(model, value) for value in constants}
        beside = {value: feed[value.name or ""] for value in model.graph.inputs if value.name in feed}
        for value, product in region.writers.items():
            shape = (*_leading(model, regions, product, beside, types), product.width)
            self.given[value] = random.standard_normal(shape).astype(product.weight.dtype.numpy())
        beside |= _shapes_elsewhere(model, regions, region, types)
        own = set(region.nodes)
        nodes = [
            node
            for node in model.graph
            if node in own or not any(value in regions.computed for value in (*node_reads(node), *node.outputs))
            or (node.op_type in OF_SHAPES and node.outputs[0] not in beside)
        ]  # fmt: skip
        self._beside = beside
        self._piece = Piece(model, nodes, [*self.given, *beside], self.targets)

    @_refused_as_one()
    def __call__(self, changed: Mapping[ir.Value, Array] | None = None) -> dict[ir.Value, Array]:
        """What the readers read, and the exits, float64 [rows, channels] each; ``changed`` replaces some of ``given``."""
        typed = {value: array.astype(self.given[value].dtype) for value, array in (changed or {}).items()}
        results = self._piece.run({**self._beside, **self.given, **typed})
        return {v: a.astype(np.float64).reshape(-1, a.shape[-1]) for v, a in results.items()}

    @property
    def tolerance(self) -> float:
        """Relative error that rounding of a few dozen chained operations makes; a miss is of order 1."""
        single = all(array.dtype == np.float32 for array in self.given.values())
        return 1e-4 if single else 1e-2


def first_difference(
    found: Mapping[ir.Value, Array], expected: Mapping[ir.Value, Array], tolerance: float
) -> ir.Value | None:
    """The first value that is not as expected (norm of the difference over the norm); None where all are."""
    for value, wanted in expected.items():
        norm = np.linalg.norm(wanted)
        if not (norm > 0 and np.linalg.norm(found[value] - wanted) <= tolerance * norm):  # NaN is no either
            return value
    return None


def downstream(sources: Sequence[ir.Value], region: Region) -> tuple[set[ir.Node], set[ir.Value]]:
    """Nodes of the region that ``sources`` reach before a reader, and the values that they make, ``sources`` among them."""
    nodes: set[ir.Node] = set()
    values = set(sources)
    for node in region.nodes:  # in graph order, so once is enough
        if node.op_type not in OF_SHAPES and any(value in values for value in node_reads(node)):
            nodes.add(node)
            values.update(node.outputs)
    return nodes, values


def constant_array(model: ir.Model, value: ir.Value) -> Array:
    """The numbers of a constant, as its readers see them.

    Raises:
        CalibrationError: it cannot be computed.
    """
    view = constant_view(value)
    if view is not None and view.source.const_value is not None:
        return view.array().astype(view.dtype.numpy())
    if not is_constant(value):
        raise CalibrationError(f"{value.name}: is not constant")
    return Piece(model, list(model.graph), [], [value]).run({})[value]


def _leading(
    model: ir.Model, regions: Regions, product: Product, inputs: Mapping[ir.Value, Array], types: Types
) -> tuple[int, ...]:
    """The leading sizes of what a product writes; where its own do not follow (from an operator that ONNX does not know), a table's.

    A wrong guess does not run, or runs on another number of rows, which proves as much.
    """
    known = types.get(product.output.name or "")
    if known is not None:
        return known[1][:-1]
    tables = [each for each in regions.products.values() if each.use.role is Role.EMBEDDING]
    for table in [product, *tables] if product.use.role is Role.EMBEDDING else tables:
        indices = table.node.inputs[1]
        if indices is None or indices in regions.computed:
            continue
        found = inputs.get(indices)
        if found is None:
            found = Piece(model, list(model.graph), list(inputs), [indices]).run(inputs)[indices]
        return tuple(found.shape)
    raise RefusalError(
        "the shape of {} does not follow from the shapes of the model's inputs", product.output.name
    )


def _shapes_elsewhere(
    model: ir.Model, regions: Regions, region: Region, types: Types
) -> dict[ir.Value, Array]:
    """What Shape and Size yield of activations that are not the region's, as far as it is known."""
    own = set(region.values)
    found: dict[ir.Value, Array] = {}
    for node in model.graph:
        source = node.inputs[0] if node.op_type in OF_SHAPES else None
        if (
            source is None
            or source not in regions.computed
            or source in own
            or (source.name or "") not in types
        ):
            continue
        dims = types[source.name or ""][1]
        if node.op_type == "Size":
            found[node.outputs[0]] = np.array(np.prod(dims), np.int64)
            continue
        start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", len(dims))
        found[node.outputs[0]] = np.array(dims[start:end], np.int64)
    return found
