"""The operator ``ai.qcompiler::MatMulNBits``: a product with weights of few bits.

    y[.., n] = sum_k x[.., k] (code[n, k] - zero_point[n, g]) scale[n, g] + bias[n],      g = k // block_size

Inputs and attributes are those of com.microsoft::MatMulNBits, without g_idx: x float32 [.., K]; codes uint8, block after block,
N ceil(K / block_size) block_size bits / 8 bytes of any shape; scales float32 or float16 [N, G]; zero_points uint8
[N ceil(G bits / 8)] or none for 2^(bits - 1); bias float32 [N] or none. Our kernels compute with activations that are rounded to 8 bits
for each row and block of weights, blocks of more than 128 in parts.

The model carries the operator's body, one stock node: where our library is not registered, ONNX Runtime runs that.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.graph.kernel_node import DOMAIN as STOCK_DOMAIN
from qcompiler.graph.operator_body import OUR_DOMAIN, provide_body

OP = "MatMulNBits"
INT8_ACTIVATIONS = 4
"""The stock node's accuracy_level for activations in 8 bits."""
MAX_GROUP = 128
"""Most activations that share a scale."""
SMALLEST = np.float32(1e-36)
"""Of a group's largest activation: up to it all of the group count as 0."""

_BODY = f"""
<domain: "{OUR_DOMAIN}", opset_import: ["" : 21, "{STOCK_DOMAIN}" : 1]>
{OP} <K, N, bits, block_size> (x, codes, scales, zero_points, bias) => (y) {{
    rest = Constant <value_ints = [-1]> ()
    cells = Shape (scales)
    shape = Concat <axis = 0> (cells, rest)
    blocks = Reshape (codes, shape)
    y = {STOCK_DOMAIN}.MatMulNBits <K: int = @K, N: int = @N, bits: int = @bits, block_size: int = @block_size,
        accuracy_level = {INT8_ACTIVATIONS}> (x, blocks, scales, zero_points, , bias)
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
    """What our kernels compute, its sums in float64.

    Args:
        x: [.., K].
        codes: [N, K], unpacked, 0 .. 2^bits - 1.
        scales: [N, G]; zero_points: [N, G], unpacked; bias: [N].
    """
    k = x.shape[-1]
    points = np.full_like(scales, 1 << (bits - 1)) if zero_points is None else zero_points
    w = (codes - np.repeat(points, block_size, 1)[:, :k].astype(np.float64)) * np.repeat(
        scales, block_size, 1
    )[:, :k]
    y = _rounded(x, _activation_group(block_size, k)) @ w.T
    total: npt.NDArray[np.float64] = y if bias is None else y + bias
    return total.astype(np.float32)


def _activation_group(block_size: int, k: int) -> int:
    """Activations that share a scale: a block, or the longest equal parts of one, of at most MAX_GROUP."""
    if block_size >= k:
        return min(-(-k // 16) * 16, MAX_GROUP)
    return max(size for size in range(16, min(block_size, MAX_GROUP) + 1, 16) if block_size % size == 0)


def _rounded(x: npt.NDArray[np.float32], group: int) -> npt.NDArray[np.float64]:
    """x as 8 bits hold it: round(x 127 / max |x|) max |x| / 127 for each row and group; NaN in a group with NaN or infinity."""
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
