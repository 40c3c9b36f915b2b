"""What passes share that give ONNX Runtime's nodes to operators of ours: each node that has no obstacle, and reasons for the others."""

from collections.abc import Callable

import onnx_ir as ir
from onnx_ir.traversal import RecursiveGraphIterator

from qcompiler.graph.kernel_node import DOMAIN, LoweredNode
from qcompiler.passes.reasons import Reasons

Obstacle = Callable[[ir.Node], str | None]
"""Why our kernels cannot run a node, or None."""


def take_over(
    model: ir.Model, op_type: str, obstacle: Obstacle, replace: Callable[[ir.Node], LoweredNode]
) -> tuple[list[LoweredNode], list[str]]:
    """What became ours of ONNX Runtime's nodes of a type, and a line for each reason for which others stay.

    Not in functions: there such a node is the body of an operator of ours.
    """
    lowered: list[LoweredNode] = []
    left = Reasons()
    for node in list(RecursiveGraphIterator(model.graph)):
        if node.op_type != op_type or node.domain != DOMAIN:
            continue
        reason = obstacle(node)
        if reason is None:
            lowered.append(replace(node))
        else:
            left.add(node, reason)
    return lowered, left.lines("ONNX Runtime's own kernel runs it")
