"""Nodes that a pass left alone, and why: one line for each reason."""

import onnx_ir as ir


class Reasons:
    """Reasons with the nodes that they hold for, in the order in which they came up."""

    def __init__(self) -> None:
        self._names: dict[str, list[str]] = {}

    def add(self, node: ir.Node, reason: str) -> None:
        self._names.setdefault(reason, []).append(node.name or node.op_type)

    def lines(self, result: str) -> list[str]:
        """``node (and 3 more): reason; result`` for each reason."""
        lines = []
        for reason, names in self._names.items():
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            lines.append(f"{names[0]}{more}: {reason}; {result}")
        return lines
