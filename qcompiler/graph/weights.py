"""Constant weights and how a node reaches them: one `Weight` is one matrix [N, K], however often and through whatever it is used.

A weight may lie behind Identity, Cast, Transpose, Reshape, Squeeze and Unsqueeze of an initializer. What stays of such a chain is the
matrix's shape in storage order and whether the use reads it transposed, so two uses of one matrix compare equal by key.
"""

from dataclasses import dataclass, field
from enum import Enum

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

FLOAT_TYPES = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})


class Role(str, Enum):
    """What a node's constant matrix does in the model."""

    LINEAR = "linear"
    HEAD = "head"
    EMBEDDING = "embedding"
    CONV = "conv"
    ATTENTION = "attention"


@dataclass(frozen=True)
class ConstantView:
    """An initializer seen through shape and cast nodes.

    Attributes:
        source: the initializer.
        shape: the shape that the chain gives it, before the transposition.
        transposed: the last two axes of a matrix are swapped on top of ``shape``.
        dtype: element type at the end of the chain.
    """

    source: ir.Value
    shape: tuple[int, ...]
    transposed: bool
    dtype: ir.DataType

    @property
    def final_shape(self) -> tuple[int, ...]:
        """The shape that a consumer sees."""
        return self.shape[::-1] if self.transposed else self.shape


@dataclass(eq=False)
class WeightUse:
    """One node that multiplies with, or gathers from, a weight."""

    node: ir.Node
    role: Role
    input_index: int  # where the node takes the weight
    top_level: ir.Node  # the node itself, or the node of the main graph in whose body it is
    in_body: str | None = None  # "Loop 'name'" when the node is inside a control-flow body


@dataclass(eq=False)
class Weight:
    """One constant matrix [N, K] and all its uses.

    Attributes:
        name: for people and rules; from the exporter's scopes, the initializer or the node.
        source: the initializer that holds the numbers.
        stored_shape: its two-dimensional shape in storage order.
        transposed: storage is [K, N] rather than [N, K].
        dtype: float type of the values where they are used.
        uses: in graph order.
        row_scale: float32 [N] still to be multiplied onto the stored values, or None.
        column_scale: float32 [K], likewise.
    """

    name: str
    source: ir.Value
    stored_shape: tuple[int, int]
    transposed: bool
    dtype: ir.DataType
    uses: list[WeightUse]
    aliases: tuple[str, ...] = ()
    row_scale: npt.NDArray[np.float32] | None = field(default=None, repr=False)
    column_scale: npt.NDArray[np.float32] | None = field(default=None, repr=False)

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        rows, columns = self.stored_shape
        return (columns, rows) if self.transposed else (rows, columns)

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.stored_shape[0] * self.stored_shape[1]

    @property
    def float_bytes(self) -> int:
        """Bytes of the stored float values."""
        assert self.source.const_value is not None
        return int(self.source.const_value.nbytes)

    @property
    def role(self) -> Role:
        """A head if any use is one, else the first use's role."""
        roles = [use.role for use in self.uses]
        return Role.HEAD if Role.HEAD in roles else roles[0]

    def array(self) -> npt.NDArray[np.generic]:
        """The values [N, K]: a view of the mapped file, or a float32 copy when scales are pending."""
        tensor = self.source.const_value
        assert tensor is not None
        stored = tensor.numpy().reshape(self.stored_shape)
        matrix = stored.T if self.transposed else stored
        if self.row_scale is None and self.column_scale is None:
            return matrix
        scaled = matrix.astype(np.float32)
        if self.row_scale is not None:
            scaled *= self.row_scale[:, None]
        if self.column_scale is not None:
            scaled *= self.column_scale[None, :]
        return scaled

    def scale_rows(self, factor: npt.NDArray[np.float32]) -> None:
        """Multiply output channels by ``factor`` [N], when next read."""
        self.row_scale = factor if self.row_scale is None else self.row_scale * factor

    def scale_columns(self, factor: npt.NDArray[np.float32]) -> None:
        """Multiply input channels by ``factor`` [K], when next read."""
        self.column_scale = factor if self.column_scale is None else self.column_scale * factor


def constant_view(value: ir.Value | None) -> ConstantView | None:
    """The initializer behind ``value``, or None where it depends on anything but one constant."""
    if value is None:
        return None
    chain: list[ir.Node] = []
    current = value
    while not current.is_initializer():
        node = current.producer()
        if node is None or node.op_type not in _STEPS or node.domain not in ("", "ai.onnx"):
            return None
        first = node.inputs[0]
        if first is None:
            return None
        chain.append(node)
        current = first
    if current.const_value is None or current.is_graph_input():
        return None
    tensor = current.const_value
    view = ConstantView(current, tuple(tensor.shape.numpy()), False, tensor.dtype)
    for node in reversed(chain):
        step = _apply(view, node)
        if step is None:
            return None
        view = step
    return view


def is_read_by_its_uses_alone(weight: Weight) -> bool:
    """Whether every reader of the stored numbers is one of the weight's uses in the main graph, so that they may be changed for these."""
    own = {use.node for use in weight.uses if use.in_body is None}
    stack = [weight.source]
    while stack:
        value = stack.pop()
        if value.is_graph_output() or value.is_graph_input():
            return False
        for node in value.consumers():
            if node in own:
                continue
            if node.op_type not in _STEPS:
                return False
            stack.extend(node.outputs)
    return all(use.in_body is None for use in weight.uses)


def narrow_type(value: ir.Value | None) -> tuple[bool, ir.DataType] | None:
    """The type, an integer or a float of 8 bits, behind a constant: (a Cast rounds to it, the type); None where there is none."""
    current = value
    while current is not None and not current.is_initializer():
        node = current.producer()
        if node is None or node.op_type not in _STEPS or node.domain not in ("", "ai.onnx"):
            return None
        if node.op_type == "Cast" and (to := _cast_target(node)) not in _KEPT_BY_CAST[0]:
            return True, to
        current = node.inputs[0]
    tensor = None if current is None else current.const_value
    return None if tensor is None or tensor.dtype in _KEPT_BY_CAST[0] else (False, tensor.dtype)


_KEPT_BY_CAST = (FLOAT_TYPES | {ir.DataType.DOUBLE}, frozenset({ir.DataType.INT32, ir.DataType.INT64}))
"""Types between which a Cast changes no value that a model means; from one set to the other it would round, or drop a scale."""

_STEPS = frozenset({"Identity", "Cast", "Transpose", "Reshape", "Squeeze", "Unsqueeze"})


def _apply(view: ConstantView, node: ir.Node) -> ConstantView | None:
    if node.op_type == "Identity":
        return view
    if node.op_type == "Cast":
        to = _cast_target(node)
        if not any(view.dtype in types and to in types for types in _KEPT_BY_CAST):
            return None
        return ConstantView(view.source, view.shape, view.transposed, to)
    if node.op_type == "Transpose":
        permutation = tuple(node.attributes["perm"].as_ints()) if "perm" in node.attributes else None
        if len(view.shape) != 2:
            return None  # a permutation of more axes is not one matrix read both ways
        if permutation in (None, (1, 0)):
            return ConstantView(view.source, view.shape, not view.transposed, view.dtype)
        return view
    target = _static_shape(view, node)
    if target is None or view.transposed:
        return None  # after a transposition the values are not in storage order
    return ConstantView(view.source, target, False, view.dtype)


def _cast_target(node: ir.Node) -> ir.DataType:
    return ir.DataType(node.attributes["to"].as_int())


def _static_shape(view: ConstantView, node: ir.Node) -> tuple[int, ...] | None:
    """Shape after Reshape, Squeeze or Unsqueeze; None when it is not constant."""
    operand = constant_values(node.inputs[1]) if len(node.inputs) > 1 else None
    if node.op_type == "Reshape":
        if operand is None:
            return None
        if node.attributes.get_int("allowzero", 0) and 0 in operand:
            return None  # 0 is a size there
        kept = [view.shape[i] if d == 0 else int(d) for i, d in enumerate(operand.tolist())]
        size = int(np.prod(view.shape))
        known = int(np.prod([d for d in kept if d != -1]))
        if known == 0 and -1 in kept:
            return None  # an empty constant does not say how long the open axis is
        return tuple(size // known if d == -1 else d for d in kept)
    axes = operand.tolist() if operand is not None else None
    if axes is None and "axes" in node.attributes:
        axes = list(node.attributes["axes"].as_ints())  # before opset 13
    if node.op_type == "Squeeze":
        rank = len(view.shape)
        dropped = (
            {a % rank for a in axes} if axes is not None else {i for i in range(rank) if view.shape[i] == 1}
        )
        return tuple(d for i, d in enumerate(view.shape) if i not in dropped)
    if axes is None:
        return None
    rank = len(view.shape) + len(axes)
    added = {a % rank for a in axes}
    rest = iter(view.shape)
    return tuple(1 if i in added else next(rest) for i in range(rank))


def constant_values(value: ir.Value | None) -> npt.NDArray[np.generic] | None:
    """The numbers of a small constant (initializer or Constant node), or None."""
    if value is None:
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()
