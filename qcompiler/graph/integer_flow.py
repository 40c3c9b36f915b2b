"""Which values of a graph are to be integers, so that products and what lies between them run in integers from end to end.

Convolutions take integers and make integers. Linears take integers; what they make stays float, since a language model's residual stream is
too wide for 8 bits. Operators between that have integer kernels (``CARRIERS``) pass integers on where all that they read are such.
A Relu, or a Clip from 0 on, behind a node that makes integers is done by the rounding: its range begins at 0 (see ``range_does``).

Bodies of branches and loops are gone through where their nodes stand, and may read integers of the graphs around them; what a body is given
and what it gives are floats, unless a node in it makes them integers.
"""

from collections.abc import Collection
from dataclasses import dataclass, field

import onnx_ir as ir
from onnx_ir.traversal import RecursiveGraphIterator

from qcompiler.graph.weights import constant_values

SAME_SCALE = frozenset(
    {
        "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "Identity", "Max", "MaxPool", "Min", "ReduceMax",
        "Reshape", "Resize", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
    }
)  # fmt: skip
"""Carriers that only move or choose numbers: what they read and make has one scale. Max, Min and SpaceToDepth have no integer kernel in
ONNX Runtime 1.31.1, but in other runtimes."""
CARRIERS = SAME_SCALE | {
    "Add",
    "AveragePool",
    "GlobalAveragePool",
    "LeakyRelu",
    "MatMul",
    "Mul",
    "Sigmoid",
    "Softmax",
    "Where",
}


@dataclass
class IntegerFlow:
    """What becomes integers.

    Attributes:
        values: to be rounded where they are made; every reader then reads the rounded one.
        entries: float values with the nodes that want them rounded; their other readers keep the floats.
        absorbed: Relu and Clip nodes that the rounding of their outputs stands in for.
        together: sets of values that need one scale.
        makers: the node that makes each of ``values``, before a Relu.
    """

    values: list[ir.Value] = field(default_factory=list)
    entries: dict[ir.Value, list[ir.Node]] = field(default_factory=dict)
    absorbed: dict[ir.Value, ir.Node] = field(default_factory=dict)
    together: list[set[ir.Value]] = field(default_factory=list)
    makers: dict[ir.Value, ir.Node] = field(default_factory=dict)


def find_integer_flow(
    graph: ir.Graph,
    convolutions: Collection[ir.Node],
    linears: Collection[ir.Node],
    floats: Collection[ir.Value] = (),
) -> IntegerFlow:
    """The flow around products of integer weights, in a graph and its bodies; ``floats`` are to stay such, and no product reads one."""
    integers: dict[ir.Value, ir.Node] = {}  # with the node that makes it, before a Relu
    absorbed: dict[ir.Value, ir.Node] = {}
    nodes = list(RecursiveGraphIterator(graph))
    for node in nodes:
        if node in convolutions or _carries(node, integers):
            relu = _relu_behind(node)
            made = [value for value in node.outputs if value.name] if relu is None else [relu.outputs[0]]
            if any(value in floats for value in made):
                continue
            if relu is not None:
                absorbed[made[0]] = relu
            integers |= dict.fromkeys(made, node)
    _drop_what_nobody_wants(integers, convolutions, linears)
    flow = IntegerFlow(list(integers), absorbed={v: node for v, node in absorbed.items() if v in integers})
    flow.makers = integers
    for node in nodes:
        x = node.inputs[0] if node in convolutions or node in linears else None
        if x is not None and x not in integers:
            flow.entries.setdefault(x, []).append(node)
    flow.together = _together(integers)
    return flow


def _data(node: ir.Node) -> list[ir.Value]:
    """The inputs of a carrier that are data, not shapes, axes or bounds."""
    several = node.op_type in ("Add", "Mul", "MatMul", "Concat", "Max", "Min")
    inputs = node.inputs[1:3] if node.op_type == "Where" else node.inputs if several else node.inputs[:1]
    return [value for value in inputs if value is not None]


def _carries(node: ir.Node, integers: dict[ir.Value, ir.Node]) -> bool:
    return (
        node.op_type in CARRIERS
        and node.domain == ""
        and (node.op_type == "Split" or len([value for value in node.outputs if value.name]) == 1)
        and (node.op_type != "Resize" or _repeats(node))
        and all(value in integers for value in _data(node))
    )


def _repeats(resize: ir.Node) -> bool:
    """Whether a Resize only repeats numbers."""
    crops = resize.attributes.get_string("coordinate_transformation_mode", "") == "tf_crop_and_resize"
    return resize.attributes.get_string("mode", "nearest") == "nearest" and not crops


def _relu_behind(node: ir.Node) -> ir.Node | None:
    """The Relu, or Clip from 0 on, that alone reads what the node makes."""
    made = node.outputs[0]
    uses = made.uses()
    if len(uses) != 1 or made.is_graph_output() or node.op_type == "Split":
        return None
    ((reader, place),) = uses
    if reader.domain != "" or place != 0 or reader.graph is not node.graph:
        return None
    if reader.op_type == "Relu":
        return reader
    return reader if reader.op_type == "Clip" and _clips_from_zero(reader) else None


def _clips_from_zero(clip: ir.Node) -> bool:
    """Whether its lower bound is 0, and the upper one, if there is one, a constant above."""
    lower, upper = _bound(clip, 1), _bound(clip, 2)
    open_above = len(clip.inputs) < 3 or clip.inputs[2] is None
    return lower == 0 and (open_above or (upper is not None and upper > 0))


def _bound(clip: ir.Node, index: int) -> float | None:
    found = constant_values(clip.inputs[index] if len(clip.inputs) > index else None)
    return None if found is None or found.size != 1 else float(found.reshape(-1)[0])


def range_does(relu: ir.Node, lowest: float, highest: float) -> bool:
    """Whether rounding with this range clips what a Relu, or a Clip that is absorbed, does."""
    upper = _bound(relu, 2) if relu.op_type == "Clip" else None
    return lowest >= 0 and (upper is None or highest <= upper)


def _drop_what_nobody_wants(
    integers: dict[ir.Value, ir.Node], convolutions: Collection[ir.Node], linears: Collection[ir.Node]
) -> None:
    """Carriers at the end of a flow, whose integers no integer kernel reads, stay float; from the last on."""
    makers = set(integers.values())
    for value, node in reversed(list(integers.items())):
        if node in convolutions or value not in integers:
            continue
        made = [each for each in (value, *node.outputs) if integers.get(each) is node]
        if not any(reader in makers or reader in linears for each in made for reader in each.consumers()):
            for each in set(made):
                del integers[each]
            makers.discard(node)


def feeds_alone(value: ir.Value, node: ir.Node) -> bool:
    """Whether nothing but ``node`` reads the value."""
    return not value.is_graph_output() and all(reader is node for reader in value.consumers())


def clipped_behind(flow: IntegerFlow) -> dict[ir.Value, ir.Value]:
    """Values that are only moved to where a Relu or Clip behind clips them, with the value that is left: they may be clipped at once.

    relu(max(a, b)) = max(relu(a), relu(b)), and so with all that moves or chooses.
    """
    found: dict[ir.Value, ir.Value] = {}
    for value, node in reversed(flow.makers.items()):
        clipped = value if value in flow.absorbed else found.get(value)
        if clipped is None or node.op_type not in SAME_SCALE:
            continue
        for source in _data(node):
            if source in flow.makers and feeds_alone(source, node):
                found[source] = clipped
    return found


def islands(graph: ir.Graph, flow: IntegerFlow, products: Collection[ir.Node]) -> list[ir.Node]:
    """Nodes that compute floats of integers, which are rounded again behind them."""
    makers = {*flow.makers.values(), *flow.absorbed.values(), *products}
    after: set[ir.Value] = set(flow.values)
    behind = []
    for node in RecursiveGraphIterator(graph):
        if node not in makers and any(value in after for value in node.inputs if value is not None):
            after.update(node.outputs)
            behind.append(node)
    before: set[ir.Value] = set(flow.entries)
    between = []
    for node in reversed(behind):
        if any(value in before for value in node.outputs):
            before.update(value for value in node.inputs if value is not None)
            between.append(node)
    return between[::-1]


def _together(integers: dict[ir.Value, ir.Node]) -> list[set[ir.Value]]:
    """Values that SAME_SCALE nodes connect."""
    group: dict[ir.Value, set[ir.Value]] = {}
    for value, node in integers.items():
        if node.op_type not in SAME_SCALE:
            continue
        joined = set[ir.Value]()
        for each in (value, *_data(node)):
            joined |= group.get(each, {each})
        for each in joined:
            group[each] = joined
    return list({id(found): found for found in group.values()}.values())
