"""The product of an activation with a weight of codes, scales and offsets, on ONNX Runtime's kernel for codes and scales:

    x W^T = x (codes * scale)^T + sums(x) offset^T        sums(x)[m, group] = sum of x[m, k] over the group's k

    MatMulNBits(x, codes, scale) + MatMul(ReduceSum(Reshape x to [.., G, g]), Transpose(offset))

The second part has 1 / g of the first's arithmetic, and products that read one x share its sums. Where the rank of x is not
known, the last group is short, or x may have no rows (an expert that no token chose: ONNX Runtime's ReduceSum gives nothing a wrong shape),
the sums are a product with a matrix of zeros and ones [K, G].
"""

import re

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.graph.edits import Names, add_initializer, replace_value, set_info
from qcompiler.graph.node_chain import producer_of
from qcompiler.graph.operator_body import OUR_DOMAIN
from qcompiler.graph.weights import constant_view


class GroupSums:
    """Sums of activations over groups of K, made when first asked for and shared by all that read the same activation."""

    def __init__(self, main: ir.Graph, names: Names) -> None:
        self._main = main  # holds the constants; a body of control flow reads them there
        self._names = names
        self._known: dict[tuple[ir.Value, int, ir.Graph], ir.Value] = {}

    def of(self, x: ir.Value, k: int, group: int, reader: ir.Node) -> ir.Value:
        """[.., G] for x [.., K], computed before ``reader`` where it is new."""
        graph = reader.graph
        assert graph is not None
        known = self._known.get((x, group, graph))
        if known is None:
            known = self._known[x, group, graph] = self._emit(x, k, group, reader, graph)
        return known

    def _emit(self, x: ir.Value, k: int, group: int, reader: ir.Node, graph: ir.Graph) -> ir.Value:
        base = f"{x.name}.sums_{group}"
        groups = -(-k // group)
        dtype = x.dtype or ir.DataType.FLOAT
        output = ir.Value(name=self._names.value(base))
        leading = None if x.shape is None else list(x.shape)[:-1]
        set_info(output, dtype, None if leading is None else ir.Shape([*leading, groups]))
        if leading is None or k % group or self._may_be_empty(leading):
            members = ir.Tensor(_members(k, group).astype(dtype.numpy()), dtype)
            held = add_initializer(self._main, members, self._names.value(f"{base}.members"))
            nodes = [ir.node("MatMul", [x, held], outputs=[output], name=self._names.node(base))]
        else:
            numbers = {"shape": [0] * len(leading) + [groups, group], "axis": [-1]}
            shape, axis = (
                add_initializer(
                    self._main, ir.Tensor(np.array(value, np.int64)), self._names.value(f"{base}.{key}")
                )
                for key, value in numbers.items()
            )
            apart = ir.Value(name=self._names.value(f"{base}.apart"))
            set_info(apart, dtype, ir.Shape([*leading, groups, group]))
            nodes = [
                ir.node("Reshape", [x, shape], outputs=[apart], name=self._names.node(f"{base}.apart")),
                ir.node(
                    "ReduceSum", [apart, axis], {"keepdims": 0}, outputs=[output], name=self._names.node(base)
                ),
            ]
        graph.insert_before(reader, nodes)
        return output

    def _may_be_empty(self, sizes: list[int | ir.SymbolicDim]) -> bool:
        """A size that is no number and not made of the sizes of the model's inputs: it hangs on the data."""
        shapes = [value.shape for value in self._main.inputs if value.shape is not None]
        known = {word for shape in shapes for size in shape for word in _words(size)}
        return any(not isinstance(size, int) and not set(_words(size) or [""]) <= known for size in sizes)


def _words(size: int | ir.SymbolicDim) -> list[str]:
    """The names in "batch*sequence"; none in a number or in a size without a name."""
    return [] if isinstance(size, int) else re.findall(r"[A-Za-z_]\w*", size.value or "")


def _members(k: int, group: int) -> npt.NDArray[np.bool_]:
    """Which of K belong to which group, [K, G]."""
    members: npt.NDArray[np.bool_] = np.arange(k)[:, None] // group == np.arange(-(-k // group))
    return members


def add_offsets(product: ir.Node, sums: ir.Value, offset: ir.Value, names: Names) -> None:
    """The readers of ``product`` now read it plus sums offset^T, under the old name.

    Args:
        offset: [G, N], a constant or computed from some.
    """
    whole, graph = product.outputs[0], product.graph
    assert graph is not None
    dtype = whole.dtype or ir.DataType.FLOAT
    part, total = (ir.Value(name=names.value(f"{whole.name}.{suffix}")) for suffix in ("offsets", "total"))
    for value in (part, total):
        set_info(value, dtype, whole.shape)
    nodes = [
        ir.node("MatMul", [sums, offset], outputs=[part], name=names.node(f"{product.name}.offsets")),
        ir.node("Add", [whole, part], outputs=[total], name=names.node(f"{product.name}.total")),
    ]
    graph.insert_after(product, nodes)
    replace_value(whole, total, keep=(nodes[1],))
    if not total.is_graph_output():
        whole.name, total.name = total.name, whole.name


def offset_of(product: ir.Node) -> ir.Value | None:
    """The offsets [G, N] that are added to a MatMulNBits; None where none are."""
    part = _part_of(product)
    return None if part is None else part.inputs[1]


def with_offsets(product: ir.Node) -> ir.Value:
    """The output of a product, its offsets' part added where it has one."""
    part = _part_of(product)
    return product.outputs[0] if part is None else next(iter(part.outputs[0].uses())).node.outputs[0]


def _part_of(product: ir.Node) -> ir.Node | None:
    for user, index in product.outputs[0].uses():
        part = producer_of(user, 1, "MatMul") if user.op_type == "Add" and index == 0 else None
        if part is not None and is_offset_part(part):
            return part
    return None


def is_offset_part(node: ir.Node) -> bool:
    """Whether a MatMul is the second part of such a product, no product of its own."""
    if node.op_type != "MatMul" or len(node.outputs[0].uses()) != 1 or node.inputs[0] is None:
        return False
    ((add, index),) = node.outputs[0].uses()
    product = producer_of(add, 0, "MatMulNBits", "com.microsoft") or producer_of(
        add, 0, "MatMulNBits", OUR_DOMAIN
    )
    if add.op_type != "Add" or index != 1 or product is None:
        return False
    sums = node.inputs[0].producer()
    return sums is not None and _summed(sums, product) is product.inputs[0]


def is_group_sum(node: ir.Node) -> bool:
    """Whether a MatMul only sums an activation over its groups for such products."""
    users = [user for user, index in node.outputs[0].uses()]
    return node.op_type == "MatMul" and bool(users) and all(is_offset_part(user) for user in users)


def _summed(sums: ir.Node, product: ir.Node) -> ir.Value | None:
    """The activation behind its sums over the product's groups."""
    if sums.op_type == "MatMul":
        # Its matrix is looked at: a part of low rank beside the product has the same nodes (see ``correction_form``).
        view = constant_view(sums.inputs[1])
        k, group = (product.attributes.get_int(name, 0) for name in ("K", "block_size"))
        if view is None or not group or view.shape != (k, -(-k // group)) or view.source.const_value is None:
            return None
        return sums.inputs[0] if np.array_equal(view.source.const_value.numpy(), _members(k, group)) else None
    apart = producer_of(sums, 0, "Reshape") if sums.op_type == "ReduceSum" else None
    return None if apart is None else apart.inputs[0]
