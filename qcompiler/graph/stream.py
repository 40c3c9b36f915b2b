"""Find the residual streams of a graph and how to change their basis: h becomes h R (QuaRot's first rotation, R1).

A stream is a region (see ``regions``) in which what several linears write is summed and, normed, read by others. Everything that it holds
can be turned by one orthogonal R where the region's own nodes do not mind: f(h R) = f(h) R. No list of norms says so; the region is run on
random numbers, and once more turned. Where it fails with any R, one that keeps the row of ones is tried: that leaves means alone, so
LayerNorm commutes with it, in whatever nodes it is written. A norm's weight commutes with no rotation: it goes into the linears
that read the norm, and where it cannot (a tied table, a sum behind it) an explicit product takes its place, if those are few.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.errors import CalibrationError
from qcompiler.graph.absorb import NORMS
from qcompiler.graph.extract import is_constant
from qcompiler.graph.left_alone import LeftAlone, RefusalError
from qcompiler.graph.region_run import (
    BOUNDING,
    RegionRun,
    Types,
    constant_array,
    downstream,
    first_difference,
)
from qcompiler.graph.regions import Product, Region, Regions
from qcompiler.graph.weights import Expert, Role, is_read_by_its_uses_alone
from qcompiler.quant.rotation import Rotation, make_rotation

Array = npt.NDArray[Any]
Place = tuple[ir.Node, int]
"""An input of a node."""

MOST_EXTRA = 0.05
"""Explicit products may hold this share of the numbers in the linears that are turned for them: about what they cost to run."""
SHIFTS = {
    "Add": (0, 1),
    "Sub": (0, 1),
    "SkipLayerNormalization": (4,),
    "SkipSimplifiedLayerNormalization": (3,),
}
"""Inputs that are added to the stream; those that a norm adds behind its weight are its second in ``NORMS``. Sum adds all (``shifts``)."""


def shifts(node: ir.Node) -> Sequence[int]:
    """Inputs of a node that it adds."""
    return range(len(node.inputs)) if node.op_type == "Sum" else SHIFTS.get(node.op_type, ())


@dataclass(eq=False)
class NormWeight:
    """A vector [D] that multiplies the stream's channels, with what is added behind it before the linears read.

    Attributes:
        place: where it is read; what the node makes of it is ``node.outputs[0]``.
        value: float32 [D].
        offsets: vectors added behind it, and their sum float32 [D].
        readers: linears that read nothing else of the stream: W becomes W diag(value), their bias grows by W offset. Empty where an
            explicit product has to take its place.
    """

    place: Place
    value: npt.NDArray[np.float32]
    offsets: list[Place] = field(default_factory=list)
    offset: npt.NDArray[np.float32] | None = None
    readers: list[Product] = field(default_factory=list)


@dataclass(eq=False)
class Stream:
    """A region that can be turned.

    Attributes:
        writers, readers: linears and tables whose written, linears whose read channels are turned.
        norms: weights [D] inside it.
        shifts: constants [..., D] that are added to it, to be turned too.
        exits: outputs of the model among its values: an explicit product turns each back.
    """

    rotation: Rotation
    writers: list[Product]
    readers: list[Product]
    norms: list[NormWeight]
    shifts: list[Place]
    exits: list[ir.Value]


def find_stream(
    model: ir.Model, regions: Regions, region: Region, feed: dict[str, Array], types: Types, seed: int
) -> Stream | LeftAlone | None:
    """How to turn the region, why not, or None where it is no stream.

    Args:
        feed, types: see ``RegionRun``.
        seed: of R.
    """
    width = _stream_width(region)
    if width is None:
        return None
    writers = [product for product in region.writers.values() if product.width == width]
    readers = [product for product in region.readers if product.weight.shape[1] == width]
    where = f"stream of {width} channels from {writers[0].weight.name}"
    try:
        found = _Search(model, regions, region, width, writers, readers)
        return found.stream(
            RegionRun(model, regions, region, feed, types, found.constants, found.exits), seed
        )
    except RefusalError as refusal:
        return LeftAlone(where, refusal.fact, refusal.about)


def in_a_stack(expert: Expert) -> str:
    """What to say of a weight that is stored with others."""
    return f"is one of {expert.count} experts that are stored as one; stacks are not rotated"


def _stream_width(region: Region) -> int | None:
    """Channels of the sums of what different linears write, where linears of the region read as many; None without such a sum."""
    writer_of = {value: 1 << index for index, value in enumerate(region.writers)}
    products = list(region.writers.values())
    wrote = dict(writer_of)  # value -> the writers it follows from, one bit each
    for node in region.nodes:
        masks = [wrote[value] for value in node.inputs if value is not None and value in wrote]
        mask = 0
        for each in masks:
            mask |= each
        for output in node.outputs:
            wrote[output] = mask
        if node.op_type not in ("Add", "Sum") and not node.op_type.startswith("Skip"):
            continue
        for one, other in combinations(masks, 2):
            if one & other:
                continue
            widths = [{p.width for i, p in enumerate(products) if each >> i & 1} for each in (one, other)]
            for width in sorted(widths[0] & widths[1]):
                if any(product.weight.shape[1] == width for product in region.readers):
                    return width
    return None


class _Search:
    """What of a region has to change for it to be turned."""

    def __init__(
        self,
        model: ir.Model,
        regions: Regions,
        region: Region,
        width: int,
        writers: list[Product],
        readers: list[Product],
    ) -> None:
        self._model = model
        self._regions = regions
        self._region = region
        self._width = width
        self._writers = writers
        self._readers = readers
        self._check_nodes()
        self._check_uses()
        self.norms = [norm for node in region.nodes for norm in self._norms_of(node)]
        self._fold()
        folded = {place for norm in self.norms if norm.readers for place in norm.offsets}
        self.shifts = [
            place for node in region.nodes for place in self._shifts_of(node) if place not in folded
        ]
        scaling = {_value(norm.place) for norm in self.norms}
        for place in [*self.shifts, *folded]:
            if _value(place) in scaling:
                raise RefusalError("{} is both multiplied and added", _value(place).name)

    @property
    def constants(self) -> list[ir.Value]:
        """Every constant that changes."""
        places = (
            [norm.place for norm in self.norms]
            + [p for norm in self.norms for p in norm.offsets]
            + self.shifts
        )
        return list(dict.fromkeys(map(_value, places)))

    def stream(self, run: RegionRun, seed: int) -> Stream:
        """The stream, once its region has proved to commute with a rotation."""
        self._check_folding(run)
        self._check_extra()
        failed: ir.Value | None = None
        for keeps_ones in (False, True):
            rotation = make_rotation(self._width, seed, keeps_ones)
            failed = self._fails(run, rotation)
            if failed is None:
                return Stream(rotation, self._writers, self._readers, self.norms, self.shifts, self.exits)
        other = self._added_beside()
        if other is not None:
            raise RefusalError("{} is added to it, and neither a linear nor a table writes that", other.name)
        reader = next((product for product in self._region.readers if product.input is failed), None)
        if reader is None:
            assert failed is not None
            raise RefusalError("{}, an output of the model, does not turn with it", failed.name)
        raise RefusalError("what {} reads does not turn with it", reader.weight.name)

    def _check_nodes(self) -> None:
        nodes, values = downstream([product.output for product in self._writers], self._region)
        self.exits = [value for value in self._region.values if value in values and value.is_graph_output()]
        for node in self._region.nodes:
            if node in nodes and node.op_type in BOUNDING:
                raise RefusalError("{} bounds or compares its numbers", f"{node.name} ({node.op_type})")
        if not self._readers:
            raise RefusalError("no linear reads it")

    def _added_beside(self) -> ir.Value | None:
        """What follows from the model's inputs alone and is added to the stream."""
        for node in self._region.nodes:
            for index in shifts(node):
                value = node.inputs[index] if index < len(node.inputs) else None
                if value is None or value in self._regions.computed or is_constant(value):
                    continue
                if value.shape is None or (len(value.shape) and value.shape[-1] == self._width):
                    return value
        return None

    def _check_uses(self) -> None:
        """Every use of a weight has to ask for the same of it, for it is stored once."""
        inputs, outputs = {p.input for p in self._readers}, {p.output for p in self._writers}
        for weight in {id(p.weight): p.weight for p in (*self._writers, *self._readers)}.values():
            if weight.expert is not None:
                raise RefusalError("{} " + in_a_stack(weight.expert), weight.name)
            tables = [use for use in weight.uses if use.role is Role.EMBEDDING]
            linears = [use for use in weight.uses if use.role is not Role.EMBEDDING]
            columns = {use.node.outputs[0] in outputs for use in tables} | {
                use.node.inputs[0] in inputs for use in linears
            }
            rows = {use.node.outputs[0] in outputs for use in linears} | ({False} if tables else set())
            if len(columns) > 1 or len(rows) > 1 or not is_read_by_its_uses_alone(weight):
                raise RefusalError("{} is also used outside of it", weight.name)

    def _norms_of(self, node: ir.Node) -> list[NormWeight]:
        """The vectors [D] that a node multiplies with."""
        if node.op_type in NORMS:
            weight, *rest = NORMS[node.op_type]
            places = [(node, weight)]
            given = {(node, index): self._vector((node, index)) for index in rest}
            offsets = [place for place, vector in given.items() if vector is not None and vector.any()]
        elif node.op_type in ("Mul", "Div"):
            places, offsets = [(node, index) for index in ((0, 1) if node.op_type == "Mul" else (1,))], []
        else:
            return []
        found = []
        for place in places:
            vector = self._vector(place)
            if vector is None or _is_plain(vector):
                continue  # a multiple of ones commutes with any rotation
            scale = np.reciprocal(vector) if node.op_type == "Div" else vector
            found.append(NormWeight(place, scale, list(offsets), self._offset(offsets) if offsets else None))
        return found

    def _offset(self, places: Sequence[Place]) -> npt.NDArray[np.float32]:
        vectors = [vector for vector in map(self._vector, places) if vector is not None]
        return np.asarray(np.sum(vectors, axis=0), np.float32)

    def _vector(self, place: Place) -> npt.NDArray[np.float32] | None:
        """float32 [D] where the input is a constant vector of D numbers."""
        node, index = place
        value = node.inputs[index] if index < len(node.inputs) else None
        if (
            value is None
            or value in self._regions.computed
            or value.dtype is None
            or not value.dtype.is_floating_point()
        ):
            return None
        if value.shape is not None and (not len(value.shape) or value.shape[-1] not in (self._width, None)):
            return None
        try:
            array = constant_array(self._model, value)
        except CalibrationError:
            return None  # follows from the model's inputs: the run judges it
        if not array.shape or array.shape[-1] != self._width or array.size != self._width or self._width == 1:
            return None
        return array.reshape(-1).astype(np.float32)

    def _shifts_of(self, node: ir.Node) -> list[Place]:
        """Constants [..., D] that a node adds to the stream."""
        indices = list(shifts(node))
        if node.op_type in NORMS:
            weight, *rest = NORMS[node.op_type]
            vector = self._vector((node, weight))
            indices += rest if vector is not None and _is_plain(vector) else []
        found = []
        for index in indices:
            value = node.inputs[index] if index < len(node.inputs) else None
            if value is None or value in self._regions.computed:
                continue
            try:
                array = constant_array(self._model, value)
            except CalibrationError:
                continue
            if array.dtype.kind in "fV" and array.shape and array.shape[-1] == self._width and array.any():
                found.append((node, index))
        return found

    def _fold(self) -> None:
        """Give each norm's weight to the linears that read the norm, where they can take it."""
        behind = {norm: self._behind(norm) for norm in self.norms}
        # One stored vector of two norms is given one meaning.
        explicit = {_value(norm.place) for norm, found in behind.items() if found is None}
        for norm, found in behind.items():
            if found is not None and _value(norm.place) not in explicit:
                norm.readers, added = found
                norm.offsets += added
                norm.offset = self._offset(norm.offsets) if norm.offsets else None

    def _behind(self, norm: NormWeight) -> tuple[list[Product], list[Place]] | None:
        """The linears that read the norm, and what is added before they do; None where they cannot take its weight."""
        nodes, values = downstream([norm.place[0].outputs[0]], self._region)
        readers = [product for product in self._region.readers if product.input in values]
        own = {product.node for product in readers}
        if not readers or any(use.node not in own for product in readers for use in product.weight.uses):
            return None
        if any(value in values for value in self.exits):
            return None
        if any(other is not norm and other.place[0] in nodes for other in self.norms):
            return None  # the next norm does not let a factor of each channel through
        for node in nodes:
            if any(v in self._regions.computed and v not in values for v in node.inputs if v is not None):
                return None  # a sum with what the weight does not multiply
        added = [place for node in self._region.nodes if node in nodes for place in self._shifts_of(node)]
        if any(self._vector(place) is None or place[0].op_type not in ("Add", "Sum") for place in added):
            return None
        return readers, added

    def _check_folding(self, run: RegionRun) -> None:
        """What readers read is the norm's weight times what they would read without it, plus the offset."""
        folded = [norm for norm in self.norms if norm.readers]
        before, after = run(), run(self._plain(run, folded))
        expected = dict(before)
        for norm in folded:
            for value in dict.fromkeys(product.input for product in norm.readers):
                after[value] = after[value] * norm.value + (0.0 if norm.offset is None else norm.offset)
        failed = first_difference(after, expected, run.tolerance)
        if failed is not None:
            reader = next(product for product in self._region.readers if product.input is failed)
            raise RefusalError(
                "the norm's weight before {} does not come through as a factor", reader.weight.name
            )

    def _plain(self, run: RegionRun, norms: Sequence[NormWeight]) -> dict[ir.Value, Array]:
        """Constants as they are once the weights of ``norms`` are taken out."""
        changed = {_value(norm.place): np.ones_like(run.given[_value(norm.place)]) for norm in norms}
        offsets = [_value(place) for norm in norms for place in norm.offsets]
        return changed | {value: np.zeros_like(run.given[value]) for value in offsets}

    def _check_extra(self) -> None:
        explicit = [norm for norm in self.norms if not norm.readers]
        turned = {id(p.weight): p.weight.size for p in (*self._writers, *self._readers)}
        share = (len(explicit) + len(self.exits)) * self._width**2 / sum(turned.values())
        if share > MOST_EXTRA:
            outputs = f", {len(self.exits)} of its values are outputs of the model" if self.exits else ""
            raise RefusalError(
                f"{len(explicit)} of its {len(self.norms)} norms cannot give their weight to the linears that read them{outputs}, and "
                f"products of {self._width} x {self._width} for these would be {share:.0%} of the linears (at most {MOST_EXTRA:.0%})"
            )

    def _fails(self, run: RegionRun, rotation: Rotation) -> ir.Value | None:
        """The first value that a reader reads and that is not turned when all that is written is."""
        plain = run.given | self._plain(run, self.norms)
        before = run(plain)
        sources = [product.output for product in self._writers] + [_value(place) for place in self.shifts]
        after = run(plain | {value: rotation.apply(plain[value]) for value in sources})
        inputs = {product.input for product in self._readers} | set(self.exits)
        expected = {v: rotation.apply(array) if v in inputs else array for v, array in before.items()}
        return first_difference(after, expected, run.tolerance)


def _is_plain(vector: npt.NDArray[np.float32]) -> bool:
    return bool((vector == vector[0]).all())


def _value(place: Place) -> ir.Value:
    value = place[0].inputs[place[1]]
    assert value is not None
    return value
