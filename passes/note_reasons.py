"""Write into each product that stays float why it does, for those who look at the model in Netron or with ``inspect``.

*Given* a model whose weights are quantized, and the plan.
*Result* the same, with the plan's reason in the metadata of every product that it leaves alone.
"""

import onnx_ir as ir

from qcompiler.graph.census import take_census
from qcompiler.graph.quantized import REASON_KEY
from qcompiler.recipe.plan import Plan


class NoteReasons(ir.passes.InPlacePass):
    """The pass."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self._plan = plan

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        reasons = {skipped.name: skipped.reason for skipped in self._plan.skipped}
        census = take_census(model)
        products = [(weight.name, use.node) for weight in census.weights for use in weight.uses]
        products += [(alone.name, alone.node) for alone in census.left_alone]
        modified = False
        for name, node in products:
            reason = reasons.get(name)
            if reason is not None and node.metadata_props.get(REASON_KEY) != reason:
                node.metadata_props[REASON_KEY] = reason
                modified = True
        return ir.passes.PassResult(model, modified)
