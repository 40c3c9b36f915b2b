"""Constant weights and how a node reaches them: one `Weight` is one matrix [N, K], however often and through whatever it is used.

A weight may lie behind Identity, Cast, Transpose, Reshape, Squeeze and Unsqueeze of an initializer, and be one of several that are
stacked in it (Gather, Slice or Split on the first axis with a constant index). What stays of such a chain is the matrix's place and shape
in storage order and whether the use reads it transposed, so two uses of one matrix compare equal by key.
"""

from dataclasses import dataclass, field, replace
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
        transposed: the last two axes are swapped on top of ``shape``.
        dtype: element type at the end of the chain.
        index: which of the equal parts along the initializer's first axis is seen; None: all of it.
    """

    source: ir.Value
    shape: tuple[int, ...]
    transposed: bool
    dtype: ir.DataType
    index: int | None = None

    @property
    def final_shape(self) -> tuple[int, ...]:
        """The shape that a consumer sees."""
        return (*self.shape[:-2], self.shape[-1], self.shape[-2]) if self.transposed else self.shape

    def array(self) -> npt.NDArray[np.generic]:
        """The values as a consumer sees them but for Casts: a view of the initializer's, which may be a mapped file."""
        assert self.source.const_value is not None
        found = part_of(self.source.const_value.numpy(), self.shape, self.index)
        return np.swapaxes(found, -1, -2) if self.transposed else found


def part_of(
    stored: npt.NDArray[np.generic], shape: tuple[int, ...], index: int | None
) -> npt.NDArray[np.generic]:
    """A view of ``stored`` in this shape, or of the part at ``index`` where the shape is one part's."""
    return stored.reshape(shape) if index is None else stored.reshape((-1, *shape))[index]


@dataclass(frozen=True)
class Expert:
    """The place of a weight that is stacked with others of its kind in one initializer.

    Attributes:
        stack: name of the stack, for people.
        index: its own place, of ``count``.
    """

    stack: str
    index: int
    count: int


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
        expert: its place where ``source`` holds several weights.
        kernel: of a convolution: the shape [N, channels, ..] of which K is all but the first; None of any other.
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
    expert: Expert | None = None
    row_scale: npt.NDArray[np.float32] | None = field(default=None, repr=False)
    column_scale: npt.NDArray[np.float32] | None = field(default=None, repr=False)
    kernel: tuple[int, ...] | None = None

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
        return int(self.source.const_value.nbytes) // (1 if self.expert is None else self.expert.count)

    @property
    def role(self) -> Role:
        """A head if any use is one, else the first use's role."""
        roles = [use.role for use in self.uses]
        return Role.HEAD if Role.HEAD in roles else roles[0]

    @property
    def is_gathered(self) -> bool:
        """Whether rows of it are looked up."""
        return any(use.role is Role.EMBEDDING for use in self.uses)

    def array(self) -> npt.NDArray[np.generic]:
        """The values [N, K]: a view of the mapped file, or a float32 copy when scales are pending."""
        tensor = self.source.const_value
        assert tensor is not None
        stored = part_of(
            tensor.numpy(), self.stored_shape, None if self.expert is None else self.expert.index
        )
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
    chain: list[tuple[ir.Node, ir.Value]] = []
    current = value
    while not current.is_initializer():
        node = current.producer()
        if node is None or node.op_type not in _STEPS | _PARTS or node.domain not in ("", "ai.onnx"):
            return None
        first = node.inputs[0]
        if first is None:
            return None
        chain.append((node, current))
        current = first
    if current.const_value is None or current.is_graph_input():
        return None
    tensor = current.const_value
    view = ConstantView(current, tuple(tensor.shape.numpy()), False, tensor.dtype)
    for node, output in reversed(chain):
        step = _part(view, node, output) if node.op_type in _PARTS else _apply(view, node)
        if step is None:
            return None
        view = step
    return view


def is_read_by_its_uses_alone(weight: Weight) -> bool:
    """Whether every reader of the stored numbers is one of the weight's uses in the main graph, so that they may be changed for these."""
    if weight.expert is not None:
        return False  # the others of its stack are stored with it
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
_PARTS = frozenset({"Gather", "Slice", "Split"})


def _apply(view: ConstantView, node: ir.Node) -> ConstantView | None:
    if node.op_type == "Identity":
        return view
    if node.op_type == "Cast":
        to = _cast_target(node)
        if not any(view.dtype in types and to in types for types in _KEPT_BY_CAST):
            return None
        return replace(view, dtype=to)
    if node.op_type == "Transpose":
        rank = len(view.shape)
        permutation = tuple(node.attributes["perm"].as_ints()) if "perm" in node.attributes else None
        if permutation is None:
            permutation = tuple(reversed(range(rank)))
        if rank >= 2 and permutation == (*range(rank - 2), rank - 1, rank - 2):
            return replace(view, transposed=not view.transposed)
        return view if rank >= 2 and permutation == tuple(range(rank)) else None
    target = _static_shape(view, node)
    if target is None or view.transposed:
        return None  # after a transposition the values are not in storage order
    return replace(view, shape=target)


def _part(view: ConstantView, node: ir.Node, output: ir.Value) -> ConstantView | None:
    """One of the matrices that are stacked on the first axis; None for anything else that these nodes do."""
    if len(view.shape) < 3 or view.index is not None:
        return None
    count, rest = view.shape[0], view.shape[1:]
    if node.op_type == "Gather":
        picked = constant_values(node.inputs[1])
        if node.attributes.get_int("axis", 0) != 0 or picked is None or picked.size != 1:
            return None
        index, shape = int(picked.reshape(-1)[0]), (*picked.shape, *rest)
    elif node.op_type == "Slice":
        bounds = [constant_values(value) for value in node.inputs[1:]]
        if len(bounds) < 3 or any(bound is None or bound.size != 1 for bound in bounds):
            return None
        start, end, axis, *step = (int(bound.reshape(-1)[0]) for bound in bounds if bound is not None)
        index = start + count if start < 0 else start
        if axis != 0 or step not in ([], [1]) or min(end + count if end < 0 else end, count) != index + 1:
            return None
        shape = (1, *rest)
    else:
        sizes = None if len(node.inputs) < 2 else constant_values(node.inputs[1])
        equal = len(node.outputs) == count and (sizes is None or bool((sizes == 1).all()))
        if node.attributes.get_int("axis", 0) != 0 or not equal:
            return None
        index, shape = output.index() or 0, (1, *rest)
    index += count if index < 0 else 0
    return replace(view, shape=shape, index=index) if 0 <= index < count else None


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
    """The numbers of a small constant (initializer or Constant node), or None; an input's default is none."""
    if value is None or value.is_graph_input():
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()
