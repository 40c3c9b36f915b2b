"""Which value of a reference model means the same as which value of another that was made from it, by us or by other tools.

*Given* two normalized models. *Result* pairs of values in the order of the reference's graph.

A value is known by its name. Quantizers keep names, and where they round a value they go on with a rounded one:

QDQ             ``x`` -> QuantizeLinear -> DequantizeLinear: the dequantized one is read, as the model's own nodes read it
QOperator       ``x_quantized`` in place of ``x``: codes, read with the scale and zero point that the node which makes them has
activations     where rounding clamps as a Relu or Clip did, that node is gone, and the rounded value stands for its output
other names     a product that has lost its output's name is known by the name of its weight
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import onnx_ir as ir

from qcompiler.graph.blocks import blocks
from qcompiler.graph.census import take_census
from qcompiler.graph.correction_form import corrected_output
from qcompiler.graph.extract import is_constant, is_tensor
from qcompiler.graph.product_names import product_names
from qcompiler.graph.reads import node_reads
from qcompiler.graph.weights import Weight
from qcompiler.report.quantized_products import StoredWeight, read_products
from qcompiler.report.tapped_model import Tap


@dataclass(frozen=True)
class AlignedValue:
    """One value of both models.

    Attributes:
        name: of the value in the reference.
        node, op: what makes it there.
        reference, other: where each model has it.
        block: of the model that the node is in; empty where it is in none.
        layers: the products that show first in this value: names of their weights, or of the nodes.
    """

    name: str
    node: str
    op: str
    reference: Tap
    other: Tap
    block: str
    layers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Alignment:
    """What two models have in common.

    Attributes:
        values: every pair, in the reference's order.
        lost: products of the reference of which the other model has no value at or shortly behind their output.
        shown: names of the values in which the products of the others show, by the names of their nodes.
    """

    values: list[AlignedValue]
    lost: list[str] = field(default_factory=list)
    shown: dict[str, str] = field(default_factory=dict)

    @property
    def layers(self) -> list[AlignedValue]:
        """The pairs in which products show."""
        return [value for value in self.values if value.layers]


def align(reference: ir.Model, other: ir.Model) -> Alignment:
    """Pair the values of two models; nothing is edited."""
    theirs, ours = _readings(reference), _readings(other)
    products = list(products_of(reference))
    found: dict[str, Tap] = {}
    for name, reading in theirs.items():
        match = ours.get(name)
        if match is not None:
            after = _stands_for(reading, match, theirs, ours)
            found[name if after == reading.value.name else after] = match.tap
    _add_by_weight(products, reference, other, theirs, ours, found)
    layers: dict[str, list[str]] = {}
    lost = []
    shown: dict[str, str] = {}
    for product in products:
        place = _first_behind(product.output, found)
        if place is None:
            lost.append(product.name)
        else:
            layers.setdefault(place, []).append(product.name)
            shown[product.node.name or ""] = place
    places = blocks(reference)
    makers = {product.output.name: product for product in products}
    values = []
    for name, reading in theirs.items():
        if name not in found:
            continue
        node = makers[name].node if name in makers else reading.node
        values.append(
            AlignedValue(
                name,
                node.name or "",
                node.op_type,
                reading.tap,
                found[name],
                places.get(node, ""),
                tuple(layers.get(name, ())),
            )
        )
    return Alignment(values, lost, shown)


def upstream(reference: ir.Model, values: Iterable[str]) -> dict[str, frozenset[str]]:
    """For each of these values the nearest others of them that it is computed from."""
    wanted = set(values)
    behind: dict[str, frozenset[str]] = {}  # of any value: the nearest wanted ones at or before it
    found: dict[str, frozenset[str]] = {}
    for node in reference.graph:
        read = [value.name for value in node_reads(node) if value.name]
        before = frozenset[str]().union(*(behind.get(name, frozenset()) for name in read))
        for output in node.outputs:
            if not output.name:
                continue
            for name in (output.name, *float_names(output.name)):
                if name in wanted:
                    found[name] = before - {name}
                    behind[output.name] = frozenset({name})
                    break
            else:
                behind[output.name] = before
    return found


@dataclass(frozen=True)
class _Reading:
    """How a value can be read; ``rounded``: through its codes."""

    node: ir.Node
    value: ir.Value
    tap: Tap
    rounded: bool


_Readings = dict[str, _Reading]


@dataclass(frozen=True)
class Product:
    """A product with a weight, or of two activations; ``output`` has its bias and corrections.

    Attributes:
        name: of its weight, else of its node.
        stored: how its weight is stored where it is quantized; None of any other.
    """

    name: str
    node: ir.Node
    output: ir.Value
    stored: StoredWeight | None = None


_CODES = ("_quantized", "_QuantizeLinear_Output")
_SAME_CODES = frozenset(
    {"MaxPool", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Identity", "Gather", "Expand"}
)  # fmt: skip
_OUTPUT_SCALE = {"QLinearConv": 6, "QLinearMatMul": 6, "QGemm": 7, "QLinearAdd": 6, "QLinearMul": 6, "QuantizeLinear": 1,
                 "QLinearSigmoid": 3, "QLinearLeakyRelu": 3, "QLinearAveragePool": 3, "QLinearGlobalAveragePool": 3,
                 "QLinearSoftmax": 3, "QLinearConcat": 0, "QLinearReduceMean": 3}  # fmt: skip
"""Which input is the scale of the codes that a node yields; its zero point is the next."""
_CLAMPS = frozenset({"Relu", "Clip"})


def _readings(model: ir.Model) -> dict[str, _Reading]:
    """Every float value of the main graph by its name, in order, with the way to read it."""
    found: dict[str, _Reading] = {}
    for node in model.graph:
        for output in node.outputs:
            if not output.name or is_constant(output) or not is_tensor(output):
                continue
            if node.op_type in ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"):
                if node.op_type == "DequantizeLinear" and (output.is_graph_output() or _is_restored(node)):
                    found.setdefault(output.name, _Reading(node, output, Tap(output.name), True))
                continue
            codes = _tap_of_codes(node, output)
            if codes is not None:
                found.setdefault(float_names(output.name)[0], _Reading(node, output, codes, True))
                continue
            if output.dtype is not None and not output.dtype.is_floating_point():
                continue
            rounded = _rounded(output)
            tap = Tap(output.name) if rounded is None else rounded
            found.setdefault(output.name, _Reading(node, output, tap, rounded is not None))
    return found


def float_names(codes: str) -> tuple[str, ...]:
    """Names that the float value behind a value of codes may have had; its own name if it says nothing."""
    return tuple(codes.removesuffix(suffix) for suffix in _CODES if codes.endswith(suffix)) or (codes,)


def _is_restored(node: ir.Node) -> bool:
    """A DequantizeLinear of codes that nodes make: of an activation that has lost its float form."""
    codes = node.inputs[0]
    producer = None if codes is None else codes.producer()
    return producer is not None and producer.op_type != "QuantizeLinear"


def _rounded(value: ir.Value) -> Tap | None:
    """The dequantized side of a value that nothing but a QuantizeLinear reads."""
    readers = value.consumers()
    if value.is_graph_output() or not readers:
        return None
    rounding = readers[0]
    if any(reader.op_type != "QuantizeLinear" for reader in readers):
        return None
    for reader in rounding.outputs[0].consumers():
        if reader.op_type == "DequantizeLinear" and reader.outputs[0].name:
            return Tap(reader.outputs[0].name)
    return _tap_of_codes(rounding, rounding.outputs[0])


def _tap_of_codes(node: ir.Node, output: ir.Value) -> Tap | None:
    """Codes with the scale of the node that made them, perhaps through nodes that move codes; None for other values."""
    maker: ir.Node | None = node
    while maker is not None and maker.op_type in _SAME_CODES and maker.inputs[0] is not None:
        maker = maker.inputs[0].producer()
    if maker is None or maker.op_type not in _OUTPUT_SCALE or not output.name:
        return None
    place = _OUTPUT_SCALE[maker.op_type]
    sides = [maker.inputs[at] if at < len(maker.inputs) else None for at in (place, place + 1)]
    scale, zero_point = (None if side is None else side.name for side in sides)
    return None if scale is None else Tap(output.name, scale, zero_point)


def _stands_for(reading: _Reading, match: _Reading, theirs: _Readings, ours: _Readings) -> str:
    """The reference's value that a match means: codes that clamp as its next node does are that node's output, if the model has none."""
    readers = reading.value.consumers()
    if match.rounded and not reading.rounded and len(readers) == 1 and readers[0].op_type in _CLAMPS:
        after = readers[0].outputs[0].name or ""
        if after in theirs and after not in ours:
            return after
    return reading.value.name or ""


def products_of(model: ir.Model) -> Iterator[Product]:
    """Every product of the main graph, in order: those of weights by their names, others by their nodes'."""
    census = take_census(model)
    named = {
        use.node: weight.name if weight.expert is None else weight.expert.stack
        for weight in census.weights
        for use in weight.uses
        if use.in_body is None
    }
    named |= {left.node: left.node.name or "" for left in census.left_alone if left.node not in named}
    stored = {node: weight for weight in read_products(model) for node in weight.nodes if node in named}
    named |= {node: weight.name for node, weight in stored.items()}
    for node in model.graph:
        if node in named and node.outputs:
            name = named[node] or node.outputs[0].name or node.op_type
            yield Product(name, node, _in_floats(node), stored.get(node))


_SUMS = frozenset({"MatMulInteger", "ConvInteger"})


def _in_floats(product: ir.Node) -> ir.Value:
    """Its output; of sums of integers what Cast and Mul make of them."""
    value = corrected_output(product)
    if product.op_type not in _SUMS:
        return value
    for step in ("Cast", "Mul"):
        readers = value.consumers()
        if len(readers) != 1 or readers[0].op_type != step:
            return value
        value = readers[0].outputs[0]
    return value


def _add_by_weight(
    products: list[Product],
    reference: ir.Model,
    other: ir.Model,
    theirs: _Readings,
    ours: _Readings,
    found: dict[str, Tap],
) -> None:
    """Products whose output's name the other model does not have, by the name of their weight."""
    lost = {product.output for product in products if _first_behind(product.output, found, 1) is None}
    if not lost:
        return
    taken = {tap.value for tap in found.values()}
    by_weight: dict[str, list[_Reading]] = {}
    known = {reading.value: reading for reading in ours.values()}
    for name, node, _ in named_weights(other):
        reading = known.get(corrected_output(node))
        if reading is not None and reading.tap.value not in taken:
            by_weight.setdefault(name, []).append(reading)
    for name, node, _ in named_weights(reference):
        output = corrected_output(node)
        readings = by_weight.get(name, ())
        if len(readings) == 1 and output in lost and output.name in theirs:
            found[_stands_for(theirs[output.name], readings[0], theirs, ours)] = readings[0].tap


_MARKS = ("_quantized", "_Q4", "_Q8", ".codes", ".quantized", ".weight", "_weight")


def named_weights(model: ir.Model) -> Iterator[tuple[str, ir.Node, Weight | StoredWeight]]:
    """Names of weights without what quantizers add to them, with the nodes that multiply by them."""
    for weight in take_census(model).weights:
        for use in weight.uses:
            if use.in_body is None:
                yield without_marks(product_names(use.node, weight.source)[0]), use.node, weight
    for stored in read_products(model):
        yield without_marks(stored.name), stored.nodes[0], stored


def without_marks(name: str) -> str:
    """A weight's name without what quantizers append to it."""
    for mark in _MARKS:
        name = name.removesuffix(mark)
    return name


_FURTHEST = 6  # nodes between a product and the value that shows it: a bias, a gate, a residual sum


def _first_behind(output: ir.Value, found: dict[str, Tap], furthest: int = _FURTHEST) -> str | None:
    """The nearest value at or behind a product's output, at most so many nodes, that both models have."""
    level, seen = [output], {output}
    for _ in range(furthest + 1):
        for value in level:
            if value.name in found:
                return value.name
            for name in float_names(value.name or ""):
                if name in found:
                    return name
        behind = [made for value in level for reader in value.consumers() for made in reader.outputs]
        level = [value for value in dict.fromkeys(behind) if value not in seen]
        seen.update(level)
    return None


def read_values(reference: ir.Model, alignment: Alignment) -> set[str]:
    """Names of the aligned values that the reference's products read, or that what they read is shortly computed from."""
    known = {value.name for value in alignment.values}
    found = set[str]()
    for node in reference.graph:
        if node.name not in alignment.shown:
            continue
        level = [value for value in node.inputs if value is not None]
        for _ in range(_FURTHEST):
            names = [
                (value, name) for value in level for name in float_names(value.name or "") if name in known
            ]
            found.update(name for _, name in names)
            met = {value for value, _ in names}
            makers = [value.producer() for value in level if value not in met and not is_constant(value)]
            level = [read for maker in makers if maker is not None for read in node_reads(maker)]
    return found
