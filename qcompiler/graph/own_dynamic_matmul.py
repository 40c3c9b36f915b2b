"""The operator ``ai.qcompiler::DynamicQuantMatMul``: a product of 8-bit activations with one scale for each row (token), W8A8 or W4A8.

    y[m, n] = sx[m] sum_k a[m, k] (code[n, k] - zero_point[n, g]) scale[n, g] + bias[n],      sx[m] = max_k |x[m, k]| / 127

a = round(x 127 / max |x|). Inputs and attributes are those of our MatMulNBits. Where a row of the weight has one scale (per channel: the
same in all of its blocks) and no zero points, sums over all of K stay integers.

The body rounds rows so with plain nodes and multiplies in floats: the same numbers, not the same speed.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.graph.kernel_node import DOMAIN as STOCK_DOMAIN
from qcompiler.graph.operator_body import OUR_DOMAIN, provide_body
from qcompiler.graph.own_matmul_nbits import rounded_rows, weights
from qcompiler.quant.activations import SMALLEST

OP = "DynamicQuantMatMul"

_BODY = f"""
<domain: "{OUR_DOMAIN}", opset_import: ["" : 21, "{STOCK_DOMAIN}" : 1]>
{OP} <K, N, bits, block_size> (x, codes, scales, zero_points, bias) => (y) {{
    last = Constant <value_ints = [-1]> ()
    steps = Constant <value_float = 127.0> ()
    smallest = Constant <value_float = {float(SMALLEST)!r}> ()
    sizes = Abs (x)
    largest = ReduceMax <keepdims = 1> (sizes, last)
    felt = Max (largest, smallest)
    inverse = Div (steps, felt)
    scaled = Mul (x, inverse)
    whole = Round (scaled)
    step = Div (largest, steps)
    rounded = Mul (whole, step)
    cells = Shape (scales)
    shape = Concat <axis = 0> (cells, last)
    blocks = Reshape (codes, shape)
    y = {STOCK_DOMAIN}.MatMulNBits <K: int = @K, N: int = @N, bits: int = @bits, block_size: int = @block_size>
        (rounded, blocks, scales, zero_points, , bias)
}}
"""


def provide(model: ir.Model) -> None:
    """Gives the model the operator's body; see ``provide_body``."""
    provide_body(model, OP, _BODY)


def reference(
    x: npt.NDArray[np.float32],
    codes: npt.NDArray[np.uint8],
    scales: npt.NDArray[Any],
    zero_points: npt.NDArray[np.uint8] | None,
    bias: npt.NDArray[np.float32] | None,
    *,
    bits: int,
    block_size: int,
) -> npt.NDArray[np.float32]:
    """What our kernels compute, its sums in float64; arguments as of our MatMulNBits."""
    y = rounded_rows(x) @ weights(codes, scales, zero_points, bits=bits, block_size=block_size).T
    total: npt.NDArray[np.float64] = y if bias is None else y + bias
    return total.astype(np.float32)
