"""The middle form of columns of a weight that stay floats: the channels of x that they multiply are picked.

    y = MatMul(x, weight)     becomes     y = Add(MatMul(x, weight), MatMul(Gather(x, channels, axis=-1), columns))

where the codes of these columns mean 0. So that they have no say in how x is rounded either, ``mask_outlier_channels`` sets them to 0 for
the first product once all weights are there. Letters: N outputs, K reduction, C columns.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.graph.beside_product import BesideProduct
from qcompiler.graph.edits import Names
from qcompiler.graph.node_chain import constant_of
from qcompiler.graph.weights import constant_view
from qcompiler.quant.outlier_columns import columns_label


@dataclass(frozen=True, eq=False)
class ColumnForm:
    """Float columns beside a product.

    Attributes:
        pick: the Gather; ``product`` the MatMul behind it, ``total`` the Add.
    """

    pick: ir.Node
    product: ir.Node
    total: ir.Node
    kind = "outlier columns"

    @property
    def channels(self) -> npt.NDArray[np.int64]:
        """int64 [C], rising."""
        tensor = constant_of(self.pick, 1)
        assert tensor is not None
        return np.asarray(tensor.numpy(), np.int64)

    def label(self, size: int) -> str:
        """Short text for reports: "7 outlier columns"."""
        return columns_label(self.channels.size)

    @property
    def x(self) -> ir.Value | None:
        """What it picks from."""
        return self.pick.inputs[0]

    @property
    def nodes(self) -> tuple[ir.Node, ...]:
        """The products of the correction."""
        return (self.product,)

    @property
    def sources(self) -> list[ir.Value]:
        """The initializers it reads."""
        view, places = constant_view(self.product.inputs[1]), self.pick.inputs[1]
        return [value for value in (None if view is None else view.source, places) if value is not None]


def add_columns(product: ir.Node, values: ir.Value, places: ir.Value, names: Names) -> ir.Node:
    """Adds float columns to a product; the node that now multiplies in its place.

    Args:
        values: [C, N], a constant.
        places: int64 [C], likewise.
    """
    beside, shape = BesideProduct(product, names), product.outputs[0].shape
    assert places.shape is not None
    count = places.shape[0]
    columns = beside.in_its_type(values, "columns")
    picked_shape = None if beside.x.shape is None else ir.Shape([*list(beside.x.shape)[:-1], count])
    picked = beside.add("Gather", [beside.x, places], "picked", picked_shape, axis=-1)
    return beside.finish(beside.add("MatMul", [picked, columns], "columns", shape))


def columns_in(total: ir.Node, addend: ir.Value) -> ColumnForm | None:
    """Float columns that ``total`` adds as ``addend``."""
    product = addend.producer()
    if product is None or product.op_type != "MatMul" or product.domain != "" or len(addend.uses()) != 1:
        return None
    picked = product.inputs[0]
    pick = None if picked is None else picked.producer()
    if pick is None or pick.op_type != "Gather" or pick.domain != "":
        return None
    places, view = constant_of(pick, 1), constant_view(product.inputs[1])
    if places is None or len(places.shape) != 1 or view is None or len(view.final_shape) != 2:
        return None
    x = pick.inputs[0]
    axis, rank = pick.attributes.get_int("axis", 0), None if x is None or x.shape is None else len(x.shape)
    last = axis == -1 or (rank is not None and axis == rank - 1)
    return ColumnForm(pick, product, total) if last and view.final_shape[0] == places.size else None
