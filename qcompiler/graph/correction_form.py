"""The middle form of what stands beside a weight's codes: it is added to the product, not to the weight.

    y = MatMul(x, weight)          becomes          y = Add(MatMul(x, weight), MatMul(MatMul(x, B^T), A^T))

so that a kernel may read the codes of the weight, and the part of low rank costs r (N + K) multiplications a row. ``add_corrections``
makes it; ``corrections_of`` finds it beside a quantized product, by its structure alone, also in a model that went through other
tools. Letters: M rows, N outputs, K reduction, r rank.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from qcompiler.graph.edits import Names, constant, set_info
from qcompiler.graph.extract import is_constant
from qcompiler.graph.kernel_node import DOMAIN
from qcompiler.graph.offset_product import with_offsets
from qcompiler.graph.stored_corrections import StoredCorrections, StoredLowRank
from qcompiler.graph.weights import ConstantView, constant_view


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
    def label(self) -> str:
        """Short text for reports: "rank 16"."""
        return f"rank {self.rank}"

    @property
    def nodes(self) -> tuple[ir.Node, ...]:
        """The products of the correction, in order."""
        return self.down, self.up

    @property
    def sources(self) -> list[ir.Value]:
        """The initializers it reads."""
        views = (constant_view(node.inputs[1]) for node in self.nodes)
        return [view.source for view in views if view is not None]


def add_corrections(
    graph: ir.Graph, products: Sequence[ir.Node], stored: StoredCorrections, name: str, names: Names
) -> list[ir.Node]:
    """Adds to products of one weight what stands beside it.

    Each product's node becomes the sum, so that its output stays the value that others read; a new node with its name
    and notes multiplies.

    Args:
        graph: the main graph, which holds the constants; products may be inside its control-flow bodies.
        products: MatMul nodes that read the weight as [K, N].
        name: for new values and nodes.
    Returns:
        The nodes that now multiply, in the order of ``products``.
    """
    if stored.low_rank is None:
        return list(products)
    part = stored.low_rank
    down, up = (
        constant(tensor, names.value(f"{name}.{suffix}"))
        for tensor, suffix in ((part.down, "down"), (part.up, "up"))
    )
    graph.register_initializer(down)
    graph.register_initializer(up)
    return [_add_low_rank(product, part, down, up, names) for product in products]


def corrections_of(product: ir.Node) -> Iterator[LowRankForm]:
    """What is added to a quantized product, in order; offsets of its weight come before."""
    value = with_offsets(product)
    while True:
        found = next((form for user in value.consumers() if (form := _sum_with(user, value))), None)
        if found is None or found.down.inputs[0] is not product.inputs[0]:
            return
        yield found
        value = found.total.outputs[0]


def correction_at(node: ir.Node) -> LowRankForm | None:
    """The correction beside a quantized product that this MatMul is a node of, or None."""
    for value in (node.outputs[0], *(user.outputs[0] for user in node.outputs[0].consumers())):
        for total in value.consumers():
            for index, other in enumerate(total.inputs[:2]):
                form = None if other is None else _sum_with(total, other)
                if form is None or node not in form.nodes:
                    continue
                product = _product_behind(total.inputs[index])
                if product is not None and product.inputs[0] is form.down.inputs[0]:
                    return form
    return None


def corrected_output(product: ir.Node) -> ir.Value:
    """The product's output with all that is added to it."""
    value = with_offsets(product)
    for form in corrections_of(product):
        value = form.total.outputs[0]
    return value


def _add_low_rank(
    product: ir.Node, part: StoredLowRank, down: ir.Value, up: ir.Value, names: Names
) -> ir.Node:
    x, weight, result = product.inputs[0], product.inputs[1], product.outputs[0]
    assert x is not None and weight is not None and product.graph is not None
    dtype = result.dtype or weight.dtype or part.up.dtype
    made: list[ir.Node] = []

    def add(
        op_type: str, inputs: list[ir.Value], suffix: str, width: int | None = None, **attributes: int
    ) -> ir.Value:
        output = ir.Value(name=names.value(f"{result.name}.{suffix}"))
        node = ir.node(
            op_type, inputs, attributes=attributes, outputs=[output],
            name=names.node(f"{product.name}.{suffix}"),
        )  # fmt: skip
        set_info(output, dtype, inputs[0].shape if width is None else _with_last(result.shape, width))
        made.append(node)
        return output

    if part.up.dtype != dtype:
        down, up = (
            add("Cast", [value], suffix, to=dtype.value)
            for value, suffix in ((down, "down.cast"), (up, "up.cast"))
        )
    multiplied = add("MatMul", [x, weight], "codes")
    multiply = made[-1]
    multiply.metadata_props.update(product.metadata_props)
    multiplied.shape = result.shape
    narrow = add("MatMul", [x, down], "narrow", part.rank)
    wide = add("MatMul", [narrow, up], "low_rank", part.n)
    product.graph.insert_before(product, made)
    _become_sum(product, multiply, wide, names)
    return multiply


def _become_sum(product: ir.Node, multiply: ir.Node, addend: ir.Value, names: Names) -> None:
    """The old node adds; its name goes to the one that multiplies."""
    product.op_type = "Add"
    product.metadata_props.clear()
    product.replace_input_with(0, multiply.outputs[0])
    product.replace_input_with(1, addend)
    multiply.name, product.name = product.name, names.node(f"{product.name}.corrected")


def _with_last(shape: ir.Shape | None, size: int) -> ir.Shape | None:
    return None if shape is None else ir.Shape([*list(shape)[:-1], size])


def _sum_with(total: ir.Node, value: ir.Value) -> LowRankForm | None:
    """The part of low rank that ``total`` adds to ``value``."""
    if total.op_type != "Add" or total.domain != "" or len(total.inputs) != 2:
        return None
    other = total.inputs[1] if total.inputs[0] is value else total.inputs[0]
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
    """The quantized product behind a value, whatever else is added to it."""
    node = None if value is None else value.producer()
    if node is None:
        return None
    if node.op_type == "Add" and node.domain == "":
        behind = (_product_behind(operand) for operand in node.inputs)
        return next((found for found in behind if found is not None), None)
    return node if is_quantized_product(node) else None


def is_quantized_product(node: ir.Node) -> bool:
    """Whether it multiplies with a constant that is stored in codes."""
    if node.domain == DOMAIN:
        return node.op_type in ("MatMulNBits", "MatMulBnb4")
    weight = node.inputs[1] if node.op_type == "MatMul" and node.domain == "" else None
    return weight is not None and is_constant(weight) and constant_view(weight) is None
