"""Join products of our operator that read the same activations, so that these are rounded and read once.

*Given* ai.qcompiler::MatMulNBits nodes (or MatMul3Bits) on one x, such as queries, keys and values, or gate and up.
*Result* one MatMulNBitsPair or MatMulNBitsTriple (MatMul3BitsPair, MatMul3BitsTriple) for two or three of them, on the same initializers,
in the place of the first; it carries the body of its operator. Nodes with other bits, blocks, levels or notes of ours stay apart, and so do
those with a part of their own beside them (offsets, low rank, outliers), which is found again by the node that it belongs to.
"""

from collections.abc import Iterator

import onnx_ir as ir
from onnx_ir.traversal import RecursiveGraphIterator

from qcompiler.graph.correction_form import corrections_of
from qcompiler.graph.kernel_node import LoweredNode
from qcompiler.graph.offset_product import offset_of
from qcompiler.graph.operator_body import OUR_DOMAIN
from qcompiler.graph.own_matmul_nbits import (
    INPUTS_OF_EACH,
    INT8_ACTIVATIONS,
    LEVEL,
    MOST,
    NAMES_KEY,
    OF_EACH_KEYS,
    OP,
    THREE,
    columns_attribute,
    operator,
    provide,
)
from qcompiler.graph.quantized import KEYS, SQNR_KEY

_ALONE = (OP, THREE)


class JoinProducts(ir.passes.InPlacePass):
    """The pass.

    Attributes:
        lowered: the products that run as one of several from now on.
    """

    def __init__(self) -> None:
        super().__init__()
        self.lowered: list[LoweredNode] = []

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        before = len(self.lowered)
        for nodes in list(_together(model)):
            for first in range(0, len(nodes), MOST):
                part = nodes[first : first + MOST]
                if len(part) > 1:
                    self.lowered += _join(part)
                    provide(model, operator(len(part), part[0].op_type))
        modified = len(self.lowered) > before
        alone = {node.op_type for node in RecursiveGraphIterator(model.graph) if _is_product(node)}
        for op in _ALONE if modified else ():
            if op not in alone:
                model.functions.pop((OUR_DOMAIN, op, ""), None)
        return ir.passes.PassResult(model, modified=modified)


def _is_product(node: ir.Node) -> bool:
    return node.op_type in _ALONE and node.domain == OUR_DOMAIN


def _together(model: ir.Model) -> Iterator[list[ir.Node]]:
    """Nodes that may become one, in the order of their graph."""
    found: dict[tuple[object, ...], list[ir.Node]] = {}
    for node in RecursiveGraphIterator(model.graph):
        if _is_product(node) and _stands_alone(node):
            notes = frozenset(
                (key, text)
                for key, text in node.metadata_props.items()
                if key.startswith(KEYS) and key not in OF_EACH_KEYS
            )
            nodes = found.setdefault(
                (node.graph, node.inputs[0], node.op_type, notes, *_shared(node).values()), []
            )
            # Each weight once: by it a product is found again in the model that ONNX Runtime runs.
            if all(node.inputs[1] is not other.inputs[1] for other in nodes):
                nodes.append(node)
    yield from found.values()


def _shared(node: ir.Node) -> dict[str, int]:
    """The attributes that joined products have alike."""
    sizes = {name: node.attributes.get_int(name) for name in ("K", "bits", "block_size")}
    return {**sizes, LEVEL: node.attributes.get_int(LEVEL, INT8_ACTIVATIONS)}


def _stands_alone(node: ir.Node) -> bool:
    """Whether all it reads beside x is there from the start, and nothing is found by it."""
    if any(value is not None and value.producer() is not None for value in node.inputs[1:]):
        return False
    return offset_of(node) is None and next(iter(corrections_of(node)), None) is None


def _join(nodes: list[ir.Node]) -> list[LoweredNode]:
    op, graph = operator(len(nodes), nodes[0].op_type), nodes[0].graph
    assert graph is not None
    inputs = [nodes[0].inputs[0]]
    for node in nodes:
        own = list(node.inputs[1:])
        inputs += [*own, *[None] * (INPUTS_OF_EACH - len(own))]
    while inputs[-1] is None:
        inputs.pop()
    attributes = [ir.AttrInt64(name, value) for name, value in _shared(nodes[0]).items()]
    attributes += [
        ir.AttrInt64(columns_attribute(op, index), node.attributes.get_int("N"))
        for index, node in enumerate(nodes)
    ]
    joined = ir.Node(
        OUR_DOMAIN,
        op,
        inputs,
        attributes,
        num_outputs=len(nodes),
        name=" + ".join(node.name or OP for node in nodes),
    )
    joined.metadata_props.update(_common_notes(nodes))
    joined.metadata_props[NAMES_KEY] = "\n".join(node.name or "" for node in nodes)
    if all(SQNR_KEY in node.metadata_props for node in nodes):
        joined.metadata_props[SQNR_KEY] = "\n".join(node.metadata_props[SQNR_KEY] for node in nodes)
    lowered = [_lowered(node, op) for node in nodes]
    outputs = [node.outputs[0] for node in nodes]
    ir.convenience.replace_nodes_and_values(graph, nodes[0], nodes, [joined], outputs, joined.outputs)
    return lowered


def _lowered(node: ir.Node, op: str) -> LoweredNode:
    codes = node.inputs[1]
    assert codes is not None
    return LoweredNode(node.name or "", op, codes.name or "", OUR_DOMAIN)


def _common_notes(nodes: list[ir.Node]) -> dict[str, str]:
    """The notes that all of them have alike."""
    return {
        key: text
        for key, text in nodes[0].metadata_props.items()
        if all(node.metadata_props.get(key) == text for node in nodes)
    }
