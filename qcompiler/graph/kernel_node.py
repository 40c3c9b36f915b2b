"""A product replaced by one node of ONNX Runtime's own domain that reads packed codes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from qcompiler.graph.edits import Names, replace_value, set_info
from qcompiler.graph.quantized import KEYS

DOMAIN = "com.microsoft"
BLOCK_SIZES = (16, 32, 64, 128, 256)
"""Weights that share a scale, in MatMulNBits, MatMulBnb4 and GatherBlockQuantized."""


@dataclass(frozen=True)
class LoweredNode:
    """A node that must really run in the optimized model; ``packed`` is the name of its input of packed codes."""

    name: str
    op_type: str
    packed: str
    domain: str = DOMAIN

    @property
    def operator(self) -> str:
        """ONNX Runtime's own by their name, others with their domain."""
        return self.op_type if self.domain in (DOMAIN, "") else f"{self.domain}::{self.op_type}"


def swap_kernel(
    old: ir.Node,
    op_type: str,
    inputs: Sequence[ir.Value | None],
    attributes: Mapping[str, int],
    weight: ir.Node,
    names: Names,
) -> ir.Node:
    """The node that now does the work of ``old``: its name, its notes, the name and readers of its output.

    Args:
        weight: the last node of the weight's middle form; the notes of ours that it carries go along.
    """
    result = old.outputs[0]
    output = ir.Value(name=names.value(f"{result.name}.quantized"))
    set_info(output, result.dtype or weight.outputs[0].dtype or ir.DataType.FLOAT, result.shape)
    node = ir.node(
        op_type, inputs, attributes=dict(attributes), domain=DOMAIN, outputs=[output], name=old.name
    )
    node.metadata_props.update(old.metadata_props)
    node.metadata_props.update({k: v for k, v in weight.metadata_props.items() if k.startswith(KEYS)})
    graph = old.graph
    assert graph is not None
    graph.insert_before(old, node)
    replace_value(result, output)
    graph.remove(old, safe=True)
    if not output.is_graph_output():
        result.name, output.name = output.name, result.name  # the value keeps its name
    return node
