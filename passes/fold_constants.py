"""Compute what depends on constants alone, once, where it is small.

*Given* any graph; exporters write biases and the statistics of norms as Expand, Cast and Shape of constants.
*Result* initializers in place of what these nodes make, up to LARGEST_BYTES each; nodes that nothing reads are gone. A CastLike of a
constant is one of these, whatever it takes its type from. What is stored in codes stays: folded, it would be as large as it was.
"""

import math

import onnx_ir as ir

from qcompiler.graph.edits import Names, add_initializer, drop_unused, replace_value
from qcompiler.graph.extract import Piece, is_constant

LARGEST_BYTES = 1 << 20
_KEPT = frozenset(
    {
        "DequantizeLinear", "QuantizeLinear", "DynamicQuantizeLinear", "If", "Loop", "Scan", "RandomNormal", "RandomNormalLike",
        "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial",
    }
)  # fmt: skip


class FoldConstants(ir.passes.InPlacePass):
    """The pass."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        cast = _name_types(model.graph)
        ends = _ends(model.graph)
        if not ends:
            return ir.passes.PassResult(model, modified=cast)
        names, replaced = Names(model), False
        for value, array in Piece(model, list(model.graph), [], ends).run({}).items():
            if array.nbytes > LARGEST_BYTES:
                continue
            replaced = True
            name = names.value(f"{value.name}.folded")
            constant = add_initializer(model.graph, ir.Tensor(array, name=name), name)
            replace_value(value, constant)
            drop_unused(value)
        return ir.passes.PassResult(model, modified=cast or replaced)


def _name_types(graph: ir.Graph) -> bool:
    """CastLike of a constant says by Cast what the type is."""
    modified = False
    for node in list(graph):
        if node.op_type != "CastLike" or node.domain != "" or len(node.inputs) != 2:
            continue
        source, like = node.inputs
        if source is None or like is None or like.dtype is None or not is_constant(source):
            continue
        cast = ir.node("Cast", [source], attributes={"to": like.dtype.value}, name=node.name)
        cast.outputs[0].type, cast.outputs[0].shape = ir.TensorType(like.dtype), node.outputs[0].shape
        ir.convenience.replace_nodes_and_values(graph, node, [node], [cast], node.outputs, cast.outputs)
        modified = True
    return modified


def _ends(graph: ir.Graph) -> list[ir.Value]:
    """Where constants end: what nodes make of constants alone and others read."""
    made: dict[ir.Value, ir.Node] = {}
    for node in graph:
        plain = node.domain == "" and node.op_type not in _KEPT
        if plain and all(_is_known(value, made) for value in node.inputs):
            made.update((output, node) for output in node.outputs)
    nodes = set(made.values())
    return [
        value
        for value, node in made.items()
        if node.op_type != "Constant"
        and not value.is_graph_output()
        and any(reader not in nodes for reader in value.consumers())
        and _is_small(value)
    ]


def _is_known(value: ir.Value | None, made: dict[ir.Value, ir.Node]) -> bool:
    return value is None or value in made or (value.is_initializer() and not value.is_graph_input())


def _is_small(value: ir.Value) -> bool:
    """By its shape; a vector whose length no inference finds is a bias or a shape."""
    if value.shape is None or value.dtype is None:
        return False
    if not value.shape.is_static():
        return len(value.shape) == 1
    size = math.prod(value.shape.numpy()) * value.dtype.itemsize
    return bool(size <= LARGEST_BYTES)
