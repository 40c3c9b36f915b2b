"""The operator ``ai.qcompiler::GatherNBits``: rows of a table of few bits, such as an embedding that shares its bytes with the head.

    y[.., k] = (code[i, k] - zero_point[i, g]) scale[i, g],      i = indices[..],  g = k // block_size

indices int32 or int64 of any shape, -N .. N - 1; codes uint8 [N, ceil(K / block_size) block_size bits / 8], as MatMulNBits has them; scales
float32 or float16 [N, G]; zero_points uint8 [N, ceil(G bits / 8)] or none for 2^(bits - 1). y [indices.., K] has the type of the scales.
The last block of a row may be short.

The model carries the operator's body: com.microsoft::GatherBlockQuantized, and a Slice that cuts the padding of a short last block off.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.graph.kernel_node import DOMAIN as STOCK_DOMAIN
from qcompiler.graph.operator_body import OUR_DOMAIN, provide_body

OP = "GatherNBits"
STOCK_OP = "GatherBlockQuantized"

_BODY = f"""
<domain: "{OUR_DOMAIN}", opset_import: ["" : 21, "{STOCK_DOMAIN}" : 1]>
{OP} <K, N, bits, block_size> (indices, codes, scales, zero_points) => (y) {{
    first = Constant <value_ints = [0]> ()
    last = Constant <value_ints = [-1]> ()
    width = Constant <value_int: int = @K> ()
    end = Reshape (width, last)
    whole = {STOCK_DOMAIN}.{STOCK_OP} <bits: int = @bits, block_size: int = @block_size, gather_axis = 0, quantize_axis = 1>
        (codes, indices, scales, zero_points)
    y = Slice (whole, first, end, last)
}}
"""


def provide(model: ir.Model) -> None:
    """Gives the model the body; see ``provide_body``."""
    provide_body(model, OP, _BODY)


def reference(
    indices: npt.NDArray[np.integer[Any]],
    codes: npt.NDArray[np.uint8],
    scales: npt.NDArray[np.floating[Any]],
    zero_points: npt.NDArray[np.uint8] | None,
    *,
    bits: int,
    block_size: int,
) -> npt.NDArray[np.floating[Any]]:
    """What the operator computes.

    Args:
        codes: [N, K], unpacked, 0 .. 2^bits - 1.
        scales: [N, G]; zero_points: [N, G], unpacked.
    """
    points = np.full(scales.shape, 1 << (bits - 1)) if zero_points is None else zero_points
    k = codes.shape[1]
    wide_points, wide_scales = (
        np.repeat(part[indices].astype(np.float32), block_size, -1)[..., :k] for part in (points, scales)
    )
    found: npt.NDArray[np.floating[Any]] = ((codes[indices] - wide_points) * wide_scales).astype(scales.dtype)
    return found
