"""Raise the ONNX opset to the one that the middle form needs.

*Given* a model without model-local functions but those of our own domain.
*Result* the same function at opset 21 or later (25 for 2-bit weights): blockwise DequantizeLinear exists from there on. Operators of
our domain stay nodes, their bodies at the new opset.
"""

import logging

import onnx_ir as ir
from onnx.helper import find_min_ir_version_for, make_opsetid
from onnxscript import version_converter

from qcompiler.errors import InputError
from qcompiler.graph.edits import all_nodes
from qcompiler.graph.operator_body import is_ours
from qcompiler.graph.quiet import quiet
from qcompiler.graph.sparse_matmul import provide


class RaiseOpset(ir.passes.InPlacePass):
    """The pass.

    Args:
        opset: the least that is wanted; a model above it is left alone.
    """

    def __init__(self, opset: int) -> None:
        super().__init__()
        self._opset = opset
        self._ir_version = find_min_ir_version_for([make_opsetid("", opset)])  # 10 for 21, 13 for 25

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        imports = model.graph.opset_imports
        now = imports.get("", imports.get("ai.onnx", self._opset))
        if now >= self._opset:
            return ir.passes.PassResult(model, modified=self._raise_ir(model))
        # onnxscript converts from opset 18 on, ONNX's own converter (the fallback) the older ones; failing, it logs and changes nothing.
        metadata = {
            node.outputs[0].name: dict(node.metadata_props) for node in all_nodes(model) if node.outputs
        }
        ours = [key for key, function in model.functions.items() if is_ours(function)]
        for key in ours:
            del model.functions[key]  # the converter would put its nodes in the place of ours
        with quiet("onnxscript.version_converter", logging.CRITICAL):
            version_converter.convert_version(model, self._opset, fallback=True)
        for node in all_nodes(model):  # ONNX's converter drops the exporter's notes
            if node.outputs:
                node.metadata_props.update(metadata.get(node.outputs[0].name, {}))
        reached = model.graph.opset_imports.get("", 0)
        if reached < self._opset:
            raise InputError(
                f"opset {now}: cannot be raised to {self._opset}; export the model at opset {self._opset}"
            )
        if ours:
            provide(model)
        self._raise_ir(model)
        return ir.passes.PassResult(model, modified=True)

    def _raise_ir(self, model: ir.Model) -> bool:
        if model.ir_version >= self._ir_version:
            return False
        model.ir_version = self._ir_version
        return True
