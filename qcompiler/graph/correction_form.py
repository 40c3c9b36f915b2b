"""The middle form of what stands beside a weight's codes: it is added to the product, not to the weight.

    y = MatMul(x, weight)          becomes          y = Add(MatMul(x, weight), MatMul(MatMul(x, B^T), A^T))

so that a kernel may read the codes of the weight, and the part of low rank costs r (N + K) multiplications a row. Outliers are added
likewise, as SparseMatMul(x, values, columns, offsets) of our domain (see ``sparse_matmul``). ``add_corrections`` makes it;
``corrections_of`` finds it beside a quantized product, by its structure alone, also in a model that went through other tools; a note in the
nodes' metadata tells ours from an adapter.
Letters: M rows, N outputs, K reduction, r rank.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import onnx_ir as ir

from qcompiler.graph.edits import Names, constant, set_info
from qcompiler.graph.kernel_node import DOMAIN
from qcompiler.graph.node_chain import producer_of
from qcompiler.graph.offset_product import is_offset_part, with_offsets
from qcompiler.graph.operator_body import OUR_DOMAIN
from qcompiler.graph.quantized import KEYS
from qcompiler.graph.sparse_matmul import OP, provide
from qcompiler.graph.stored_corrections import StoredCorrections, StoredLowRank
from qcompiler.graph.weight_form import is_in_codes
from qcompiler.graph.weights import ConstantView, constant_view
from qcompiler.quant.outliers import outliers_label

CORRECTION_KEY = f"{KEYS}correction"
"""In the metadata of the products that make a correction: the name of the product that it belongs to."""


@dataclass(frozen=True, eq=False)
class LowRankForm:
    """A part of low rank beside a product.

    Attributes:
        down, up: the two MatMul nodes; ``total`` is the Add.
    """

    down: ir.Node
    up: ir.Node
    total: ir.Node

    @property
    def rank(self) -> int:
        """r."""
        view = constant_view(self.up.inputs[1])
        assert view is not None
        return view.final_shape[0]

    @property
    def kind(self) -> str:
        """What it is: "rank 16"; what nothing says that we made may as well be an adapter that someone trained."""
        ours = all(CORRECTION_KEY in node.metadata_props for node in self.nodes)
        return f"rank {self.rank}" if ours else f"low-rank part or adapter of rank {self.rank}"

    def label(self, size: int) -> str:
        """Short text for reports, beside a weight of ``size`` numbers."""
        return self.kind

    @property
    def x(self) -> ir.Value | None:
        """What it multiplies."""
        return self.down.inputs[0]

    @property
    def nodes(self) -> tuple[ir.Node, ...]:
        """The products of the correction, in order."""
        return self.down, self.up

    @property
    def sources(self) -> list[ir.Value]:
        """The initializers it reads."""
        views = (constant_view(node.inputs[1]) for node in self.nodes)
        return [view.source for view in views if view is not None]


@dataclass(frozen=True, eq=False)
class OutlierForm:
    """Outliers beside a product.

    Attributes:
        node: the SparseMatMul; ``total`` is the Add.
    """

    node: ir.Node
    total: ir.Node
    kind = "outliers"

    def label(self, size: int) -> str:
        """Short text for reports, beside a weight of ``size`` numbers: "1 % outliers"."""
        values = self.node.inputs[1]
        tensor = None if values is None else values.const_value
        return self.kind if tensor is None else outliers_label(int(tensor.size), size)

    @property
    def x(self) -> ir.Value | None:
        """What it multiplies."""
        return self.node.inputs[0]

    @property
    def nodes(self) -> tuple[ir.Node, ...]:
        """The products of the correction, in order."""
        return (self.node,)

    @property
    def sources(self) -> list[ir.Value]:
        """The initializers it reads."""
        return [value for value in self.node.inputs[1:] if value is not None]


CorrectionForm: TypeAlias = LowRankForm | OutlierForm


def add_corrections(
    model: ir.Model, products: Sequence[ir.Node], stored: StoredCorrections, name: str, names: Names
) -> list[ir.Node]:
    """Adds to products of one weight what stands beside it.

    Each product's node becomes the sum, so that its output stays the value that others read; a new node with its name
    and notes multiplies.

    Args:
        model: its main graph holds the constants; products may be inside its control-flow bodies.
        products: MatMul nodes that read the weight as [K, N].
        name: for new values and nodes.
    Returns:
        The nodes that now multiply, in the order of ``products``.
    """

    def constants(tensors: Mapping[str, ir.TensorProtocol]) -> list[ir.Value]:
        values = [constant(tensor, names.value(f"{name}.{suffix}")) for suffix, tensor in tensors.items()]
        for value in values:
            model.graph.register_initializer(value)
        return values

    made = list(products)
    low_rank, outliers = stored.low_rank, stored.outliers
    if low_rank is not None:
        factors = constants({"down": low_rank.down, "up": low_rank.up})
        made = [_add_low_rank(product, low_rank, factors, names) for product in made]
    if outliers is not None:
        provide(model)
        numbers = constants(
            {"outliers": outliers.values, "columns": outliers.columns, "offsets": outliers.offsets}
        )
        made = [_add_outliers(product, numbers, names) for product in made]
    return made


def corrections_of(product: ir.Node) -> Iterator[CorrectionForm]:
    """What is added to a quantized product, in order; offsets of its weight come before."""
    value = with_offsets(product)
    while True:
        found = next((form for user in value.consumers() if (form := _sum_with(user, value))), None)
        if found is None or found.x is not product.inputs[0]:
            return
        yield found
        value = found.total.outputs[0]


def correction_at(node: ir.Node) -> CorrectionForm | None:
    """The correction beside a quantized product that this product is a node of, or None."""
    for value in (node.outputs[0], *(user.outputs[0] for user in node.outputs[0].consumers())):
        for total in value.consumers():
            for index, other in enumerate(total.inputs[:2]):
                form = None if other is None else _sum_with(total, other)
                if form is None or node not in form.nodes:
                    continue
                product = _product_behind(total.inputs[index])
                if product is not None and product.inputs[0] is form.x:
                    return form
    return None


def corrected_output(product: ir.Node) -> ir.Value:
    """The product's output with all that is added to it."""
    value = with_offsets(product)
    for form in corrections_of(product):
        value = form.total.outputs[0]
    return value


class _Beside:
    """Nodes that are put in front of a product, the first of which multiplies in its place."""

    def __init__(self, product: ir.Node, names: Names) -> None:
        weight, result = product.inputs[1], product.outputs[0]
        assert weight is not None and product.inputs[0] is not None
        self.x = product.inputs[0]
        self.dtype = result.dtype or weight.dtype or ir.DataType.FLOAT
        self._product = product
        self._names = names
        self._made: list[ir.Node] = []
        self._multiplied = self.add("MatMul", [self.x, weight], "codes", result.shape)
        self._made[0].metadata_props.update(product.metadata_props)

    def add(
        self, op_type: str, inputs: Sequence[ir.Value], suffix: str, shape: ir.Shape | None, domain: str = "",
        **attributes: int,
    ) -> ir.Value:  # fmt: skip
        """The output of a new node."""
        output = ir.Value(name=self._names.value(f"{self._product.outputs[0].name}.{suffix}"))
        name = self._names.node(f"{self._product.name}.{suffix}")
        node = ir.node(op_type, inputs, attributes=attributes, domain=domain, outputs=[output], name=name)
        set_info(output, self.dtype, shape)
        self._made.append(node)
        return output

    def finish(self, addend: ir.Value) -> ir.Node:
        """The product's node now adds; the one that multiplies, which has its name."""
        product, multiply = self._product, self._made[0]
        assert product.graph is not None
        for node in self._made[1:]:
            node.metadata_props[CORRECTION_KEY] = product.name or ""
        product.graph.insert_before(product, self._made)
        product.op_type = "Add"
        product.metadata_props.clear()
        product.replace_input_with(0, self._multiplied)
        product.replace_input_with(1, addend)
        multiply.name, product.name = product.name, self._names.node(f"{product.name}.corrected")
        return multiply


def _add_low_rank(
    product: ir.Node, part: StoredLowRank, factors: Sequence[ir.Value], names: Names
) -> ir.Node:
    beside, shape = _Beside(product, names), product.outputs[0].shape
    if part.up.dtype != beside.dtype:
        factors = [
            beside.add("Cast", [value], suffix, value.shape, to=beside.dtype.value)
            for value, suffix in zip(factors, ("down.cast", "up.cast"), strict=True)
        ]
    down, up = factors
    narrow_shape = None if shape is None else ir.Shape([*list(shape)[:-1], part.rank])
    narrow = beside.add("MatMul", [beside.x, down], "narrow", narrow_shape)
    return beside.finish(beside.add("MatMul", [narrow, up], "low_rank", shape))


def _add_outliers(product: ir.Node, numbers: Sequence[ir.Value], names: Names) -> ir.Node:
    beside, shape = _Beside(product, names), product.outputs[0].shape
    return beside.finish(beside.add(OP, [beside.x, *numbers], "sparse", shape, OUR_DOMAIN))


def _sum_with(total: ir.Node, value: ir.Value) -> CorrectionForm | None:
    """The correction that ``total`` adds to ``value``."""
    if total.op_type != "Add" or total.domain != "" or len(total.inputs) != 2:
        return None
    other = total.inputs[1] if total.inputs[0] is value else total.inputs[0]
    sparse = None if other is None else other.producer()
    if sparse is not None and (sparse.domain, sparse.op_type) == (OUR_DOMAIN, OP):
        return OutlierForm(sparse, total)
    up = _multiplies(other)
    down = None if up is None else _multiplies(up[0].inputs[0])
    if up is None or down is None or up[1].final_shape[0] != down[1].final_shape[1]:
        return None
    return LowRankForm(down[0], up[0], total)


def _multiplies(value: ir.Value | None) -> tuple[ir.Node, ConstantView] | None:
    """The MatMul by a float matrix that gives ``value``, which nothing else reads."""
    node = None if value is None else value.producer()
    if node is None or value is None or node.op_type != "MatMul" or len(value.uses()) != 1:
        return None
    view = constant_view(node.inputs[1])
    return None if view is None or len(view.final_shape) != 2 else (node, view)


def _product_behind(value: ir.Value | None) -> ir.Node | None:
    """The quantized product behind a value to which other corrections, or its weight's offsets, are added."""
    while value is not None:
        node = value.producer()
        if node is None or node.op_type != "Add":
            return node if node is not None and is_quantized_product(node) else None
        value = _corrected(node)
    return None


def _corrected(total: ir.Node) -> ir.Value | None:
    """What ``total`` adds a correction, or offsets, to; None where it adds anything else, as a residual."""
    offsets = producer_of(total, 1, "MatMul")
    if offsets is not None and is_offset_part(offsets):
        return total.inputs[0]
    return next((value for value in total.inputs if value is not None and _sum_with(total, value)), None)


def is_quantized_product(node: ir.Node) -> bool:
    """Whether it multiplies with a constant that is stored in codes."""
    if node.domain in (DOMAIN, OUR_DOMAIN):
        return node.op_type in ("MatMulNBits", "MatMul3Bits", "MatMulBnb4", "MatMulCodebook")
    weight = node.inputs[1] if node.op_type == "MatMul" and node.domain == "" else None
    return weight is not None and is_in_codes(weight)
