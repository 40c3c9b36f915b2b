"""Lower products of rounded activations and 8-bit weights with one scale an output to ONNX Runtime's integer kernels.

*Given* MatMul of activations that FakeQuantRows, or QuantizeLinear or DynamicQuantizeLinear and a DequantizeLinear, rounded, and a
DequantizeLinear of int8 codes [K, N] with scales [N] or [], all float32; without zero points but where the activations' range is constant.
*Result*, on the same codes and scales: for a scale for each row, the row as uint8 with zero point 128, once for all products that read it,
com.microsoft::MatMulIntegerToFloat, and a Mul with the row's scale; for one scale for all rows, com.microsoft::DynamicQuantizeMatMul; for
one that is constant, com.microsoft::MatMulIntegerToFloat, which ONNX Runtime makes itself but where a bias follows a product of 2-D rows.

int8 x int8 would be what the numbers are, but ONNX Runtime's kernel for that is 95 times as slow as the one for uint8 x int8.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.graph.edits import Names, add_initializer, all_nodes, drop_unused, replace_value, set_info
from qcompiler.graph.fake_quant_rows import is_fake_quant_rows
from qcompiler.graph.kernel_node import DOMAIN, LoweredNode
from qcompiler.graph.quantized import KEYS, SCHEME_KEY, layout_of
from qcompiler.quant.activations import SMALLEST, STEPS

MIDDLE = 128  # of uint8: what 0 becomes


class LowerToIntegers(ir.passes.InPlacePass):
    """The pass; ``lowered`` lists what has to run as an integer product.

    Args:
        rows: whether products with a scale for each row are meant too; False where other kernels are to have them.
    """

    def __init__(self, rows: bool = True) -> None:
        super().__init__()
        self._rows = rows
        self.lowered: list[LoweredNode] = []

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        before = len(self.lowered)
        rows = _RoundedRows(model.graph, Names(model))
        for node in list(all_nodes(model)):
            if node.op_type != "MatMul" or node.domain != "":
                continue
            x = node.inputs[0]
            static, weight = _static_codes(x), _weight(node)
            if weight is None:
                continue
            if static is not None:
                self._lower_static(node, weight, static, rows.names)
            elif (
                weight.inputs[0] is None
                or weight.inputs[0].dtype != ir.DataType.INT8
                or len(weight.inputs) > 2
            ):
                continue  # with zero points there is no such kernel for ranges that every run finds
            elif self._rows and _is_float(_source_of_rows(x)):
                self._lower_rows(node, weight, rows)
            elif _is_float(_dynamic_source(x)):
                self._lower_tensor(node, weight, rows.names)
        if len(self.lowered) > before:
            model.graph.opset_imports.setdefault(DOMAIN, 1)
        return ir.passes.PassResult(model, modified=len(self.lowered) > before)

    def _lower_rows(self, node: ir.Node, weight: ir.Node, rows: "_RoundedRows") -> None:
        rounded, result, graph = node.inputs[0], node.outputs[0], node.graph
        assert rounded is not None and graph is not None
        row = rows.of(rounded)
        product = ir.Value(name=rows.names.value(f"{result.name}.unscaled"))
        set_info(product, ir.DataType.FLOAT, result.shape)
        output = ir.Value(name=rows.names.value(f"{result.name}.quantized"))
        set_info(output, ir.DataType.FLOAT, result.shape)
        inputs = [row.codes, weight.inputs[0], rows.one, weight.inputs[1], rows.middle]
        made = ir.node("MatMulIntegerToFloat", inputs, domain=DOMAIN, outputs=[product], name=node.name)
        scaled = ir.node(
            "Mul", [product, row.scale], outputs=[output], name=rows.names.node(f"{node.name}.scale")
        )
        self._put(node, weight, [made, scaled])

    def _lower_tensor(self, node: ir.Node, weight: ir.Node, names: Names) -> None:
        x, result = node.inputs[0], node.outputs[0]
        output = ir.Value(name=names.value(f"{result.name}.quantized"))
        set_info(output, ir.DataType.FLOAT, result.shape)
        made = ir.node(
            "DynamicQuantizeMatMul",
            [_dynamic_source(x), weight.inputs[0], weight.inputs[1]],
            domain=DOMAIN,
            outputs=[output],
            name=node.name,
        )
        self._put(node, weight, [made])

    def _lower_static(self, node: ir.Node, weight: ir.Node, x: ir.Node, names: Names) -> None:
        result = node.outputs[0]
        output = ir.Value(name=names.value(f"{result.name}.quantized"))
        set_info(output, ir.DataType.FLOAT, result.shape)
        codes, scale, zero_point = x.inputs
        inputs = [codes, weight.inputs[0], scale, weight.inputs[1], zero_point, *weight.inputs[2:]]
        made = ir.node("MatMulIntegerToFloat", inputs, domain=DOMAIN, outputs=[output], name=node.name)
        self._put(node, weight, [made])

    def _put(self, node: ir.Node, weight: ir.Node, made: list[ir.Node]) -> None:
        """``made`` for ``node``: the first multiplies, the last has the result, which keeps its name."""
        graph, old, new, rounded = node.graph, node.outputs[0], made[-1].outputs[0], node.inputs[0]
        codes = weight.inputs[0]
        assert graph is not None and rounded is not None and codes is not None
        made[0].metadata_props.update(node.metadata_props)
        made[0].metadata_props.update({k: v for k, v in weight.metadata_props.items() if k.startswith(KEYS)})
        graph.insert_before(node, made)
        replace_value(old, new)
        graph.remove(node, safe=True)
        if not new.is_graph_output():
            old.name, new.name = new.name, old.name
        self.lowered.append(LoweredNode(made[0].name or "", made[0].op_type, codes.name or ""))
        drop_unused(weight.outputs[0])
        drop_unused(rounded)


def _weight(node: ir.Node) -> ir.Node | None:
    """The DequantizeLinear of a product's 8-bit weight that such kernels read, with zero points or without."""
    value = node.inputs[1]
    weight = None if value is None else value.producer()
    if weight is None or weight.op_type != "DequantizeLinear" or SCHEME_KEY not in weight.metadata_props:
        return None
    codes, scale = weight.inputs[0], weight.inputs[1]
    if codes is None or scale is None or codes.const_value is None:
        return None
    in_bytes = codes.dtype in (ir.DataType.INT8, ir.DataType.UINT8)
    whole = "block_size" not in weight.attributes
    return (
        weight
        if in_bytes and whole and scale.dtype == ir.DataType.FLOAT and layout_of(weight) == "kn"
        else None
    )


def _is_float(value: ir.Value | None) -> bool:
    return value is not None and value.dtype == ir.DataType.FLOAT


def _source_of_rows(value: ir.Value | None) -> ir.Value | None:
    """What FakeQuantRows made ``value`` of."""
    node = value.producer() if value is not None and is_fake_quant_rows(value) else None
    return None if node is None else node.inputs[0]


def _dynamic_source(value: ir.Value | None) -> ir.Value | None:
    """What DynamicQuantizeLinear and DequantizeLinear made ``value`` of."""
    restored = None if value is None else value.producer()
    if restored is None or restored.op_type != "DequantizeLinear" or restored.domain != "":
        return None
    codes = restored.inputs[0]
    rounding = None if codes is None else codes.producer()
    if rounding is None or rounding.op_type != "DynamicQuantizeLinear":
        return None
    return rounding.inputs[0] if list(restored.inputs) == list(rounding.outputs) else None


def _static_codes(value: ir.Value | None) -> ir.Node | None:
    """The DequantizeLinear of float32 that QuantizeLinear rounded to uint8 with one scale, behind ``value``."""
    restored = None if value is None else value.producer()
    if (
        restored is None
        or restored.op_type != "DequantizeLinear"
        or restored.domain != ""
        or len(restored.inputs) != 3
    ):
        return None
    codes, scale, zero_point = restored.inputs
    rounding = None if codes is None else codes.producer()
    if (
        rounding is None
        or rounding.op_type != "QuantizeLinear"
        or list(rounding.inputs[1:]) != [scale, zero_point]
    ):
        return None
    one = scale is not None and scale.const_value is not None and scale.const_value.size == 1
    kinds = zero_point is not None and zero_point.dtype == ir.DataType.UINT8 and _is_float(rounding.inputs[0])
    return restored if one and kinds else None


@dataclass(frozen=True)
class _Row:
    codes: ir.Value  # uint8, zero point MIDDLE
    scale: ir.Value  # float32 [.., 1]


class _RoundedRows:
    """Rows in uint8 with their scales, made once for each value, and the constants that they need."""

    def __init__(self, graph: ir.Graph, names: Names) -> None:
        self._graph = graph
        self._made: dict[ir.Value, _Row] = {}
        self._constants: dict[str, ir.Value] = {}
        self.names = names

    @property
    def one(self) -> ir.Value:
        return self._constant("one", np.array(1, np.float32))

    @property
    def middle(self) -> ir.Value:
        return self._constant("middle", np.array(MIDDLE, np.uint8))

    def of(self, rounded: ir.Value) -> _Row:
        """For what a FakeQuantRows makes; the nodes go in front of it."""
        if rounded not in self._made:
            self._made[rounded] = self._make(rounded)
        return self._made[rounded]

    def _make(self, rounded: ir.Value) -> _Row:
        node, x = rounded.producer(), _source_of_rows(rounded)
        assert node is not None and x is not None
        last = self._constant("last_axis", np.array([-1], np.int64))
        steps = self._constant("steps", np.array(STEPS, np.float32))
        smallest = self._constant("smallest", np.array(SMALLEST, np.float32))
        shape = None if x.shape is None else ir.Shape([*list(x.shape)[:-1], 1])
        made: list[ir.Node] = []

        def add(
            op: str,
            inputs: list[ir.Value],
            what: str,
            dtype: ir.DataType,
            of: ir.Shape | None,
            **attributes: Any,
        ) -> ir.Value:
            output = ir.Value(name=self.names.value(f"{x.name}.{what}"))
            set_info(output, dtype, of)
            name = self.names.node(f"{x.name}.{what}")
            made.append(ir.node(op, inputs, attributes=attributes, outputs=[output], name=name))
            return output

        float32 = ir.DataType.FLOAT
        sizes = add("Abs", [x], "sizes", float32, x.shape)
        largest = add("ReduceMax", [sizes, last], "largest", float32, shape, keepdims=1)
        felt = add("Max", [largest, smallest], "felt", float32, shape)
        inverse = add("Div", [steps, felt], "inverse", float32, shape)
        scaled = add("Mul", [x, inverse], "steps", float32, x.shape)
        codes = add("QuantizeLinear", [scaled, self.one, self.middle], "codes", ir.DataType.UINT8, x.shape)
        scale = add("Div", [felt, steps], "scale", float32, shape)
        assert node.graph is not None
        node.graph.insert_before(node, made)  # perhaps in a body
        return _Row(codes, scale)

    def _constant(self, what: str, value: npt.NDArray[Any]) -> ir.Value:
        if what not in self._constants:
            name = self.names.value(f"qcompiler.rows.{what}")
            self._constants[what] = add_initializer(self._graph, ir.Tensor(value, name=name), name)
        return self._constants[what]
