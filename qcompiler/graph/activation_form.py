"""Activation functions as graphs have them: one node, or the formula in plain nodes, in whatever order an exporter wrote it.

What nodes compute of a value v is worked out as a sum of terms  c v^i f(p(v)),  f one of erf, tanh, sigmoid, relu, or left out, p a
polynomial. Two graphs of one function have the same terms: v * 0.5 * (1 + erf(v / sqrt 2)) in all its orders is
0.5 v + 0.5 v erf(0.7071 v), cubes by Pow or by Mul are v^3.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from qcompiler.graph.activation import ALPHA, CUBIC, ROOT_HALF, SLOPE, Activation
from qcompiler.graph.kernel_node import DOMAIN as STOCK_DOMAIN
from qcompiler.graph.node_chain import constant_of

_Polynomial = frozenset[tuple[int, float]]
"""(power of v, factor)."""
_Term = tuple[int, str, _Polynomial]
"""(power of v, function, or "" for none, what it is of)."""
_Terms = dict[_Term, float]

_NOTHING: _Polynomial = frozenset()
_ONE: _Term = (0, "", _NOTHING)
_V: _Term = (1, "", _NOTHING)
_FUNCTIONS = ("Erf", "Tanh", "Sigmoid", "Relu")
_MOST_NODES = 12  # the longest formula that exporters write has nine
_HIGHEST = 4  # power of v
_TOLERANCE = 1e-6  # of a factor: what is left of one that was written with seven digits, or in float32


@dataclass(frozen=True)
class ActivationForm:
    """An activation that nodes compute.

    Attributes:
        nodes: those between the value and the result, the one that yields it last.
        shared: whether something else reads what is between, or it is an output of the graph.
    """

    activation: Activation
    nodes: tuple[ir.Node, ...]
    shared: bool


def activation_behind(value: ir.Value) -> ActivationForm | None:
    """The activation function that is computed of a value, float32, in the graph that makes it; None where none is known."""
    producer = value.producer()
    graph = None if producer is None else producer.graph
    known: dict[ir.Value, _Terms] = {value: {_V: 1.0}}
    nodes: list[ir.Node] = []
    while len(nodes) < _MOST_NODES:
        found = next(_next_nodes(known, nodes, graph), None)
        if found is None:
            return None
        node, result = found
        nodes.append(node)
        activation = result if isinstance(result, Activation) else _recognize(result)
        if activation is not None:
            return _form(activation, value, nodes)
        assert not isinstance(result, Activation)
        known[node.outputs[0]] = result
    return None


def _next_nodes(
    known: dict[ir.Value, _Terms], nodes: list[ir.Node], graph: ir.Graph | ir.Function | None
) -> Iterator[tuple[ir.Node, _Terms | Activation]]:
    """Nodes that read what is known and nothing else but numbers, with what they compute."""
    for value in known:
        for reader in value.consumers():
            if reader.graph is graph and reader not in nodes and len(reader.outputs) == 1:
                result = _of_one_node(reader, known) or _terms_of(reader, known)
                if result:
                    yield reader, result


def _of_one_node(node: ir.Node, known: dict[ir.Value, _Terms]) -> Activation | None:
    """The function of a node that computes one of v by itself."""
    v = node.inputs[0]
    if v is None or known.get(v) != {_V: 1.0} or any(value is not None for value in node.inputs[1:]):
        return None  # FastGelu may have a bias
    if node.domain == "" and node.op_type == "Gelu":
        approximate = node.attributes.get_string("approximate", "none")
        return Activation("Gelu" if approximate == "none" else "FastGelu")
    if node.domain != STOCK_DOMAIN:
        return None
    if node.op_type == "QuickGelu":
        return _quick(node.attributes.get_float(ALPHA, 1.702))
    return {"Gelu": Activation("Gelu"), "FastGelu": Activation("FastGelu")}.get(node.op_type)


def _quick(alpha: float) -> Activation | None:
    return Activation("QuickGelu", alpha) if math.isfinite(alpha) else None


def _terms_of(node: ir.Node, known: dict[ir.Value, _Terms]) -> _Terms | None:
    """What a plain node computes, or None for one that this file does not know."""
    if node.domain != "":
        return None
    inputs = [_input(node, index, known) for index in range(len(node.inputs))]
    if any(each is None for each in inputs) or not inputs:
        return None
    terms = [each for each in inputs if each is not None]
    if node.op_type in _FUNCTIONS:
        return _function(node.op_type, terms[0])
    if node.op_type == "Neg":
        return _scaled(terms[0], -1.0)
    if len(terms) != 2:
        return None
    one, other = terms
    number = other.get(_ONE, 0.0) if other.keys() <= {_ONE} else None
    if node.op_type == "Add":
        return _sum(one, other)
    if node.op_type == "Sub":
        return _sum(one, _scaled(other, -1.0))
    if node.op_type == "Mul":
        return _product(one, other)
    if node.op_type == "Div" and number:
        return _scaled(one, 1 / number)
    if node.op_type == "Pow" and number in (2.0, 3.0):
        square = _product(one, one)
        return square if number == 2.0 or square is None else _product(square, one)
    return None


def _input(node: ir.Node, index: int, known: dict[ir.Value, _Terms]) -> _Terms | None:
    value = node.inputs[index]
    if value is not None and value in known:
        return known[value]
    tensor = constant_of(node, index)
    # One number, which leaves the shape as it is.
    if tensor is None or tensor.size != 1 or len(tensor.shape) > 1:
        return None
    number = float(np.asarray(tensor.numpy()).reshape(()))
    return {_ONE: number} if math.isfinite(number) else None


def _function(name: str, terms: _Terms) -> _Terms | None:
    if any(function for _, function, _ in terms):
        return None
    inner = frozenset((power, factor) for (power, _, _), factor in terms.items())
    return {(0, name, inner): 1.0}


def _scaled(terms: _Terms, factor: float) -> _Terms:
    return {term: factor * each for term, each in terms.items()}


def _sum(one: _Terms, other: _Terms) -> _Terms:
    return {term: one.get(term, 0.0) + other.get(term, 0.0) for term in one.keys() | other.keys()}


def _product(one: _Terms, other: _Terms) -> _Terms | None:
    """None where functions multiply one another, or powers become high."""
    result: _Terms = {}
    for (power, function, inner), factor in one.items():
        for (more, second, of_second), by in other.items():
            if (function and second) or power + more > _HIGHEST:
                return None
            term = (power + more, function or second, inner or of_second)
            result[term] = result.get(term, 0.0) + factor * by
    return result


def _recognize(terms: _Terms) -> Activation | None:
    terms = {term: factor for term, factor in terms.items() if factor}
    functions = [term for term in terms if term[1]]
    if len(functions) != 1:
        return None
    power, function, items = functions[0]
    factor, inner = terms[functions[0]], {power: each for power, each in items if each}
    rest = {term: each for term, each in terms.items() if not term[1]}
    if function == "Relu":
        plain = power == 0 and not rest and factor == 1
        return Activation("Relu") if plain and inner == {1: 1.0} else None
    if power != 1:
        return None
    if function == "Sigmoid" and not rest and _is(factor, 1):
        if inner.keys() == {1}:
            return _quick(inner[1])
        # (1 + tanh(u)) / 2 = sigmoid(2 u)
        return Activation("FastGelu") if _is_polynomial(inner, {1: 2 * SLOPE, 3: 2 * SLOPE * CUBIC}) else None
    if rest.keys() != {_V} or not _is(rest[_V], 0.5) or not _is(factor, 0.5):
        return None
    if function == "Erf" and _is_polynomial(inner, {1: ROOT_HALF}):
        return Activation("Gelu")
    if function == "Tanh" and _is_polynomial(inner, {1: SLOPE, 3: SLOPE * CUBIC}):
        return Activation("FastGelu")
    return None


def _is_polynomial(found: dict[int, float], expected: dict[int, float]) -> bool:
    return found.keys() == expected.keys() and all(
        _is(found[power], factor) for power, factor in expected.items()
    )


def _is(found: float, expected: float) -> bool:
    return math.isclose(found, expected, rel_tol=_TOLERANCE)


def _form(activation: Activation, value: ir.Value, nodes: list[ir.Node]) -> ActivationForm:
    """Without nodes that led elsewhere."""
    last = nodes[-1]
    needed = {last}
    for node in reversed(nodes):
        if node in needed:
            needed |= {source for source in node.predecessors() if source in nodes}
    between = [value, *(node.outputs[0] for node in nodes if node in needed and node is not last)]
    shared = any(
        each.is_graph_output() or any(reader not in needed for reader in each.consumers()) for each in between
    )
    return ActivationForm(activation, tuple(node for node in nodes if node in needed), shared)
