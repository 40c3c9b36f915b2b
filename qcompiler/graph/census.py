"""What there is to quantize: every linear, head, embedding, convolution and attention product of a model, found from the graph alone.

*Given* a model whose functions are inlined and whose constants are initializers of the main graph.
*Result* a `Census`: weights with their uses, and the nodes left alone, each with its reason. Nothing is edited.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import onnx_ir as ir

from qcompiler.graph.correction_form import correction_at
from qcompiler.graph.extract import is_constant
from qcompiler.graph.offset_product import is_group_sum, is_offset_part
from qcompiler.graph.operator_body import OUR_DOMAIN
from qcompiler.graph.own_matmul_nbits import PRODUCTS
from qcompiler.graph.product_names import make_names_unique, product_names, uninformative
from qcompiler.graph.stacked_product import StackedProduct, stacked_product
from qcompiler.graph.weight_form import is_in_codes
from qcompiler.graph.weights import (
    FLOAT_TYPES,
    ConstantView,
    Expert,
    Role,
    Weight,
    WeightUse,
    constant_view,
    narrow_type,
)

ALREADY_QUANTIZED = "already quantized"
ALREADY_A_CORRECTION = "already a correction"
A_CONVOLUTION = "a convolution: no weight-only kernel takes one"
SMALLEST_K = 16  # the smallest group any kernel takes


@dataclass(frozen=True)
class LeftAlone:
    """A node that computes a product but has no weight to quantize here, and why."""

    node: ir.Node
    role: Role
    reason: str

    @property
    def name(self) -> str:
        """For people and for the rules of recipes."""
        return self.node.name or self.node.outputs[0].name or self.node.op_type


@dataclass
class Census:
    """All products of a model, in graph order."""

    weights: list[Weight] = field(default_factory=list)
    left_alone: list[LeftAlone] = field(default_factory=list)


def take_census(model: ir.Model) -> Census:
    """Find every weight and every product without one."""
    census = Census()
    by_key: dict[tuple[int, tuple[int, ...], bool, ir.DataType, int | None], Weight] = {}
    for node, top_level, body in _all_nodes(model.graph):
        classified = _classify(node, body)
        if isinstance(classified, str):
            census.left_alone.append(LeftAlone(node, _plain_role(node), classified))
        for found in classified if isinstance(classified, list) else ():
            view = found.view
            key = (id(view.source), view.shape, found.transposed, view.dtype, view.index)
            use = WeightUse(node, found.role, found.input_index, top_level, body)
            if key in by_key:
                by_key[key].uses.append(use)
                continue
            by_key[key] = _weight(found, use)
            census.weights.append(by_key[key])
    _mark_heads(model.graph, census)
    make_names_unique(census.weights)
    return census


def _weight(found: "_Found", use: WeightUse) -> Weight:
    view = found.view
    rows, columns = view.shape[0], math.prod(view.shape[1:])
    if view.index is None:
        name, aliases = product_names(use.node, view.source)
        kernel = view.shape if found.role is Role.CONV else None
        return Weight(
            name, view.source, (rows, columns), found.transposed, view.dtype, [use], aliases, kernel=kernel
        )
    assert view.source.const_value is not None
    count = view.source.const_value.size // (rows * columns)
    # Products of one layer's experts often share their scope; the stack's own name tells them apart.
    scope = product_names(use.node, view.source)[0]
    stack = view.source.name or scope
    names = list(dict.fromkeys([f"{scope}.{stack}" if uninformative(stack) else stack, scope]))
    expert = Expert(names[0], view.index, count)
    aliases = tuple(f"{name}.{view.index}" for name in names[1:])
    return Weight(
        f"{names[0]}.{view.index}", view.source, (rows, columns), found.transposed, view.dtype, [use], aliases, expert
    )  # fmt: skip


def _all_nodes(
    graph: ir.Graph, top_level: ir.Node | None = None, body: str | None = None
) -> Iterator[tuple[ir.Node, ir.Node, str | None]]:
    """Every node with the main graph's node it belongs to and, inside a control-flow body, that body's name."""
    for node in graph:
        top = top_level or node
        yield node, top, body
        for attribute in node.attributes.values():
            inner = f"{node.op_type} {node.name!r}"
            if attribute.type == ir.AttributeType.GRAPH:
                yield from _all_nodes(attribute.as_graph(), top, inner)
            elif attribute.type == ir.AttributeType.GRAPHS:
                for subgraph in attribute.as_graphs():
                    yield from _all_nodes(subgraph, top, inner)


@dataclass(frozen=True)
class _Found:
    view: ConstantView
    role: Role
    input_index: int
    transposed: bool  # storage is [K, N]


def _classify(node: ir.Node, body: str | None) -> "list[_Found] | str | None":
    """Weights, or why this product has none, or None for a node that is no product."""
    if node.domain == OUR_DOMAIN:
        if node.op_type in _QUANTIZED_OPS:
            return ALREADY_QUANTIZED
        beside = correction_at(node)
        return None if beside is None else f"{ALREADY_A_CORRECTION}: {beside.kind} beside a quantized weight"
    if node.domain not in ("", "ai.onnx"):
        if node.op_type == "MoE":
            return "experts inside one operator of ONNX Runtime: export them as products to quantize them"
        return ALREADY_QUANTIZED if node.op_type in _QUANTIZED_OPS else _inside_operator(node)
    if is_offset_part(node) or is_group_sum(node):
        return None  # of a product with a quantized weight
    stacked = stacked_product(node)
    if stacked is not None:
        return stacked if isinstance(stacked, str) else _classify_experts(stacked, body)
    if node.op_type in ("MatMul", "Gemm"):
        found = _classify_linear(node)
        return [found] if isinstance(found, _Found) else found
    if node.op_type == "Gather":
        table = _classify_gather(node)
        return [table] if isinstance(table, _Found) else table
    if node.op_type == "Conv":
        kernel = _classify_convolution(node)
        return [kernel] if isinstance(kernel, _Found) else kernel
    if node.op_type == "ConvTranspose":
        return "a transposed convolution: ONNX Runtime's CPU has no integer kernel for one, and no weight-only kernel takes one"
    if node.op_type in ("LSTM", "GRU", "RNN") and _holds_weight(node):
        return "a recurrent cell: no weight-only kernel takes one"
    if node.op_type == "Einsum" and _holds_weight(node):
        return "an Einsum with a constant: only those of stacked experts are read; export it as MatMul to quantize it"
    return ALREADY_QUANTIZED if node.op_type in _QUANTIZED_OPS else None


_QUANTIZED_OPS = frozenset(
    {
        *PRODUCTS, "MatMulBnb4", "MatMulCodebook", "GatherBlockQuantized", "GatherNBits", "DynamicQuantizeMatMul",
        "MatMulInteger",
        "MatMulIntegerToFloat", "QLinearMatMul", "QLinearConv", "QGemm", "ConvInteger", "QMoE",
    }
)  # fmt: skip


_CONVOLUTIONS = frozenset({"FusedConv", "NhwcConv", "NhwcFusedConv"})

# Their constant matrices are tables of positions, biases of attention or scales: nothing is multiplied by one as by a weight.
_WITHOUT_WEIGHTS = frozenset(
    {
        "RotaryEmbedding", "GemmaRotaryEmbedding", "GroupQueryAttention", "MultiHeadAttention", "PackedMultiHeadAttention",
        "DecoderMaskedMultiHeadAttention", "SparseAttention", "PagedAttention", "RelativePositionBias", "BiasAdd", "BiasSoftmax",
        "QuantizeLinear", "DequantizeLinear", "Pad", "Trilu", "Unique", "ExpandDims",
    }
)  # fmt: skip


def _inside_operator(node: ir.Node) -> str | None:
    """Why weights of an operator that is not ONNX's own (ONNX Runtime fused it, say) are left alone; None where it has none."""
    if node.op_type in _WITHOUT_WEIGHTS or not _holds_weight(node):
        return None
    if node.op_type in _CONVOLUTIONS:
        return A_CONVOLUTION
    if node.domain.startswith("com.microsoft"):
        return f"weights inside {node.op_type}, an operator of ONNX Runtime: export without its fusions to quantize them"
    return (
        f"weights inside {node.op_type}, an operator of {node.domain}: export it as products to quantize them"
    )


def _holds_weight(node: ir.Node) -> bool:
    """One of its inputs is a constant matrix or stack of floats."""
    views = [constant_view(value) for value in node.inputs]
    return any(view is not None and view.dtype in FLOAT_TYPES and len(view.shape) >= 2 for view in views)


def _classify_experts(stacked: StackedProduct, body: str | None) -> list[_Found] | str:
    """Each expert of a stack is a weight of its own."""
    k, n = stacked.k, stacked.n
    if body is not None:
        return f"experts inside {body}: products are split into experts in the main graph only"
    if stacked.view.dtype not in FLOAT_TYPES:
        return f"the weight is {stacked.view.dtype.name}, not a float type"
    if k < SMALLEST_K:
        return f"K={k} is less than the smallest group ({SMALLEST_K})"
    if n < 1:
        return "the weight is empty"
    matrix = stacked.view.shape[1:]
    return [
        _Found(replace(stacked.view, shape=matrix, index=index), Role.LINEAR, 1, stacked.transposed)
        for index in range(stacked.count)
    ]


def _classify_linear(node: ir.Node) -> _Found | str:
    right = constant_view(node.inputs[1])
    correction = None if right is None else correction_at(node)
    if correction is not None:
        return f"{ALREADY_A_CORRECTION}: {correction.kind} beside a quantized weight"
    if right is None:
        if constant_view(node.inputs[0]) is not None:
            return "the constant is the left factor"
        producer = node.inputs[1].producer() if node.inputs[1] is not None else None
        if producer is not None and (
            producer.op_type == "DequantizeLinear" or is_in_codes(producer.outputs[0])
        ):
            return ALREADY_QUANTIZED
        narrow = narrow_type(node.inputs[1])
        if narrow is not None:
            rounded, dtype = narrow
            return f"the weight is rounded by a Cast to {dtype.name}" if rounded else ALREADY_QUANTIZED
        if node.inputs[1] is not None and is_constant(node.inputs[1]):
            return "the weight is computed by nodes from other constants; export it folded into one"
        return "both factors are activations"
    if right.dtype not in FLOAT_TYPES:
        return f"the weight is {right.dtype.name}, not a float type"
    if len(right.shape) != 2:
        return f"the weight has {len(right.shape)} dimensions {list(right.final_shape)}: stacked matrices are not one linear"
    flips = node.op_type == "Gemm" and "transB" in node.attributes and node.attributes["transB"].as_int() == 1
    k, n = right.final_shape[::-1] if flips else right.final_shape
    if k < SMALLEST_K:
        return f"K={k} is less than the smallest group ({SMALLEST_K})"
    if n < 1:
        return "the weight is empty"
    # MatMul reads [K, N]: storage is [K, N] unless one transposition lies between.
    return _Found(right, Role.LINEAR, 1, transposed=(not right.transposed) != flips)


def _classify_convolution(node: ir.Node) -> _Found | str:
    view = constant_view(node.inputs[1])
    if view is None:
        value = node.inputs[1]
        producer = None if value is None else value.producer()
        rounded = (
            producer is not None and producer.op_type == "DequantizeLinear"
        )  # also of a float that is rounded in every run
        done = rounded or (value is not None and is_in_codes(value))
        return ALREADY_QUANTIZED if done else "its kernel is computed"
    if view.dtype not in FLOAT_TYPES:
        return f"the weight is {view.dtype.name}, not a float type"
    if view.transposed or len(view.shape) < 3 or math.prod(view.shape) == 0:
        return f"its kernel has the shape {list(view.final_shape)}"
    return _Found(view, Role.CONV, 1, transposed=False)


def _classify_gather(node: ir.Node) -> _Found | str | None:
    table = constant_view(node.inputs[0])
    if table is None or table.dtype not in FLOAT_TYPES or len(table.shape) != 2:
        return None  # indexing into shapes, masks and activations is no embedding
    if "axis" in node.attributes and node.attributes["axis"].as_int() % 2 != 0:
        return None
    if constant_view(node.inputs[1]) is not None:
        return None  # constant indices: a slice
    if table.final_shape[1] < SMALLEST_K:
        return f"rows of {table.final_shape[1]} are shorter than the smallest group ({SMALLEST_K})"
    if _only_multiplies(node.outputs[0]):
        return "a table that only multiplies activations: rotary positions"
    return _Found(table, Role.EMBEDDING, 0, transposed=table.transposed)


_CARRY = frozenset(
    {"Unsqueeze", "Squeeze", "Reshape", "Transpose", "Cast", "Identity", "Expand", "Slice", "Concat", "Tile"}
)


def _only_multiplies(value: ir.Value) -> bool:
    """Every path of shape operations from ``value`` ends in a Mul with another activation."""
    seen: set[ir.Value] = set()
    stack = [value]
    ends: list[ir.Node] = []
    while stack:
        current = stack.pop()
        if current in seen:
            continue
        seen.add(current)
        if current.is_graph_output():
            return False
        for user in current.consumers():
            scaled = user.op_type in ("Mul", "Div") and any(
                other is not current and (constant_view(other) is not None or _is_one_wide(other))
                for other in user.inputs
            )
            if user.op_type in _CARRY or scaled:
                stack.extend(user.outputs)
            else:
                ends.append(user)
    return bool(ends) and all(end.op_type in ("Mul", "Neg", "RotaryEmbedding") for end in ends)


def _is_one_wide(value: ir.Value | None) -> bool:
    """One number for a whole row, as a mask[..., None] is; a rotary factor is as wide as its table."""
    return value is not None and value.shape is not None and len(value.shape) > 0 and value.shape[-1] == 1


def _plain_role(node: ir.Node) -> Role:
    if node.op_type in ("Conv", "ConvTranspose", "QLinearConv", "ConvInteger", *_CONVOLUTIONS):
        return Role.CONV
    if node.op_type in ("Gather", "GatherBlockQuantized", "GatherNBits", "EmbedLayerNormalization"):
        return Role.EMBEDDING
    if node.op_type in ("MatMul", "Gemm") and constant_view(node.inputs[1]) is None:
        constant = any(value is not None and is_constant(value) for value in node.inputs[:2])
        return Role.LINEAR if constant or stacked_product(node) is not None else Role.ATTENTION
    return Role.LINEAR


_AFTER_HEAD = frozenset(
    {"Add", "Mul", "Div", "Sub", "Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Gather", "Softmax",
     "LogSoftmax", "Tanh", "Sigmoid", "Clip"}
)  # fmt: skip


def _mark_heads(graph: ir.Graph, census: Census) -> None:
    """A linear is a head when its output becomes a graph output with nothing but constants in between."""
    outputs = set(graph.outputs)
    for weight in census.weights:
        for use in weight.uses:
            if (
                use.role is Role.LINEAR
                and use.in_body is None
                and reaches_output(use.node.outputs[0], outputs)
            ):
                use.role = Role.HEAD


def reaches_output(value: ir.Value, outputs: set[ir.Value]) -> bool:
    """The value becomes one of the graph's outputs with nothing but constants in between."""
    reached = False
    stack, seen = [value], {value}
    while stack:
        current = stack.pop()
        if current in outputs:
            reached = True
        for user in current.consumers():
            others = [v for v in user.inputs if v is not None and v is not current]
            is_parameter = all(constant_view(v) is not None or _is_shape(v) for v in others)
            if user.op_type == "Shape":
                continue
            if user.op_type not in _AFTER_HEAD or not is_parameter:
                return False
            fresh = [v for v in user.outputs if v not in seen]
            seen.update(fresh)
            stack.extend(fresh)
    return reached


def _is_shape(value: ir.Value) -> bool:
    """An integer operand: a shape, an axis or an index, not data."""
    return value.dtype is not None and not value.dtype.is_floating_point()
