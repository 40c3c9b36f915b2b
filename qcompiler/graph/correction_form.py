"""The middle form of what stands beside a weight's codes: it is added to the product, not to the weight.

    y = MatMul(x, weight)          becomes          y = Add(MatMul(x, weight), MatMul(MatMul(x, B^T), A^T))

so that a kernel may read the codes of the weight, and the part of low rank costs r (N + K) multiplications a row. Outliers are added
likewise, as SparseMatMul(x, values, columns, offsets) of our domain (see ``sparse_matmul``), and whole columns as a product of the channels
that they multiply (see ``column_form``). ``add_corrections`` makes it;
``corrections_of`` finds it beside a quantized product, by its structure alone, also in a model that went through other tools; a note in the
nodes' metadata tells ours from an adapter.
Letters: M rows, N outputs, K reduction, r rank.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import onnx_ir as ir

from qcompiler.graph import fake_quant_rows
from qcompiler.graph.beside_product import CORRECTION_KEY, BesideProduct
from qcompiler.graph.column_form import ColumnForm, add_columns, columns_in
from qcompiler.graph.edits import Names, constant
from qcompiler.graph.kernel_node import DOMAIN
from qcompiler.graph.node_chain import producer_of
from qcompiler.graph.offset_product import is_offset_part, with_offsets
from qcompiler.graph.operator_body import OUR_DOMAIN
from qcompiler.graph.sparse_matmul import OP, provide
from qcompiler.graph.stored_corrections import StoredCorrections, StoredLowRank
from qcompiler.graph.weight_form import is_in_codes
from qcompiler.graph.weights import ConstantView, constant_view
from qcompiler.quant.outliers import outliers_label


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


CorrectionForm: TypeAlias = LowRankForm | OutlierForm | ColumnForm


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
    if stored.columns is not None:
        values, places = constants(
            {"outlier_columns": stored.columns.values, "outlier_channels": stored.columns.places}
        )
        made = [add_columns(product, values, places, names) for product in made]
    return made


def corrections_of(product: ir.Node) -> Iterator[CorrectionForm]:
    """What is added to a quantized product, in order; offsets of its weight come before."""
    value = _whole(product)
    while True:
        found = next((form for user in value.consumers() if (form := _sum_with(user, value))), None)
        if found is None or not _reads(product, found.x):
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
                if product is not None and _reads(product, form.x):
                    return form
    return None


def corrected_output(product: ir.Node) -> ir.Value:
    """The product's output with all that is added to it."""
    value = _whole(product)
    for form in corrections_of(product):
        value = form.total.outputs[0]
    return value


def _add_low_rank(
    product: ir.Node, part: StoredLowRank, factors: Sequence[ir.Value], names: Names
) -> ir.Node:
    beside, shape = BesideProduct(product, names), product.outputs[0].shape
    down, up = (beside.in_its_type(*each) for each in zip(factors, ("down", "up"), strict=True))
    narrow_shape = None if shape is None else ir.Shape([*list(shape)[:-1], part.rank])
    narrow = beside.add("MatMul", [beside.x, down], "narrow", narrow_shape)
    return beside.finish(beside.add("MatMul", [narrow, up], "low_rank", shape))


def _add_outliers(product: ir.Node, numbers: Sequence[ir.Value], names: Names) -> ir.Node:
    beside, shape = BesideProduct(product, names), product.outputs[0].shape
    return beside.finish(beside.add(OP, [beside.x, *numbers], "sparse", shape, OUR_DOMAIN))


def _whole(product: ir.Node) -> ir.Value:
    """The product's output, with its offsets' part, or times the scales of its rows, where those are nodes of their own."""
    value = with_offsets(product)
    if product.op_type != "MatMulIntegerToFloat":
        return value
    scaled = [user for user in value.consumers() if _scales_rows(user)]
    return scaled[0].outputs[0] if len(scaled) == 1 and len(value.uses()) == 1 else value


def _scales_rows(node: ir.Node) -> bool:
    """Whether it multiplies a product of codes with the scales of its rows, as ``lower_to_integers`` makes it."""
    scale = node.inputs[1] if node.op_type == "Mul" and node.domain == "" else None
    return (
        producer_of(node, 0, "MatMulIntegerToFloat", DOMAIN) is not None
        and scale is not None
        and constant_view(scale) is None
    )


def _reads(product: ir.Node, x: ir.Value | None) -> bool:
    """Whether a product multiplies ``x``, or what rounding and masks make of it."""
    value = product.inputs[0]
    while value is not None and value is not x:
        node = value.producer()
        value = node.inputs[0] if node is not None and node.op_type in _ROUNDING else None
    return value is not None


_ROUNDING = frozenset(
    {"Mul", "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", fake_quant_rows.OP}
)
"""What stands between an activation and an integer product; the activation is their first input."""


def _sum_with(total: ir.Node, value: ir.Value) -> CorrectionForm | None:
    """The correction that ``total`` adds to ``value``."""
    if total.op_type != "Add" or total.domain != "" or len(total.inputs) != 2:
        return None
    other = total.inputs[1] if total.inputs[0] is value else total.inputs[0]
    sparse = None if other is None else other.producer()
    if sparse is not None and (sparse.domain, sparse.op_type) == (OUR_DOMAIN, OP):
        return OutlierForm(sparse, total)
    columns = None if other is None else columns_in(total, other)
    if columns is not None:
        return columns
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
        if node is not None and _scales_rows(node):
            node = producer_of(node, 0, "MatMulIntegerToFloat", DOMAIN)
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
        return node.op_type in _PRODUCTS
    weight = node.inputs[1] if node.op_type == "MatMul" and node.domain == "" else None
    return weight is not None and is_in_codes(weight)


_PRODUCTS = frozenset(
    {
        "MatMulNBits", "MatMul3Bits", "MatMulBnb4", "MatMulCodebook", "DynamicQuantMatMul", "DynamicQuantizeMatMul",
        "MatMulIntegerToFloat",
    }
)  # fmt: skip
