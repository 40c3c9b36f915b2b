"""Bring an exported graph into the one form that the other passes read.

*Given* any valid model.
*Result* the same function with: no weight of a product that is also an input (other initializers that a caller may override stay
inputs); calls of model-local functions inlined, but for operators of our own domain; nodes that nothing reads
gone; tensors of Constant nodes, and initializers of control-flow bodies, as initializers of the main graph, one for each distinct tensor;
a name of its own for every node and every value (two branches may use one twice); types and shapes inferred, in bodies too.
"""

from collections import Counter

import onnx_ir as ir
from onnx_ir.passes import common

from qcompiler.graph.census import take_census
from qcompiler.graph.edits import Names, all_graphs, all_nodes
from qcompiler.graph.operator_body import is_ours
from qcompiler.graph.shape_inference import infer_types

FIRST_OVERRIDABLE = 4  # IR version from which on an initializer that is an input is a default, not a constant
SMALLEST_LIFTED = 16  # elements; smaller Constant nodes are shapes and scalars and stay where they are


class Normalize(ir.passes.InPlacePass):
    """The pass."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = _rename_body_initializers(model)
        modified = common.InlinePass(lambda function: not is_ours(function))(model).modified or modified
        modified = _close_weights(model) or modified
        for step in (
            common.LiftConstantsToInitializersPass(size_limit=SMALLEST_LIFTED),
            common.LiftSubgraphInitializersToMainGraphPass(),
            common.RemoveUnusedNodesPass(),  # ONNX Runtime drops them too, and a product that it drops is no promise broken
        ):
            modified = step(model).modified or modified
        modified = _share_identical_tensors(model) or modified
        modified = _name_nodes(model) or modified
        modified = _name_values(model) or modified
        if _lacks_types(model):
            modified = infer_types(model) or modified
        return ir.passes.PassResult(model, modified)


def _rename_body_initializers(model: ir.Model) -> bool:
    """Initializers of control-flow bodies get names that no other graph uses: in the main graph they are seen by all."""
    names = Names(model)
    taken: Counter[str] = Counter()
    for graph in all_graphs(model):
        taken.update({value.name for value in graph.inputs if value.name} | set(graph.initializers))
        taken.update(value.name for node in graph for value in node.outputs if value.name)
    modified = False
    for graph in all_graphs(model):
        for name, value in tuple(graph.initializers.items()) if graph is not model.graph else ():
            if taken[name] > 1 and not value.is_graph_input() and not value.is_graph_output():
                value.name = names.value(name)
                modified = True
    return modified


def _close_weights(model: ir.Model) -> bool:
    """What a product reads as its weight is no longer an input: a quantized weight cannot be overridden.

    Before IR version 4 every initializer had to be an input and none could be overridden, so none stays one.
    """
    inputs = list(model.graph.inputs)
    overridable = {value for value in inputs if value.is_initializer()}
    if not overridable:
        return False
    kept = [value for value in inputs if value not in overridable]
    model.graph.inputs[:] = kept
    if model.ir_version >= FIRST_OVERRIDABLE:
        weights = {weight.source for weight in take_census(model).weights}
        kept = [value for value in inputs if value not in overridable & weights]
        model.graph.inputs[:] = kept
    else:
        model.ir_version = FIRST_OVERRIDABLE  # the first that allows an initializer to be no input
    return len(kept) < len(inputs)


def _share_identical_tensors(model: ir.Model) -> bool:
    """One initializer for one tensor object: a function inlined twelve times brings its weight twelve times."""
    first: dict[int, ir.Value] = {}
    modified = False
    for name, value in list(model.graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or value.is_graph_output() or value.is_graph_input():
            continue
        original = first.setdefault(id(tensor), value)
        if original is not value:
            for node, index in tuple(value.uses()):
                node.replace_input_with(index, original)
            del model.graph.initializers[name]
            modified = True
    return modified


def _name_nodes(model: ir.Model) -> bool:
    """A node without a name, or with another's, gets a free one: reports and the check of what runs go by names."""
    names = Names(model)
    seen: set[str] = set()
    modified = False
    for node in all_nodes(model):
        if not node.name or node.name in seen:
            node.name = names.node(
                node.name or (node.outputs[0].name if node.outputs else None) or node.op_type
            )
            modified = True
        seen.add(node.name)
    return modified


def _name_values(model: ir.Model) -> bool:
    """A value of a body with the name of another, as two branches may have one, gets a free name: ranges and settings go by names."""
    names = Names(model)
    graph = model.graph
    seen = {value.name for value in graph.inputs} | set(graph.initializers)
    modified = False
    for each in (graph, *graph.subgraphs()):
        for value in (
            *(each.inputs if each is not graph else ()),
            *(out for node in each for out in node.outputs),
        ):
            if value.name and value.name in seen:
                value.name = names.value(value.name)
                modified = True
            seen.add(value.name)
    return modified


def _lacks_types(model: ir.Model) -> bool:
    graphs = (model.graph, *model.graph.subgraphs())
    return any(
        value.dtype is None for graph in graphs for node in graph for value in node.outputs if value.name
    )
