"""Which block of the model a node belongs to, as a readable path: ``model.layers.3``, ``features.5``.

1. Places that the exporter wrote into nodes, paths in the names of nodes, of what they yield and of weights that they alone read.
2. Where none of these tells a block: stretches of products that repeat, numbered (``block.0``).
3. Every other node takes the block of its neighbours: what lies between two nodes of a block is in it, and what lies between blocks
   belongs to the one before as long as it reads what that one made.

``""`` is outside of any block: embeddings, the head, masks and positions that several blocks read.
"""

import math
from collections import Counter
from collections.abc import Sequence

import onnx_ir as ir

from qcompiler.graph.module_path import block_of, exporter_scope, module_of
from qcompiler.graph.neighbours import OUTSIDE, spread
from qcompiler.graph.product_names import uninformative
from qcompiler.graph.reads import bodies_of
from qcompiler.graph.repeats import Repeats, find_repeats

_STEPS = frozenset({"Transpose", "DequantizeLinear", "Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze"})
"""What may lie between a product and the weight that it reads."""


def blocks(model: ir.Model) -> dict[ir.Node, str]:
    """The block of every node of the main graph, of functions and of control-flow bodies (those of unnamed ones: their node's)."""
    found: dict[ir.Node, str] = {}
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        _enter(graph, found, OUTSIDE)
    return found


def _enter(graph: ir.Graph, found: dict[ir.Node, str], around: str) -> None:
    nodes = list(graph)
    _Finder(nodes, found, around).run()
    for node in nodes:
        for body in bodies_of(node):
            _enter(body, found, found[node])


class _Finder:
    """Blocks of one graph, written into ``found``."""

    def __init__(self, nodes: Sequence[ir.Node], found: dict[ir.Node, str], around: str) -> None:
        self._nodes = nodes
        self._found = found
        self._around = around
        self._weights = {node: weights for node in nodes if _is_product(node) and (weights := _weights(node))}

    def run(self) -> None:
        known = self._named() or self._repeated()
        if known:
            self._found.update(spread(self._nodes, known, self._weights))
        else:
            self._found.update(dict.fromkeys(self._nodes, self._around))

    def _named(self) -> dict[ir.Node, str]:
        """Nodes whose names tell; empty where they tell of no block with a product."""
        known = {node: block for node in self._nodes if (block := self._told(node)) is not None}
        # A list of modules is one of blocks when its members multiply: a list of constants or of activations is not.
        multiply = Counter(known[node] for node in self._weights if node in known)
        lists: dict[str, list[str]] = {}
        for block in dict.fromkeys(known.values()):
            lists.setdefault(block.rstrip("0123456789"), []).append(block)
        blocks = {
            block
            for members in lists.values()
            if 2 * sum(multiply[member] > 0 for member in members) >= len(members)
            and (len(members) > 1 or multiply[members[0]] > 1)
            for block in members
            if block
        }
        if not blocks:
            return {}
        return {node: block if block in blocks else OUTSIDE for node, block in known.items()}

    def _told(self, node: ir.Node) -> str | None:
        """The block that a node's names say, OUTSIDE where they say a place without one; None where they say nothing."""
        scope = exporter_scope(node)
        if scope is not None:
            return block_of(scope)
        names = [node.name, *(value.name for value in node.outputs)]
        for name in names:
            if name and (block := block_of(module_of(name))):
                return block
        if node.name and node.name.count("/") > 1:
            return OUTSIDE
        weights = self._weights.get(node) or [v for v in node.inputs if v is not None and _is_constant(v)]
        own = [value.name for value in weights if value.name and len(value.uses()) == 1]
        for name in own:
            if block := block_of(module_of(name)):
                return block
        readable = any("." in name and not uninformative(name) for name in own)
        return OUTSIDE if node in self._weights and readable else None

    def _repeated(self) -> dict[ir.Node, str]:
        """Products in stretches that repeat, numbered; those in none of them are outside."""
        products = list(self._weights)
        place = {node: index for index, node in enumerate(self._nodes)}
        alive = _alive_before(self._nodes, place)
        best: list[Repeats] = []
        for look, enough in ((_exact_look, 0.75), (_loose_look, 0.5)):
            looks = [look(node, self._weights[node][0]) for node in products]
            best = max(best, find_repeats(looks, lambda i: alive[place[products[i]]]), key=_covered)
            if products and _covered(best) >= enough * len(products):
                break
        else:
            return {}
        known = dict.fromkeys(products, OUTSIDE)
        number = 0
        for each in best:
            for start in range(each.start, each.end, each.period):
                known.update(dict.fromkeys(products[start : start + each.period], f"block.{number}"))
                number += 1
        return known


def _covered(repeats: list[Repeats]) -> int:
    return sum(each.period * each.count for each in repeats)


def _is_product(node: ir.Node) -> bool:
    return any(part in node.op_type for part in ("MatMul", "Gemm", "Conv", "Attention", "LSTM", "GRU", "MoE"))


def _is_constant(value: ir.Value) -> bool:
    return _tensor(value) is not None


def _tensor(value: ir.Value) -> ir.TensorProtocol | None:
    """Of an initializer or a Constant node."""
    return ir.convenience.get_const_tensor(value)


def _weights(node: ir.Node) -> list[ir.Value]:
    """Constants of two and more dimensions that a product reads, also in codes."""
    found = []
    for value in node.inputs:
        while value is not None and not _is_constant(value):
            step = value.producer()
            value = step.inputs[0] if step is not None and step.op_type in _STEPS and step.inputs else None
        if value is not None and (tensor := _tensor(value)) is not None and len(tensor.shape) > 1:
            found.append(value)
    return found


def _sizes(node: ir.Node, weight: ir.Value) -> tuple[int, ...]:
    n, k = (node.attributes.get_int(name, 0) for name in ("N", "K"))
    return tuple(sorted((n, k) if n and k else _shape(weight)))


def _shape(weight: ir.Value) -> tuple[int, ...]:
    tensor = _tensor(weight)
    assert tensor is not None  # a weight is a constant
    return tuple(int(d) for d in tensor.shape.numpy())


def _exact_look(node: ir.Node, weight: ir.Value) -> tuple[object, ...]:
    return ("Conv" in node.op_type, *_sizes(node, weight))


def _loose_look(node: ir.Node, weight: ir.Value) -> tuple[object, ...]:
    """Of a network whose channels grow: kernels of one point or of more, of one channel or of all."""
    shape = _shape(weight)
    if "Conv" not in node.op_type or len(shape) < 3:
        return (node.op_type,)
    return ("Conv", math.prod(shape[2:]) > 1, shape[1] == 1)


def _alive_before(nodes: Sequence[ir.Node], place: dict[ir.Node, int]) -> list[int]:
    """How many values made before a node are read by it or later ones."""
    change = [0] * (len(nodes) + 1)
    for node in nodes:
        for value in node.outputs:
            last = max((place.get(user, 0) for user, _ in value.uses()), default=0)
            if last > place[node]:
                change[place[node] + 1] += 1
                change[last + 1 if last + 1 < len(change) else last] -= 1
    alive, total = [], 0
    for index in range(len(nodes)):
        total += change[index]
        alive.append(total)
    return alive
