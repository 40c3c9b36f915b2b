"""Lower quantized weights to ONNX Runtime's com.microsoft::MatMulNBits and GatherBlockQuantized.

*Given* the middle form: DequantizeLinear of constants -> MatMul, -> Transpose -> MatMul, or -> Gather.
*Result* one node for each product, reading packed bytes. An embedding tied to a head shares its bytes: the file holds them once, as
[N, bytes], and MatMulNBits reads them through a Reshape to [N, G, bytes]. Rows with a short last block are gathered with its padding,
which a Slice then cuts off. A weight with groups of rows stays as it is: no kernel reads it; so does one whose scales are computed by nodes
(``LowerWithOffsets``).

Scales that one row or the whole weight shares are repeated for each block: the kernel takes blocks of 16 to 256 only.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.graph.edits import Names, add_initializer, drop_unused, replace_value, set_info
from qcompiler.graph.float8_form import is_float8
from qcompiler.graph.kernel_node import DOMAIN, LoweredNode, swap_kernel
from qcompiler.graph.offset_form import offset_form
from qcompiler.graph.packed_weight import PackedWeight, packed_weight
from qcompiler.graph.quantized import SCHEME_KEY, layout_of

PACKED_INPUT = {"MatMulNBits": 1, "GatherBlockQuantized": 0}


class LowerToMatMulNBits(ir.passes.InPlacePass):
    """The pass.

    Args:
        accuracy_level: 4 computes with int8 activations, 0 in the activation's float type.
    """

    def __init__(self, accuracy_level: int) -> None:
        super().__init__()
        self._accuracy_level = accuracy_level
        self.lowered: list[LoweredNode] = []

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        self._graph = model.graph
        self._names = Names(model)
        before = len(self.lowered)
        for node in list(model.graph):
            if (
                node.op_type != "DequantizeLinear"
                or node.domain != ""
                or SCHEME_KEY not in node.metadata_props
            ):
                continue
            if is_float8(node):
                continue  # no kernel of this kind reads it
            if offset_form(node) is None and not _is_kernel(
                node
            ):  # scales of two levels are computed: LowerWithOffsets judges those
                self._lower(node)
        if self.lowered:
            model.graph.opset_imports.setdefault(DOMAIN, 1)
        return ir.passes.PassResult(model, modified=len(self.lowered) > before)

    def _lower(self, dequantize: ir.Node) -> None:
        products, gathers = _readers(dequantize)
        if not products and not gathers:
            return  # no kernel reads it
        weight = packed_weight(dequantize)
        constants = _Constants(self._graph, self._names, weight, shared=bool(gathers))
        for product in products:
            self._emit_product(product, weight, constants, dequantize)
        for gather in gathers:
            self._emit_gather(gather, weight, constants, dequantize)
        for output in dequantize.outputs:
            for reader in {node for node, _ in output.uses()}:
                drop_unused(reader.outputs[0])
            drop_unused(output)

    def _emit_product(
        self, product: ir.Node, weight: PackedWeight, constants: "_Constants", dequantize: ir.Node
    ) -> None:
        inputs = [product.inputs[0], constants.blocks(), constants.scales]
        if constants.zero_points is not None:
            inputs.append(constants.zero_points)
        attributes = {
            "K": weight.k, "N": weight.n, "bits": weight.bits, "block_size": weight.block, "accuracy_level": self._accuracy_level,
        }  # fmt: skip
        self._swap(product, "MatMulNBits", inputs, attributes, dequantize)

    def _emit_gather(
        self, gather: ir.Node, weight: PackedWeight, constants: "_Constants", dequantize: ir.Node
    ) -> None:
        inputs = [constants.rows, gather.inputs[1], constants.scales]
        if constants.zero_points is not None:
            inputs.append(constants.zero_points)
        attributes = {"bits": weight.bits, "block_size": weight.block, "gather_axis": 0, "quantize_axis": 1}
        node = self._swap(gather, "GatherBlockQuantized", inputs, attributes, dequantize)
        if weight.is_padded:
            self._cut_padding(node, weight, constants)

    def _cut_padding(self, gather: ir.Node, weight: PackedWeight, constants: "_Constants") -> None:
        """The first K of each gathered row go on under the old name."""
        whole, graph = gather.outputs[0], gather.graph
        assert graph is not None
        cut = ir.Value(name=self._names.value(f"{whole.name}.cut"), type=whole.type, shape=whole.shape)
        starts, ends, axes = (
            constants.integers(number, key)
            for number, key in ((0, "first"), (weight.k, "width"), (-1, "last_axis"))
        )
        node = ir.node(
            "Slice", [whole, starts, ends, axes], outputs=[cut], name=self._names.node(f"{gather.name}.cut")
        )
        graph.insert_after(gather, node)
        replace_value(whole, cut, keep=(node,))
        if not cut.is_graph_output():
            whole.name, cut.name = cut.name, whole.name
        if whole.shape is not None:
            groups = -(-weight.k // weight.block)
            whole.shape = ir.Shape([*list(whole.shape)[:-1], groups * weight.block])

    def _swap(
        self,
        old: ir.Node,
        op_type: str,
        inputs: list[ir.Value | None],
        attributes: dict[str, int],
        dequantize: ir.Node,
    ) -> ir.Node:
        node = swap_kernel(old, op_type, inputs, attributes, dequantize, self._names)
        packed = inputs[PACKED_INPUT[op_type]]
        assert packed is not None
        self.lowered.append(LoweredNode(node.name or "", op_type, packed.name or ""))
        return node


def _is_kernel(dequantize: ir.Node) -> bool:
    """Whether it makes a convolution's kernel."""
    shape = dequantize.outputs[0].shape
    return shape is not None and len(shape) > 2


def _is_rounded(product: ir.Node) -> bool:
    """Whether the activations have static ranges: ONNX Runtime makes an integer product of it."""
    x = product.inputs[0]
    restored = None if x is None else x.producer()
    if restored is None or restored.op_type != "DequantizeLinear" or restored.inputs[0] is None:
        return False
    rounding = restored.inputs[0].producer()
    return rounding is not None and rounding.op_type == "QuantizeLinear"


def _readers(dequantize: ir.Node) -> tuple[list[ir.Node], list[ir.Node]]:
    """MatMul nodes that multiply with the weight, and Gather nodes that read its rows, where groups are along K."""
    layout = layout_of(dequantize)
    products: list[ir.Node] = []
    gathers: list[ir.Node] = []
    for node, index in dequantize.outputs[0].uses():
        rows = node.op_type == "Gather" and index == 0 and node.attributes.get_int("axis", 0) == 0
        if rows and layout == "nk":
            gathers.append(node)
        elif node.op_type == "Transpose" and layout == "nk":
            products += [
                user for user, place in node.outputs[0].uses() if user.op_type == "MatMul" and place == 1
            ]
        elif node.op_type == "MatMul" and index == 1 and layout == "kn" and not _is_rounded(node):
            products.append(node)
    return products, gathers


class _Constants:
    """The initializers of one weight, made when first asked for."""

    def __init__(self, graph: ir.Graph, names: Names, weight: PackedWeight, shared: bool) -> None:
        self._graph = graph
        self._names = names
        self._weight = weight
        self._shared = shared
        self._blocks: ir.Value | None = None
        self._rows: ir.Value | None = None
        self.scales = self._add(weight.scales, "scales")
        self.zero_points = (
            None if weight.zero_points is None else self._add(weight.zero_points, "zero_points")
        )

    def _add(self, tensor: ir.TensorProtocol | npt.NDArray[Any], suffix: str) -> ir.Value:
        name = self._names.value(f"{self._weight.name}.{suffix}")
        if isinstance(tensor, np.ndarray):
            tensor = ir.Tensor(tensor, name=name)
        return add_initializer(self._graph, tensor, name)

    @property
    def rows(self) -> ir.Value:
        """uint8 [N, G * block * bits / 8]."""
        if self._rows is None:
            self._rows = self._add(self._weight.rows(), "weight")
        return self._rows

    def blocks(self) -> ir.Value:
        """uint8 [N, G, block * bits / 8]."""
        if self._blocks is None:
            self._blocks = self._reshaped() if self._shared else self._add(self._weight.blocks(), "weight")
        return self._blocks

    def integers(self, number: int, suffix: str) -> ir.Value:
        """int64 [1]."""
        return self._add(np.array([number], np.int64), suffix)

    def _reshaped(self) -> ir.Value:
        shape = self._add(np.array(self._weight.block_shape, np.int64), "block_shape")
        output = ir.Value(name=self._names.value(f"{self._weight.name}.blocks"))
        set_info(output, ir.DataType.UINT8, ir.Shape(list(self._weight.block_shape)))
        node = ir.node(
            "Reshape",
            [self.rows, shape],
            outputs=[output],
            name=self._names.node(f"{self._weight.name}.reshape"),
        )
        self._graph.insert_before(self._graph[0], node)
        return output
