"""Write into each product what became of it, for those who look at the model in Netron or with ``inspect``.

*Given* a model whose weights are quantized, and the plan.
*Result* the same; in the metadata of a product that reads a quantized weight is what the node that yields the weight says of it (scheme,
algorithm, reason, error), in that of a product that stays float the plan's reason.
"""

from collections.abc import Iterator

import onnx_ir as ir

from qcompiler.graph.census import take_census
from qcompiler.graph.edits import all_nodes
from qcompiler.graph.quantized import ALGORITHM_KEY, REASON_KEY, SCHEME_KEY, SQNR_KEY
from qcompiler.recipe.plan import Plan

_STEPS = frozenset({"Reshape", "Transpose"})
_PRODUCTS = frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose", "Gather"})
_TOLD = (SCHEME_KEY, ALGORITHM_KEY, REASON_KEY, SQNR_KEY)


class NoteProducts(ir.passes.InPlacePass):
    """The pass."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self._plan = plan

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in all_nodes(model):
            notes = {key: node.metadata_props[key] for key in _TOLD if key in node.metadata_props}
            if SCHEME_KEY in notes and node.op_type not in _PRODUCTS:
                for product in _readers(node):
                    modified = _note(product, notes) or modified
        reasons = {skipped.name: skipped.reason for skipped in self._plan.skipped}
        census = take_census(model)
        products = [(weight.name, use.node) for weight in census.weights for use in weight.uses]
        products += [(alone.name, alone.node) for alone in census.left_alone]
        for name, node in products:
            if name in reasons and SCHEME_KEY not in node.metadata_props:
                modified = _note(node, {REASON_KEY: reasons[name]}) or modified
        return ir.passes.PassResult(model, modified)


def _readers(node: ir.Node) -> Iterator[ir.Node]:
    """Products that read what a node yields, as it is or turned."""
    for user in node.outputs[0].consumers():
        if user.op_type in _PRODUCTS:
            yield user
        elif user.op_type in _STEPS:
            yield from _readers(user)


def _note(node: ir.Node, notes: dict[str, str]) -> bool:
    """Whether that is new."""
    fresh = {key: text for key, text in notes.items() if node.metadata_props.get(key) != text}
    node.metadata_props.update(fresh)
    return bool(fresh)
