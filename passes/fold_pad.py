"""Fold a Pad with zeros into the convolutions behind it.

*Given* Pad of constant size with zeros, in height and width and the like alone, which nothing but convolutions read.
*Result* these with its sizes added to their own ``pads``. No integer kernel pads, so that integers would be floats in between.
"""

import onnx_ir as ir
from onnx_ir.traversal import RecursiveGraphIterator

from qcompiler.graph.edits import drop_unused
from qcompiler.graph.weights import constant_values


class FoldPad(ir.passes.InPlacePass):
    """The pass."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in list(RecursiveGraphIterator(model.graph)):
            sizes = _zeros_around(node)
            if sizes is None or not all(_takes(reader, node) for reader in node.outputs[0].consumers()):
                continue
            readers = list(node.outputs[0].consumers())
            if not readers or node.outputs[0].is_graph_output():
                continue
            for reader in readers:
                reader.attributes["pads"] = ir.AttrInt64s("pads", _added(reader, sizes))
                reader.attributes.pop("auto_pad", None)
                reader.replace_input_with(0, node.inputs[0])
            drop_unused(node.outputs[0])
            modified = True
        return ir.passes.PassResult(model, modified=modified)


def _zeros_around(node: ir.Node) -> list[int] | None:
    """The sizes [begins, ends] of a Pad's dimensions behind batch and channels; None for what no convolution does."""
    if (
        node.op_type != "Pad"
        or node.domain != ""
        or node.attributes.get_string("mode", "constant") != "constant"
    ):
        return None
    pads = _constant(node, 1)
    value, axes = _constant(node, 2), len(node.inputs) > 3 and node.inputs[3] is not None
    filled = len(node.inputs) > 2 and node.inputs[2] is not None
    if pads is None or axes or (filled and (value is None or any(number != 0 for number in value))):
        return None
    rank = len(pads) // 2
    begins, ends = [int(size) for size in pads[:rank]], [int(size) for size in pads[rank:]]
    if rank < 3 or any(begins[:2] + ends[:2]) or min(begins + ends) < 0:
        return None
    return begins[2:] + ends[2:]


def _constant(node: ir.Node, index: int) -> list[float] | None:
    found = constant_values(node.inputs[index] if len(node.inputs) > index else None)
    return None if found is None else [float(number) for number in found.reshape(-1)]


def _takes(reader: ir.Node, pad: ir.Node) -> bool:
    """Whether it is a convolution that pads what it is told, of this Pad's result."""
    plain = reader.op_type == "Conv" and reader.domain == "" and reader.graph is pad.graph
    told = reader.attributes.get_string("auto_pad", "NOTSET") in ("NOTSET", "VALID")
    return plain and told and reader.inputs[0] is pad.outputs[0]


def _added(convolution: ir.Node, sizes: list[int]) -> list[int]:
    own = convolution.attributes.get_ints("pads", [0] * len(sizes))
    if convolution.attributes.get_string("auto_pad", "NOTSET") == "VALID":
        own = [0] * len(sizes)
    return [size + more for size, more in zip(own, sizes, strict=True)]
