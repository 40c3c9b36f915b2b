"""Products with experts: E matrices stacked in one constant, of which each multiplies rows of its own.

    dense      MatMul (x [..., E, C, K], W [E, K, N]), or Einsum of the same; x may be [1, C, K] or [C, K], read by every expert
    gathered   MatMul (x [R, C, K], W [ids] [R, K, N]): the matrices are picked at run time, by Gather or GatherND

Expert by expert each is an ordinary linear: ``split_experts`` makes them so.
"""

from dataclasses import dataclass

import onnx_ir as ir

from qcompiler.graph.weights import ConstantView, constant_values, constant_view

AXIS = -3  # of x and of the result, along which experts (dense) or picked experts (gathered) lie
_SHARED = frozenset({"ck,ekn->ecn", "ck,enk->ecn"})
_APART = frozenset({"eck,ekn->ecn", "eck,enk->ecn"})


@dataclass(frozen=True)
class StackedProduct:
    """A node that multiplies with stacked matrices.

    Attributes:
        view: of the whole constant; its ``final_shape`` is [E, K, N], or [E, N, K] where ``flipped``.
        flipped: the node multiplies with each matrix transposed.
        rows: x, whose parts along AXIS the experts read; or, where ``shared``, what all of them read alike.
        ids: int [R], the expert of each part of x; None: part e is expert e's.
    """

    view: ConstantView
    flipped: bool
    rows: ir.Value
    shared: bool
    ids: ir.Value | None = None

    @property
    def count(self) -> int:
        """E."""
        return self.view.shape[0]

    @property
    def transposed(self) -> bool:
        """Storage is [K, N] for each expert rather than [N, K]."""
        return self.view.transposed == self.flipped

    @property
    def k(self) -> int:
        """Channels of x."""
        return self.view.final_shape[-1 if self.flipped else -2]

    @property
    def n(self) -> int:
        """Channels of the result."""
        return self.view.final_shape[-2 if self.flipped else -1]


def stacked_product(node: ir.Node) -> StackedProduct | str | None:
    """What the node multiplies with, or why it cannot be split into experts, or None for any other node."""
    if (
        node.op_type not in ("MatMul", "Einsum")
        or node.domain not in ("", "ai.onnx")
        or len(node.inputs) != 2
    ):
        return None
    x, w = node.inputs
    assert x is not None and w is not None
    view = constant_view(w)
    if view is not None:
        return None if len(view.shape) != 3 or view.index is not None else _dense(node, x, view)
    return _gathered(node, x, w)


def _dense(node: ir.Node, x: ir.Value, view: ConstantView) -> StackedProduct | str:
    count = view.shape[0]
    if node.op_type == "Einsum":
        equation = _canonical(node.attributes.get_string("equation", ""))
        if equation not in _SHARED | _APART:
            return f"Einsum {node.attributes.get_string('equation', '')!r} is no product of each expert with its rows"
        flipped = equation.split("->")[0].endswith("nk")
        if equation in _SHARED:
            return StackedProduct(view, flipped, x, True)
    else:
        flipped = False
    if x.shape is None or (len(x.shape) >= 3 and not isinstance(x.shape[AXIS], int)):
        return f"the weight holds {count} matrices, and the graph does not say which rows are whose"
    if len(x.shape) < 2:
        return f"the weight holds {count} matrices for a vector; products of rows are split into experts"
    if len(x.shape) < 3 or (x.shape[AXIS] == 1 and count > 1):
        return StackedProduct(view, flipped, x, True)
    repeated = _repeated(x, count)
    if repeated is not None:
        return StackedProduct(view, flipped, repeated, True)
    if x.shape[AXIS] != count:
        return f"the weight holds {count} matrices for {x.shape[AXIS]} sets of rows"
    return StackedProduct(view, flipped, x, False)


def _canonical(equation: str) -> str:
    """The equation with the letters of a product of experts, its output [e, c, n]; "" where it is none."""
    inputs, _, output = equation.replace(" ", "").partition("->")
    left, _, right = inputs.partition(",")
    if len(output) != 3 or len(set(output)) != 3 or len(right) != 3 or not set(left) <= set(right + output):
        return ""
    names = dict(zip(output, "ecn", strict=True))
    summed = set(right) - set(output)
    names |= dict.fromkeys(summed, "k") if len(summed) == 1 else {}
    return "".join(names.get(letter, letter) for letter in equation.replace(" ", ""))


def _repeated(x: ir.Value, count: int) -> ir.Value | None:
    """What all experts read, where x [E, C, K] is one [1, C, K] or [C, K] over and over."""
    node = x.producer()
    if node is None or x.is_graph_output() or x.shape is None or len(x.shape) != 3 or x.shape[0] != count:
        return None
    source = node.inputs[0]
    if node.op_type == "Expand" and source is not None and source.shape is not None:
        if len(source.shape) < 2 or not all(map(_same_size, source.shape[-2:], x.shape[-2:])):
            return None  # the Expand repeats rows or channels, not what the experts read
        inserted = source.producer()
        if inserted is not None and inserted.op_type == "Unsqueeze" and len(source.shape) == 3:
            axes = constant_values(inserted.inputs[1]) if len(inserted.inputs) > 1 else None
            if axes is not None and axes.tolist() == [0]:
                return inserted.inputs[0]  # as the router reads it
        once = len(source.shape) == 2 or (len(source.shape) == 3 and source.shape[0] == 1)
        return source if once else None
    tile = None if source is None else source.producer()
    if node.op_type != "Reshape" or tile is None or tile.op_type != "Tile":
        return None  # a Reshape of [E C, K] to [E, C, K], the first x as often as there are experts
    repeats, source = constant_values(tile.inputs[1]), tile.inputs[0]
    if source is None or source.shape is None or len(source.shape) != 2 or repeats is None:
        return None
    if x.shape[2] != source.shape[1] or repeats.tolist() != [count, 1]:
        return None
    expand = source.producer()  # torch's repeat begins with one that does nothing
    if expand is not None and expand.op_type == "Expand":
        ones = constant_values(expand.inputs[1])
        if ones is not None and (ones == 1).all() and expand.inputs[0] is not None:
            return expand.inputs[0]
    return source


def _same_size(one: int | ir.SymbolicDim, other: int | ir.SymbolicDim) -> bool:
    """Whether two sizes are known to be equal."""
    return one == other and (isinstance(one, int) or one.value is not None)


def _gathered(node: ir.Node, x: ir.Value, w: ir.Value) -> StackedProduct | str | None:
    gather, flipped = w.producer(), False
    if gather is not None and gather.op_type == "Transpose":
        if tuple(gather.attributes.get_ints("perm", ())) != (0, 2, 1):
            return None
        inner = gather.inputs[0]
        gather, flipped = (None if inner is None else inner.producer()), True
    if gather is None or gather.op_type not in ("Gather", "GatherND"):
        return None
    view, ids = constant_view(gather.inputs[0]), gather.inputs[1]
    if view is None or len(view.shape) != 3 or view.index is not None or ids is None:
        return None
    if constant_view(ids) is not None or not view.dtype.is_floating_point():
        return None
    if gather.attributes.get_int("axis", 0) != 0 or gather.attributes.get_int("batch_dims", 0) != 0:
        return None
    if gather.op_type == "GatherND":
        unsqueeze = ids.producer()
        axes = (
            None if unsqueeze is None or len(unsqueeze.inputs) < 2 else constant_values(unsqueeze.inputs[1])
        )
        if unsqueeze is None or unsqueeze.op_type != "Unsqueeze" or axes is None:
            return f"the expert of {view.shape[0]} is picked by a GatherND that is not read here"
        ids = unsqueeze.inputs[0]
        if ids is None or ids.shape is None or axes.reshape(-1).tolist() not in ([-1], [len(ids.shape)]):
            return f"the expert of {view.shape[0]} is picked by a GatherND that is not read here"
    ranks = [None if value.shape is None else len(value.shape) for value in (ids, x)]
    if node.op_type != "MatMul" or ranks != [1, 3]:
        return (
            f"experts of {view.shape[0]} are picked for ids of rank {ranks[0]} by {node.op_type} with rows of rank {ranks[1]}; "
            "ids [R], rows [R, C, K] and a MatMul are split into experts"
        )
    return StackedProduct(view, flipped, x, False, ids)
