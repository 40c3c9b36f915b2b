"""Take what follows products of our operators into their nodes: an activation, the gate of a decoder's MLP, the residual.

*Given* ai.qcompiler::MatMulNBitsPair whose outputs are only read by Sigmoid, Mul, Mul: up * (gate * sigmoid(gate)), SwiGLU (Shazeer 2020,
"GLU Variants Improve Transformer"); ai.qcompiler::MatMulNBits whose output is only read by an Add of a value of the same known shape, or
by the nodes of an activation function (``graph.activation_form``).
*Result* MatMulNBitsSwiGlu, MatMulNBitsAdd, MatMulNBitsRelu and so on, on the same initializers, in the place of the last node; they carry
the bodies of their operators. A product with a part of its own beside it (offsets, low rank, outliers) keeps its Add, by which that is
found again.
"""

from collections.abc import Sequence

import onnx_ir as ir
from onnx_ir.traversal import RecursiveGraphIterator

from qcompiler.graph.activation import ALPHA, KINDS
from qcompiler.graph.activation_form import activation_behind
from qcompiler.graph.correction_form import corrections_of
from qcompiler.graph.kernel_node import LoweredNode
from qcompiler.graph.offset_product import offset_of
from qcompiler.graph.operator_body import OUR_DOMAIN
from qcompiler.graph.own_matmul_nbits import (
    INPUTS_OF_EACH,
    NAMES_KEY,
    OF_EACH_KEYS,
    OP,
    PRODUCTS,
    THREE,
    columns_attribute,
    operator,
    provide,
    with_activation,
    with_gate,
    with_residual,
)
from qcompiler.passes.reasons import Reasons

_PAIRS = {operator(2, base): with_gate(base) for base in (OP, THREE)}
_ALONE = {base: with_residual(base) for base in (OP, THREE)}
_FUSED = {
    new: old
    for base in (OP, THREE)
    for old, new in (
        (operator(2, base), with_gate(base)),
        (base, with_residual(base)),
        *((base, with_activation(kind, base)) for kind in KINDS),
    )
}
"""Operators that products become, with those that they were."""


class FuseFollowers(ir.passes.InPlacePass):
    """The pass.

    Attributes:
        lowered: the products that run with what followed them from now on.
        left: a line for each reason for which an activation stays behind its product.
    """

    def __init__(self) -> None:
        super().__init__()
        self.lowered: list[LoweredNode] = []
        self.left: list[str] = []

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        before, left = len(self.lowered), Reasons()
        for node in list(RecursiveGraphIterator(model.graph)):
            if node.domain != OUR_DOMAIN:
                continue
            fused = (
                self._fuse_gate(node)
                if node.op_type in _PAIRS
                else node.op_type in _ALONE and (self._fuse_activation(node) or self._fuse_residual(node))
            )
            if not fused and (reason := _activation_left(node)):
                left.add(node, reason)
        self.left += left.lines("it stays behind its product")
        modified = len(self.lowered) > before
        if modified:
            used = {node.op_type for node in RecursiveGraphIterator(model.graph) if node.domain == OUR_DOMAIN}
            for new, old in _FUSED.items():
                if new in used:
                    provide(model, new)
                if old not in used:
                    model.functions.pop((OUR_DOMAIN, old, ""), None)
        return ir.passes.PassResult(model, modified=modified)

    def _fuse_gate(self, pair: ir.Node) -> bool:
        columns = [pair.attributes.get_int(columns_attribute(pair.op_type, product)) for product in range(2)]
        for gate, up in ((0, 1), (1, 0)):
            nodes = _swiglu(pair.outputs[gate], pair.outputs[up])
            if nodes is None or columns[0] != columns[1]:
                continue
            inputs = list(pair.inputs) + [None] * (1 + 2 * INPUTS_OF_EACH - len(pair.inputs))
            parts = [inputs[1 + p * INPUTS_OF_EACH : 1 + (p + 1) * INPUTS_OF_EACH] for p in (gate, up)]
            self._replace(pair, _PAIRS[pair.op_type], [inputs[0], *parts[0], *parts[1]], nodes, (gate, up))
            return True
        return False

    def _fuse_activation(self, product: ir.Node) -> bool:
        form = activation_behind(product.outputs[0])
        if form is None or form.shared:
            return False
        kind = form.activation.kind
        op, more = with_activation(kind, product.op_type), []
        if kind == "QuickGelu":
            more.append(ir.AttrFloat32(ALPHA, form.activation.alpha))
        self._replace(product, op, list(product.inputs), list(form.nodes), more=more)
        return True

    def _fuse_residual(self, product: ir.Node) -> bool:
        value = product.outputs[0]
        add = _only_reader(value, "Add")
        if (
            add is None
            or offset_of(product) is not None
            or next(iter(corrections_of(product)), None) is not None
        ):
            return False
        other = next((source for source in add.inputs if source is not value), None)
        if other is None or not _same_shape(value, other):
            return False
        inputs = list(product.inputs) + [None] * (1 + INPUTS_OF_EACH - len(product.inputs))
        self._replace(product, _ALONE[product.op_type], [*inputs, other], [add])
        return True

    def _replace(
        self,
        product: ir.Node,
        op: str,
        inputs: list[ir.Value | None],
        followers: list[ir.Node],
        order: tuple[int, ...] = (0,),
        more: Sequence[ir.Attr] = (),
    ) -> None:
        """A node of ``op`` for the product and its followers, in the place of the last of these.

        Args:
            order: in which the node reads its products.
            more: attributes that the product has not.
        """
        last = followers[-1]
        assert last.graph is not None
        while inputs[-1] is None:
            inputs.pop()
        attributes = [*product.attributes.values(), *more]
        fused = ir.Node(OUR_DOMAIN, op, inputs, attributes, num_outputs=1, name=product.name)
        fused.metadata_props.update(product.metadata_props)
        names = [product.name or ""]
        for key in OF_EACH_KEYS & fused.metadata_props.keys():
            of_each = fused.metadata_props[key].split("\n")
            ordered = [of_each[place] for place in order]
            fused.metadata_props[key] = "\n".join(ordered)
            names = ordered if key == NAMES_KEY else names
        ir.convenience.replace_nodes_and_values(
            last.graph, last, [product, *followers], [fused], last.outputs, fused.outputs
        )
        for index, name in enumerate(names):
            codes = fused.inputs[1 + index * INPUTS_OF_EACH]
            assert codes is not None
            self.lowered.append(LoweredNode(name, op, codes.name or "", OUR_DOMAIN))


def _activation_left(node: ir.Node) -> str | None:
    """Why an activation that follows one of our products is not part of its node, or None where none follows."""
    if node.op_type not in PRODUCTS or node.op_type in _FUSED:
        return None
    forms = [form for value in node.outputs if (form := activation_behind(value)) is not None]
    if not forms:
        return None
    kind = forms[0].activation.kind
    if len(node.outputs) > 1:
        return f"its {kind} follows one of several products on the same activations, which are one node"
    return f"what its {kind} is made of is read by another node too, or an output"


def _swiglu(gate: ir.Value, up: ir.Value) -> list[ir.Node] | None:
    """Sigmoid, Mul, Mul of up * (gate * sigmoid(gate)), if nothing else reads what is between."""
    readers = [node for node, _ in gate.uses()]
    sigmoid = next((node for node in readers if node.op_type == "Sigmoid" and node.domain == ""), None)
    silu = next((node for node in readers if node.op_type == "Mul" and node.domain == ""), None)
    if sigmoid is None or silu is None or len(readers) != 2 or gate.is_graph_output():
        return None
    if _only_reader(sigmoid.outputs[0], "Mul") is not silu:
        return None
    product = _only_reader(silu.outputs[0], "Mul")
    if product is None or _only_reader(up, "Mul") is not product or silu.graph is not product.graph:
        return None
    return [sigmoid, silu, product]


def _only_reader(value: ir.Value, op_type: str) -> ir.Node | None:
    """The node that alone reads a value, once, if it is of this type and in the graph that makes the value."""
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output():
        return None
    node, producer = uses[0].node, value.producer()
    same = producer is not None and node.graph is producer.graph
    return node if same and node.op_type == op_type and node.domain == "" else None


def _same_shape(one: ir.Value, other: ir.Value) -> bool:
    """Whether both shapes are known to the last dimension, by number or by name, and are the same."""
    if one.shape is None or other.shape is None or len(one.shape) != len(other.shape):
        return False
    return all(
        a == b and (isinstance(a, int) or a.value is not None)
        for a, b in zip(one.shape, other.shape, strict=True)
    )
