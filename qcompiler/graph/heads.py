"""Find linears whose output can be turned block by block, and the linears that then read it turned (QuaRot's R2: attention's values).

Attention mixes tokens, not channels: rotate each head's values by R and each head of what the output projection reads comes out rotated
by R, through reshapes, the product with the probabilities, and the repeating of grouped heads. Which linear writes the values, and how wide
a head is, is asked of the graph: the region between is run with one linear's output turned in blocks of d channels, for each d.
"""

from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from qcompiler.errors import CalibrationError
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
from qcompiler.graph.stream import SHIFTS, Place, in_a_stack
from qcompiler.graph.weights import Role, Weight, is_read_by_its_uses_alone
from qcompiler.quant.rotation import Rotation, make_rotation

Array = npt.NDArray[Any]
MIXES_TOKENS = frozenset({"MatMul", "Einsum", "Attention", "MultiHeadAttention", "GroupQueryAttention"})
"""At least one of these, of two activations, lies in attention; between the linears of an MLP or an adapter there is none."""


@dataclass(eq=False)
class Heads:
    """A linear that writes heads, and what reads them.

    Attributes:
        rotation: of one head; the same for all.
        writer, readers: N of the one, K of the others are whole numbers of heads.
        shifts: constants [N] that are added before the heads are told apart (a bias).
    """

    rotation: Rotation
    writer: Product
    readers: list[Product]
    shifts: list[Place]


def find_heads(
    model: ir.Model,
    regions: Regions,
    region: Region,
    feed: dict[str, Array],
    types: Types,
    seed: int,
    likely: int = 0,
) -> Heads | LeftAlone | None:
    """The linear of the region whose heads can be turned, why there is none, or None where nothing mixes tokens.

    Args:
        feed, types: see ``RegionRun``.
        seed: of R.
        likely: channels of a head, tried first.
    """
    mixing = [
        node for node in region.nodes if node.op_type in MIXES_TOKENS and _of_activations(node, regions)
    ]
    if not mixing or not region.readers:
        return None
    where = f"heads before {region.readers[0].weight.name}"
    left = LeftAlone(where, "no linear's output comes out turned, head by head")
    for writer in list(region.writers.values())[::-1]:  # values are most often projected last
        if writer.use.role is Role.EMBEDDING:
            continue
        nodes, values = downstream([writer.output], region)
        readers = [product for product in region.readers if product.input in values]
        if not readers or not any(node in nodes for node in mixing):
            continue
        try:
            rotation_and_shifts = _turning(model, regions, region, feed, types, seed, likely, writer, readers)
        except RefusalError as refusal:
            return LeftAlone(where, refusal.fact, refusal.about)
        if rotation_and_shifts is None:
            continue
        rotation, shifts = rotation_and_shifts
        outputs = [value for value in region.values if value in values and value.is_graph_output()]
        bounding = [node for node in region.nodes if node in nodes and node.op_type in BOUNDING]
        if outputs:
            left = LeftAlone(where, "{} is an output of the model", outputs[0].name or "")
        elif bounding:
            about = f"{bounding[0].name} ({bounding[0].op_type})"
            left = LeftAlone(where, "{} bounds or compares its numbers", about)
        else:
            bound = ((product.weight, _bound(product.weight)) for product in (writer, *readers))
            refused = next(((weight.name, fact) for weight, fact in bound if fact is not None), None)
            if refused is None:
                return Heads(rotation, writer, readers, shifts)
            left = LeftAlone(where, refused[1], refused[0])
        break
    return left


def _bound(weight: Weight) -> str | None:
    """Why the stored numbers of a weight, "{}", cannot be changed for the heads alone."""
    if weight.expert is not None:
        return "{} " + in_a_stack(weight.expert)
    if len(weight.uses) > 1 or not is_read_by_its_uses_alone(weight):
        return "{} is used more than once"
    return None


def _of_activations(node: ir.Node, regions: Regions) -> bool:
    return sum(value in regions.computed for value in node.inputs if value is not None) > 1


def _turning(
    model: ir.Model,
    regions: Regions,
    region: Region,
    feed: dict[str, Array],
    types: Types,
    seed: int,
    likely: int,
    writer: Product,
    readers: list[Product],
) -> tuple[Rotation, list[Place]] | None:
    """The widest rotation that comes through from the writer to the readers, with the constants on the way that turn too."""
    shifts = _shifts(model, regions, region, writer)
    constants = [node.inputs[index] for node, index in shifts]
    run = RegionRun(model, regions, region, feed, types, [value for value in constants if value is not None])
    before = run()
    n = writer.width
    sizes = [d for d in range(n, 1, -1) if n % d == 0 and all(p.weight.shape[1] % d == 0 for p in readers)]
    inputs = {product.input for product in readers}
    for d in sorted(sizes, key=lambda size: (size != likely, -size)):
        rotation = make_rotation(d, seed)
        turned = {writer.output: rotation.apply(run.given[writer.output])}
        turned |= {v: rotation.apply(run.given[v]) for v in constants if v is not None}
        expected = {v: rotation.apply(array) if v in inputs else array for v, array in before.items()}
        if first_difference(run(turned), expected, run.tolerance) is None:
            return rotation, shifts
    return None


def _shifts(model: ir.Model, regions: Regions, region: Region, writer: Product) -> list[Place]:
    """Constants [N] that are added to what the writer writes before anything else is done with it."""
    found: list[Place] = []
    value = writer.output
    while (
        len(users := list(value.consumers())) == 1 and users[0].op_type == "Add" and users[0] in region.nodes
    ):
        node = users[0]
        index = next((i for i in SHIFTS["Add"] if node.inputs[i] not in regions.computed), None)
        other = None if index is None else node.inputs[index]
        if index is None or other is None:
            break
        try:
            array = constant_array(model, other)
        except CalibrationError:
            break
        if not array.shape or array.shape[-1] != writer.width or array.size != writer.width:
            break
        found.append((node, index))
        value = node.outputs[0]
    return found
