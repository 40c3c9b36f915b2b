"""Chains of plain nodes over constants: making them, and finding what a node reads."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.graph.edits import constant


class NodeChain:
    """Nodes that each read the one before, and constants named after the weight. Those belong to no graph yet (``register_constants``)."""

    def __init__(self, name: str) -> None:
        self.nodes: list[ir.Node] = []
        self._name = name

    def add(self, op_type: str, inputs: Sequence[ir.Value], suffix: str, **attributes: Any) -> ir.Value:
        """The output of a new node."""
        output = ir.Value(name=f"{self._name}.{suffix}")
        node = ir.node(
            op_type, inputs, attributes=attributes,
            outputs=[output], name=f"{self._name}.{suffix}",
        )  # fmt: skip
        self.nodes.append(node)
        return output

    def reshape(self, value: ir.Value, shape: Sequence[int], suffix: str) -> ir.Value:
        """``value`` in another shape."""
        return self.add("Reshape", [value, self._integers(shape, f"{suffix}.shape")], suffix)

    def cut(self, value: ir.Value, size: int, suffix: str) -> ir.Value:
        """The first ``size`` numbers of ``value``, [size]."""
        flat = self.reshape(value, (-1,), f"{suffix}.flat")
        ends = [
            self._integers((number,), f"{suffix}.{key}")
            for key, number in (("first", 0), ("size", size), ("axis", 0))
        ]
        return self.add("Slice", [flat, *ends], f"{suffix}.cut")

    def cut_rows(self, value: ir.Value, width: int, suffix: str) -> ir.Value:
        """The first ``width`` columns of ``value`` [., .]."""
        ends = [
            self._integers((number,), f"{suffix}.{key}")
            for key, number in (("first", 0), ("width", width), ("axis", 1))
        ]
        return self.add("Slice", [value, *ends], f"{suffix}.cut")

    def hold(self, tensor: ir.TensorProtocol | npt.NDArray[Any], suffix: str) -> ir.Value:
        """A constant."""
        name = f"{self._name}.{suffix}"
        return constant(ir.Tensor(tensor, name=name) if isinstance(tensor, np.ndarray) else tensor, name)

    def _integers(self, numbers: Sequence[int], suffix: str) -> ir.Value:
        return self.hold(np.array(numbers, np.int64), suffix)


def producer_of(node: ir.Node | None, index: int, op_type: str, domain: str = "") -> ir.Node | None:
    """The node behind an input, if it is of that type."""
    value = node.inputs[index] if node is not None and index < len(node.inputs) else None
    found = None if value is None else value.producer()
    return found if found is not None and found.op_type == op_type and found.domain == domain else None


def uncast(value: ir.Value) -> ir.Value:
    """What Casts before ``value`` read."""
    node = value.producer()
    while node is not None and node.op_type == "Cast" and node.inputs[0] is not None:
        value = node.inputs[0]
        node = value.producer()
    return value


def is_computed(value: ir.Value | None) -> bool:
    """Whether nodes other than Casts make it."""
    return value is not None and ir.convenience.get_const_tensor(uncast(value)) is None


def constant_of(node: ir.Node | None, index: int) -> ir.TensorProtocol | None:
    """The tensor of an input that no feed can change."""
    value = node.inputs[index] if node is not None and index < len(node.inputs) else None
    return None if value is None or value.is_graph_input() else ir.convenience.get_const_tensor(value)


def integers_of(node: ir.Node, index: int) -> npt.NDArray[np.int64] | None:
    """The same, of int64."""
    tensor = constant_of(node, index)
    return None if tensor is None or tensor.dtype != ir.DataType.INT64 else tensor.numpy()


def constants_behind(*values: ir.Value | None) -> dict[ir.Value, ir.TensorProtocol]:
    """The numbers that values are computed from: constants of two dimensions, so no shapes."""
    found: dict[ir.Value, ir.TensorProtocol] = {}
    stack = [value for value in values if value is not None]
    while stack:
        value = stack.pop()
        tensor = ir.convenience.get_const_tensor(value)
        node = value.producer()
        if tensor is not None:
            if len(tensor.shape) > 1:
                found[value] = tensor
        elif node is not None:
            stack += [source for source in node.inputs if source is not None]
    return found
