"""The operator ``ai.qcompiler::MatMulNBits``: a product with weights of few bits.

    y[.., n] = sum_k x[.., k] (code[n, k] - zero_point[n, g]) scale[n, g] + bias[n],      g = k // block_size

Inputs and attributes are those of com.microsoft::MatMulNBits, without g_idx: x float32 [.., K]; codes uint8, block after block,
N ceil(K / block_size) block_size bits / 8 bytes of any shape; scales float32 or float16 [N, G]; zero_points uint8
[N ceil(G bits / 8)] or none for 2^(bits - 1); bias float32 [N] or none. Our kernels compute with activations that are rounded to 8 bits
for each row and block of weights, blocks of more than 128 in parts; of accuracy_level 1, in place of 4 (default), in float32.

``MatMulNBitsPair`` and ``MatMulNBitsTriple`` are two and three of them on one x, which is rounded once: inputs x, then codes, scales,
zero_points and bias of each; K, bits and block_size are the same for all, and N_0, N_1, N_2 the columns of each output.
``MatMulNBitsAdd`` and ``MatMulNBitsSwiGlu`` take in what follows products in a decoder, ``MatMulNBitsRelu``, ``Gelu``, ``FastGelu`` and
``QuickGelu`` (attribute alpha) an activation: y = f(product + bias), as ``graph.activation`` has them.

``MatMul3Bits``, ``MatMul3BitsPair`` and ``MatMul3BitsTriple`` are the same of 3 bits: codes uint8 [N, G, block_size 3 / 8] as
``quant.three_bits`` has them; zero_points uint8 [N, ceil(G / 2)], of 4 bits and twice as large, or none for 4.

The model carries the operator's body, a stock node for each product: where our library is not registered, ONNX Runtime runs that.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.graph import three_bits_body
from qcompiler.graph.activation import ALPHA, KINDS, Kind, body_nodes
from qcompiler.graph.kernel_node import DOMAIN as STOCK_DOMAIN
from qcompiler.graph.operator_body import OUR_DOMAIN, provide_body
from qcompiler.graph.quantized import KEYS, SQNR_KEY
from qcompiler.quant.activations import SMALLEST
from qcompiler.quant.kernel_lines import kernel_group

OP = "MatMulNBits"
THREE = "MatMul3Bits"
"""Its name for 3 bits: the stock node has none, so the body is another."""
LEVEL = "accuracy_level"
"""The attribute that says how activations are taken, of the stock node's name and meaning."""
INT8_ACTIVATIONS, FLOAT_ACTIVATIONS = 4, 1
"""Its values: in 8 bits, as a node without it has them, or in float32."""

MOST = 3
"""Products on one x that one operator takes."""
NAMES_KEY = f"{KEYS}products"
"""A note of joined nodes: the names of their products, a line each."""
OF_EACH_KEYS = frozenset({NAMES_KEY, SQNR_KEY})
"""Notes that have a line for each product of a joined node."""
_NUMBERS = {1: "", 2: "Pair", 3: "Triple"}
_ADD, _SWIGLU = "Add", "SwiGlu"
LAYOUT, LINES = "layout", 1
"""The attribute of weights in the kernels' own order (``quant.kernel_lines``): codes uint8 [blocks, groups, lines, 64], scales float32 and
zero_points uint8, a byte each, [blocks, groups, 16]. No body reads that: such nodes need our library."""
INPUTS_OF_EACH = 4
"""codes, scales, zero_points, bias: inputs 1 to 4 of the first product, the next four of the second."""


def operator(products: int, base: str = OP) -> str:
    """The operator for so many products on one x: 1 to 3. ``base`` is that for one."""
    return base + _NUMBERS[products]


def with_residual(base: str = OP) -> str:
    """That for one product and a residual of its shape, the input behind the bias, which is added to it."""
    return base + _ADD


def with_gate(base: str = OP) -> str:
    """That for two products on one x: the second times silu of the first, silu(v) = v / (1 + exp(-v))."""
    return base + _SWIGLU


def with_activation(kind: Kind, base: str = OP) -> str:
    """That for one product and a function of what it and its bias make."""
    return base + kind


PRODUCTS = {
    base + kind: number
    for base in (OP, THREE)
    for kind, number in (
        *((kind, number) for number, kind in _NUMBERS.items()),
        *((kind, 1) for kind in (_ADD, *KINDS)),
        (_SWIGLU, 2),
    )
}
"""All of them, with how many products they are."""


def columns_attribute(op: str, product: int) -> str:
    """The attribute with the number of columns of an operator's product."""
    return "N" if PRODUCTS.get(op, 1) == 1 else f"N_{product}"


def provide(model: ir.Model, op: str = OP) -> None:
    """Gives the model the body of one of PRODUCTS; see ``provide_body``."""
    provide_body(model, op, _body(op))


_ENDS: dict[str, str] = {
    _ADD: "y = Add (y_0, residual)",
    **{kind: body_nodes(kind) for kind in KINDS},
    _SWIGLU: "sigmoid = Sigmoid (y_0) gate = Mul (y_0, sigmoid) y = Mul (gate, y_1)",
}
"""The nodes behind the products, of operators whose outputs are not the products themselves."""


def _body(op: str) -> str:
    numbers = range(PRODUCTS[op])
    three = op.startswith(THREE)
    bits = "bits = 4" if three else "bits: int = @bits"
    once = three_bits_body.ONCE if three else "\n    rest = Constant <value_ints = [-1]> ()"
    end = _ENDS.get(op.removeprefix(THREE if three else OP))
    inputs = ", ".join(f"codes_{i}, scales_{i}, zero_points_{i}, bias_{i}" for i in numbers)
    nodes = "".join(
        (three_bits_body.of_product(i) if three else _blocks(i))
        + f"""
    y_{i} = {STOCK_DOMAIN}.MatMulNBits <K: int = @K, N: int = @{columns_attribute(op, i)}, {bits}, block_size: int = @block_size,
        {LEVEL}: int = @{LEVEL}> (x, blocks_{i}, {"halves" if three else "scales"}_{i}, zero_points_{i}, , bias_{i})"""
        for i in numbers
    )
    columns = ", ".join(columns_attribute(op, i) for i in numbers)
    outputs = "y" if end else ", ".join(f"y_{i}" for i in numbers)
    residual = ", residual" if op.endswith(_ADD) else ""
    alpha = f", {ALPHA}" if end and f"@{ALPHA}" in end else ""
    return f"""
<domain: "{OUR_DOMAIN}", opset_import: ["" : 21, "{STOCK_DOMAIN}" : 1]>
{op} <K, {columns}, bits, block_size{alpha}, {LEVEL}: int = {INT8_ACTIVATIONS}> (x, {inputs}{residual}) => ({outputs}) {{{once}{nodes}
    {end or ""}
}}
"""


def _blocks(i: int) -> str:
    """A tied weight's codes are [N, bytes]; the stock node takes [N, G, bytes of a block]."""
    return f"""
    cells_{i} = Shape (scales_{i})
    shape_{i} = Concat <axis = 0> (cells_{i}, rest)
    blocks_{i} = Reshape (codes_{i}, shape_{i})"""


def reference(
    x: npt.NDArray[np.float32],
    codes: npt.NDArray[np.uint8],
    scales: npt.NDArray[Any],
    zero_points: npt.NDArray[np.uint8] | None,
    bias: npt.NDArray[np.float32] | None,
    *,
    bits: int,
    block_size: int,
    level: int = INT8_ACTIVATIONS,
) -> npt.NDArray[np.float32]:
    """What our kernels compute, its sums in float64.

    Args:
        x: [.., K].
        codes: [N, K], unpacked, 0 .. 2^bits - 1.
        scales: [N, G]; zero_points: [N, G], unpacked; bias: [N].
        level: INT8_ACTIVATIONS or FLOAT_ACTIVATIONS.
    """
    w = weights(codes, scales, zero_points, bits=bits, block_size=block_size)
    a = rounded_activations(x, block_size) if level == INT8_ACTIVATIONS else x.astype(np.float64)
    y = a @ w.T
    total: npt.NDArray[np.float64] = y if bias is None else y + bias
    return total.astype(np.float32)


def weights(
    codes: npt.NDArray[np.uint8],
    scales: npt.NDArray[Any],
    zero_points: npt.NDArray[np.uint8] | None,
    *,
    bits: int,
    block_size: int,
) -> npt.NDArray[np.float64]:
    """[N, K]: (code - zero_point) scale; arguments as of ``reference``."""
    k = codes.shape[1]
    points = np.full_like(scales, 1 << (bits - 1)) if zero_points is None else zero_points
    steps: npt.NDArray[np.float64] = np.repeat(scales.astype(np.float64), block_size, 1)[:, :k]
    return (codes - np.repeat(points, block_size, 1)[:, :k].astype(np.float64)) * steps


def rounded_activations(x: npt.NDArray[np.float32], block_size: int) -> npt.NDArray[np.float64]:
    """x [.., K] as 8 bits hold it: round(x 127 / max |x|) max |x| / 127 for each row and block, or its parts (``kernel_group``).

    NaN in a part with NaN or infinity.
    """
    return _rounded(x, kernel_group(block_size, x.shape[-1]))


def rounded_rows(x: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """The same with one scale for each row."""
    return _rounded(x, max(x.shape[-1], 1))


def _rounded(x: npt.NDArray[np.float32], group: int) -> npt.NDArray[np.float64]:
    k = x.shape[-1]
    groups = -(-k // group)
    parts = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -k % group)]).reshape(*x.shape[:-1], groups, group)
    largest = np.abs(parts).max(-1, keepdims=True)
    largest = np.where(np.isfinite(largest), largest, np.float32(np.nan))
    with np.errstate(invalid="ignore", divide="ignore"):
        inverse = np.where(largest <= SMALLEST, np.float32(0), np.float32(127) / largest)
        codes = np.rint(parts * inverse)
        back = codes.astype(np.float64) * (largest / np.float32(127))
    return back.reshape(*x.shape[:-1], groups * group)[..., :k]
