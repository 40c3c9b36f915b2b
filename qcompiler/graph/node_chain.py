"""Chains of plain nodes over constants: making them, and finding what a node reads."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.graph.edits import constant
from qcompiler.graph.quantized import SCHEME_KEY
from qcompiler.graph.stored_quantized import Layout


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
        return self._first(self.reshape(value, (-1,), f"{suffix}.flat"), size, 0, suffix)

    def cut_rows(self, value: ir.Value, width: int, suffix: str) -> ir.Value:
        """The first ``width`` columns of ``value`` [., .]."""
        return self._first(value, width, 1, suffix)

    def end(
        self, value: ir.Value, shape: tuple[int, int], layout: Layout, dtype: ir.DataType, label: str
    ) -> list[ir.Node]:
        """All nodes, the last of which yields a weight as ``name.dequantized`` of ``dtype`` and carries what it says.

        Args:
            value: float32 [N, K].
            shape: (N, K).
            layout: [K, N] comes out for "kn".
            label: of the scheme, for the notes.
        """
        if dtype != ir.DataType.FLOAT:
            value = self.add("Cast", [value], "rows.cast", to=dtype.value)
        if layout == "kn":
            value, shape = self.add("Transpose", [value], "turned", perm=[1, 0]), shape[::-1]
        value.name, value.type = f"{self._name}.dequantized", ir.TensorType(dtype)
        value.shape = ir.Shape(shape)
        last = self.nodes[-1]
        last.name = f"{self._name}.dequantize"
        last.metadata_props[SCHEME_KEY] = label
        return self.nodes

    def hold(self, tensor: ir.TensorProtocol | npt.NDArray[Any], suffix: str) -> ir.Value:
        """A constant."""
        name = f"{self._name}.{suffix}"
        return constant(ir.Tensor(tensor, name=name) if isinstance(tensor, np.ndarray) else tensor, name)

    def _first(self, value: ir.Value, size: int, axis: int, suffix: str) -> ir.Value:
        ends = [
            self._integers((number,), f"{suffix}.{key}")
            for key, number in (("first", 0), ("size", size), ("axis", axis))
        ]
        return self.add("Slice", [value, *ends], f"{suffix}.cut")

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


def is_foldable(value: ir.Value) -> bool:
    """Whether it is constant, or computed from constants alone, which ONNX Runtime does when it loads a model."""
    stack = [value]
    while stack:
        source = stack.pop()
        if source.is_graph_input():
            return False
        if ir.convenience.get_const_tensor(source) is not None:
            continue
        node = source.producer()
        if node is None or not node.inputs:
            return False
        stack += [each for each in node.inputs if each is not None]
    return True


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
