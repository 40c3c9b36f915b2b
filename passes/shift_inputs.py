"""Take a constant out of the channels of an activation before it is rounded, and give it back behind the products.

    x W^T = (x - z) W^T + z W^T

*Given* linears that read one activation x, and z [K].
*Result* the same function: x - z in the bias of the LayerNormalization that makes x for these linears alone, or in an Add of its own; z W^T
in the bias that follows a product, or in an Add of its own.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.graph.edits import Names, add_initializer, drop_unused, replace_value, set_info
from qcompiler.graph.weight_store import WeightStore
from qcompiler.graph.weights import constant_view

Float = npt.NDArray[np.float32]


@dataclass(frozen=True)
class AppliedShift:
    """What a shift changed in the graph, in words that another run of the same compile understands.

    Attributes:
        shift: float32 [K], what was taken out.
        norm: the LayerNormalization, by its first output, that took it over; "" for an Add of its own.
        biases: the products, by their outputs, with float32 [N], what each is given back.
        dtype: of the activation.
    """

    shift: Float
    norm: str
    biases: Mapping[str, Float]
    dtype: str

    def record(self, store: WeightStore) -> dict[str, Any]:
        """Plain values for JSON, with the numbers in ``store``."""

        def held(values: Float) -> list[int]:
            return [
                store.add(values, ir.DataType.FLOAT, values.shape, "shift").offset or 0,
                len(values),
            ]

        biases = {name: held(bias) for name, bias in self.biases.items()}
        return {"shift": held(self.shift), "norm": self.norm, "biases": biases, "dtype": self.dtype}

    @classmethod
    def restore(cls, record: dict[str, Any], store: WeightStore) -> "AppliedShift":
        """What ``record`` described; the numbers are read from the spill file."""

        def read(place: Sequence[int]) -> Float:
            return store.at(place[0], ir.DataType.FLOAT, (place[1],), "shift").numpy()

        biases = {name: read(place) for name, place in record["biases"].items()}
        return cls(read(record["shift"]), record["norm"], biases, record["dtype"])

    def apply_again(self, model: ir.Model, by_output: dict[str, ir.Node], names: Names) -> None:
        """The same edits as the first time; ``by_output`` gets the nodes that they add."""
        readers = [by_output[output] for output in self.biases]
        norm = by_output[self.norm] if self.norm else None
        for node in self.apply(model, readers, norm, names):
            by_output[node.outputs[0].name or ""] = node

    def apply(
        self, model: ir.Model, readers: Sequence[ir.Node], norm: ir.Node | None, names: Names
    ) -> list[ir.Node]:
        """Edits the graph; the nodes that are new."""
        made = []
        dtype = ir.DataType[self.dtype]
        if norm is not None:
            _add_to_vector(model, norm, 2, -self.shift, names)
        else:
            made.append(_insert_add(model, readers, -self.shift, dtype, names))
        for node, bias in zip(readers, self.biases.values(), strict=True):
            made += _give_back(model, node, bias, dtype, names)
        return made


def norm_that_can_shift(value: ir.Value, readers: Collection[ir.Node]) -> ir.Node | None:
    """The LayerNormalization with a bias that makes ``value`` for these readers alone, or None."""
    node = value.producer()
    if (
        node is None
        or node.op_type != "LayerNormalization"
        or node.domain != ""
        or value is not node.outputs[0]
    ):
        return None
    alone = not value.is_graph_output() and all(user in readers for user in value.consumers())
    bias = constant_view(node.inputs[2]) if len(node.inputs) > 2 else None
    return node if alone and bias is not None and len(bias.shape) == 1 else None


def why_not_shifted(readers: Collection[ir.Node], nodes: Collection[ir.Node]) -> str | None:
    """Why products cannot be given back what is taken out of their input, or None.

    Args:
        nodes: of the segment, inside which everything that is changed has to lie.
    """
    for node in readers:
        result = node.outputs[0]
        if (
            node.op_type != "MatMul"
            or result.is_graph_output()
            or any(user not in nodes for user in result.consumers())
        ):
            return f"{node.name or node.op_type} hands its output on to another segment, or is no MatMul"
    return None


def _insert_add(
    model: ir.Model, readers: Sequence[ir.Node], addend: Float, dtype: ir.DataType, names: Names
) -> ir.Node:
    """Adds to the first input of the readers, which is one value."""
    first = readers[0]
    value = first.inputs[0]
    assert first.graph is not None and value is not None
    name = names.value(f"{value.name}.shift")
    operand = add_initializer(
        model.graph, ir.Tensor(addend.astype(dtype.numpy()), dtype=dtype, name=name), name
    )
    output = ir.Value(name=names.value(f"{value.name}.shifted"))
    set_info(output, dtype, value.shape)
    node = ir.node("Add", [value, operand], outputs=[output], name=names.node(f"{value.name}.subtract"))
    first.graph.insert_before(first, node)
    for reader in readers:
        reader.replace_input_with(0, output)
    return node


def _give_back(
    model: ir.Model, product: ir.Node, bias: Float, dtype: ir.DataType, names: Names
) -> list[ir.Node]:
    result = product.outputs[0]
    users = list(result.uses())
    if len(users) == 1 and users[0].node.op_type == "Add" and users[0].node.domain == "":
        add, place = users[0].node, 1 - users[0].idx
        view = constant_view(add.inputs[place])
        if view is not None and view.shape == bias.shape:
            _add_to_vector(model, add, place, bias, names)
            return []
    name = names.value(f"{result.name}.shift_bias")
    operand = add_initializer(
        model.graph, ir.Tensor(bias.astype(dtype.numpy()), dtype=dtype, name=name), name
    )
    output = ir.Value(name=names.value(f"{result.name}.shifted_back"))
    set_info(output, dtype, result.shape)
    node = ir.node("Add", [result, operand], outputs=[output], name=names.node(f"{product.name}.shift_back"))
    assert product.graph is not None
    product.graph.insert_after(product, node)
    replace_value(result, output, keep=(node,))
    return [node]


def _add_to_vector(model: ir.Model, node: ir.Node, index: int, addend: Float, names: Names) -> None:
    """Gives the node a copy: the original may be shared with other nodes."""
    value = node.inputs[index]
    view = constant_view(value)
    assert value is not None and view is not None
    total = (np.asarray(view.array(), np.float32) + addend).astype(view.dtype.numpy())
    name = names.value(f"{value.name}.shifted")
    fresh = add_initializer(model.graph, ir.Tensor(total, dtype=view.dtype, name=name), name)
    node.replace_input_with(index, fresh)
    drop_unused(value)
