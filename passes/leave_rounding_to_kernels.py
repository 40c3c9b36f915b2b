"""Take out the rounding of activations where the kernel behind it rounds them itself.

*Given* MatMulNBits, ONNX Runtime's or ours, with accuracy_level 4 on what FakeQuantRows rounded.
*Result* the same nodes on the activations as they were: the kernel rounds them by rows and blocks, to less error than by whole rows.
The body of FakeQuantRows goes with the last of its nodes.
"""

import onnx_ir as ir
from onnx_ir.traversal import RecursiveGraphIterator

from qcompiler.graph.edits import drop_unused
from qcompiler.graph.fake_quant_rows import OP, is_fake_quant_rows
from qcompiler.graph.operator_body import OUR_DOMAIN
from qcompiler.graph.own_matmul_nbits import INT8_ACTIVATIONS, LEVEL


class LeaveRoundingToKernels(ir.passes.InPlacePass):
    """The pass."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in list(RecursiveGraphIterator(model.graph)):
            if node.op_type != "MatMulNBits" or not is_fake_quant_rows(node.inputs[0]):
                continue
            unsaid = INT8_ACTIVATIONS if node.domain == OUR_DOMAIN else 0
            if node.attributes.get_int(LEVEL, unsaid) != INT8_ACTIVATIONS:
                continue
            rounded = node.inputs[0]
            rounding = None if rounded is None else rounded.producer()
            assert rounded is not None and rounding is not None
            node.replace_input_with(0, rounding.inputs[0])
            drop_unused(rounded)
            modified = True
        return ir.passes.PassResult(model, _drop_unused_body(model) or modified)


def _drop_unused_body(model: ir.Model) -> bool:
    body = (OUR_DOMAIN, OP, "")
    ours = {node.op_type for node in RecursiveGraphIterator(model.graph) if node.domain == OUR_DOMAIN}
    if body not in model.functions or OP in ours:
        return False
    del model.functions[body]
    if not ours and not any(function.domain == OUR_DOMAIN for function in model.functions.values()):
        model.graph.opset_imports.pop(OUR_DOMAIN, None)
    return True
