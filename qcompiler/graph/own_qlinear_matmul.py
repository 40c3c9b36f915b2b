"""The operator ``ai.qcompiler::QLinearMatMul``: a product of activations that are 8 bits with one scale already (static W8A8).

    y[.., n] = x_scale sum_k (x[.., k] - x_zero_point) (code[n, k] - zero_point[n, g]) scale[n, g] + bias[n]

x int8 or uint8 [.., K], x_scale float32 and x_zero_point of x's type, one number each and constant; the other inputs and the attributes
are those of our MatMulNBits; y is float32. Products and sums are exact integers, also of int8 with int8.

The body is DequantizeLinear and the stock product in floats.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.graph.kernel_node import DOMAIN as STOCK_DOMAIN
from qcompiler.graph.operator_body import OUR_DOMAIN, provide_body
from qcompiler.graph.own_matmul_nbits import weights

OP = "QLinearMatMul"

_BODY = f"""
<domain: "{OUR_DOMAIN}", opset_import: ["" : 21, "{STOCK_DOMAIN}" : 1]>
{OP} <K, N, bits, block_size> (x, x_scale, x_zero_point, codes, scales, zero_points, bias) => (y) {{
    rest = Constant <value_ints = [-1]> ()
    cells = Shape (scales)
    shape = Concat <axis = 0> (cells, rest)
    blocks = Reshape (codes, shape)
    one_scale = Squeeze (x_scale)
    one_zero_point = Squeeze (x_zero_point)
    floats = DequantizeLinear (x, one_scale, one_zero_point)
    y = {STOCK_DOMAIN}.MatMulNBits <K: int = @K, N: int = @N, bits: int = @bits, block_size: int = @block_size>
        (floats, blocks, scales, zero_points, , bias)
}}
"""


def provide(model: ir.Model) -> None:
    """Gives the model the operator's body; see ``provide_body``."""
    provide_body(model, OP, _BODY)


def reference(
    x: npt.NDArray[Any],
    x_scale: float,
    x_zero_point: int,
    codes: npt.NDArray[np.uint8],
    scales: npt.NDArray[Any],
    zero_points: npt.NDArray[np.uint8] | None,
    bias: npt.NDArray[np.float32] | None,
    *,
    bits: int,
    block_size: int,
) -> npt.NDArray[np.float32]:
    """What our kernels compute, its sums in float64; x int8 or uint8 [.., K], the weight's arguments as of our MatMulNBits."""
    w = weights(codes, scales, zero_points, bits=bits, block_size=block_size)
    y = np.float64(np.float32(x_scale)) * ((x.astype(np.float64) - x_zero_point) @ w.T)
    total: npt.NDArray[np.float64] = y if bias is None else y + bias
    return total.astype(np.float32)
