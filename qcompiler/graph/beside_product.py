"""Nodes that stand beside a product and are added to it: the part that all corrections of a weight share (see ``correction_form``)."""

from collections.abc import Sequence

import onnx_ir as ir

from qcompiler.graph.edits import Names, set_info
from qcompiler.graph.quantized import KEYS

CORRECTION_KEY = f"{KEYS}correction"
"""In the metadata of the nodes that make a correction: the name of the product that it belongs to."""


class BesideProduct:
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

    def in_its_type(self, value: ir.Value, suffix: str) -> ir.Value:
        """A constant as the product's type."""
        if value.dtype == self.dtype:
            return value
        return self.add("Cast", [value], f"{suffix}.cast", value.shape, to=self.dtype.value)

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
