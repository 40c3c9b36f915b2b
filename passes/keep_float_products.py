"""Keep ONNX Runtime from rounding the weights of products that are to stay float between integers.

*Given* a Conv, ConvTranspose or Gemm of float weights that reads what DequantizeLinear makes with one scale, or what only
moves those numbers (MaxPool, Reshape, Transpose).
*Result* it reads a DequantizeLinear of its own on the same codes, with that scale once for each channel: the same numbers.

ONNX Runtime 1.20 and later rounds such float weights to int8 by itself, with one scale for all of a tensor (its transformer
WeightBiasQuantization, from level BASIC on), and makes an integer product of it: a layer that a recipe leaves float would
be the worst of all. It does so only where the input's scale is a single number.
"""

import numpy as np
import onnx_ir as ir
from onnx_ir.traversal import RecursiveGraphIterator

from qcompiler.graph.edits import Names, add_initializer, drop_unused, set_info

_PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm"})
_MOVES = frozenset(
    {"Flatten", "Identity", "MaxPool", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"}
)
"""What ONNX Runtime moves a DequantizeLinear behind, so that a product reads it there; their numbers have the same codes."""


class KeepFloatProducts(ir.passes.InPlacePass):
    """The pass; ``left`` names products of one channel, whose weights ONNX Runtime rounds all the same.

    Args:
        asked_for: whether integers are put between products at all; else nothing is done.
    """

    def __init__(self, asked_for: bool) -> None:
        super().__init__()
        self._asked_for = asked_for
        self.left: list[str] = []

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        every = RecursiveGraphIterator(model.graph)
        nodes = [node for node in every if node.op_type in _PRODUCTS and node.domain == ""]
        names: Names | None = None
        for node in nodes if self._asked_for else []:
            found = _dequantized(node)
            if found is None or not _reads_float_weights(node):
                continue
            channels = _channels(node)
            if channels < 2:  # a list of one scale counts as a single one
                line = f"{node.name}: is to stay float, and ONNX Runtime 1.20 and later rounds its weights with one scale for all"
                self.left += [line] if line not in self.left else []
                continue
            names = names or Names(model)
            _give_its_own(node, found, channels, names, model.graph)
        return ir.passes.PassResult(model, modified=names is not None)


def _dequantized(product: ir.Node) -> ir.Node | None:
    """The DequantizeLinear with one scale whose numbers the product reads, in the graph of both: ONNX Runtime looks at one at a time."""
    value = product.inputs[0]
    while value is not None and (maker := value.producer()) is not None and maker.graph is product.graph:
        if maker.op_type == "DequantizeLinear":
            scale, point = maker.inputs[1], _zero_point(maker)
            known = None if scale is None else scale.const_value
            fits = _code_type(maker) is not None and (point is None or point.const_value is not None)
            return maker if fits and known is not None and known.size == 1 else None
        if maker.op_type not in _MOVES or maker.domain != "":
            return None
        value = maker.inputs[0]
    return None


def _zero_point(dequantize: ir.Node) -> ir.Value | None:
    return dequantize.inputs[2] if len(dequantize.inputs) > 2 else None


def _code_type(dequantize: ir.Node) -> ir.DataType | None:
    """Of 8 bits, as its zero point or its codes say; None of any other, or where nothing says it."""
    for value in (_zero_point(dequantize), dequantize.inputs[0]):
        known = None if value is None else value.const_value.dtype if value.const_value else value.dtype
        if known is not None:
            return known if known in (ir.DataType.UINT8, ir.DataType.INT8) else None
    return None


def _reads_float_weights(product: ir.Node) -> bool:
    weight = product.inputs[1]
    known = None if weight is None else weight.const_value
    return known is not None and known.dtype == ir.DataType.FLOAT


def _channels(product: ir.Node) -> int:
    """How long the channel axis of what it reads is."""
    weight = product.inputs[1]
    assert weight is not None and weight.const_value is not None
    shape = tuple(weight.const_value.shape.numpy())
    if product.op_type == "Gemm":
        return shape[1] if product.attributes.get_int("transB", 0) else shape[0]
    return (
        shape[0] if product.op_type == "ConvTranspose" else shape[1] * product.attributes.get_int("group", 1)
    )


def _give_its_own(product: ir.Node, dequantize: ir.Node, channels: int, names: Names, root: ir.Graph) -> None:
    x, graph = product.inputs[0], product.graph
    assert x is not None and isinstance(graph, ir.Graph)
    base = x.name or ""
    made: list[ir.Node] = []
    codes, scale = dequantize.inputs[:2]
    dtype, point = _code_type(dequantize), _zero_point(dequantize)
    assert codes is not None and dtype is not None
    if point is None:  # 0 of the codes' type; without, QuantizeLinear makes uint8
        zero = names.value(f"{base}.zero_point")
        point = add_initializer(root, ir.Tensor(np.array(0, dtype.numpy()), name=zero), zero)
    if x is not dequantize.outputs[0]:  # moved on the way: its numbers still lie on that grid
        moved = ir.Value(name=names.value(f"{base}.codes"))
        set_info(moved, dtype, x.shape)
        made.append(
            ir.node(
                "QuantizeLinear",
                [x, scale, point],
                outputs=[moved],
                name=names.node(f"{base}.quantize"),
            )
        )
        codes = moved
    repeated = [_repeated(root, value, channels, names) for value in (scale, point) if value is not None]
    output = ir.Value(name=names.value(f"{base}.channels"))
    set_info(output, x.dtype or ir.DataType.FLOAT, x.shape)
    turned = product.op_type == "Gemm" and product.attributes.get_int("transA", 0) == 1
    made.append(
        ir.node(
            "DequantizeLinear",
            [codes, *repeated],
            attributes={"axis": 0 if turned else 1},
            outputs=[output],
            name=names.node(f"{base}.dequantize"),
        )
    )
    graph.insert_before(product, made)
    product.replace_input_with(0, output)
    drop_unused(x)


def _repeated(graph: ir.Graph, value: ir.Value, channels: int, names: Names) -> ir.Value:
    assert value.const_value is not None
    name = names.value(f"{value.name}.of_channels")
    array = np.full(channels, value.const_value.numpy().reshape(-1)[0])
    return add_initializer(graph, ir.Tensor(array, name=name), name)
