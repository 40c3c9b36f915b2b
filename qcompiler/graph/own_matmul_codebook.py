"""The operator ``ai.qcompiler::MatMulCodebook``: a product with 4-bit codes that stand for the numbers of a table.

    y[.., n] = sum_k x[.., k] table[code[n, k]] scale[b],      b = (n K + k) // block_size

Inputs and attributes are those of com.microsoft::MatMulBnb4: x float32 [.., K]; codes uint8 [N K / 2], the first of two in the higher
bits; scales float32 or float16 [N K / block_size]; K, N, block_size, quant_type (0: fp4, 1: nf4). Blocks do not run on from row to row.

Our kernels compute in integers: x is rounded to 8 bits for each row and block (blocks of more than 128 in parts), and the table to the
whole numbers that are nearest to ``best_multiple`` times it. The model carries the stock node as the operator's body.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.graph.kernel_node import DOMAIN as STOCK_DOMAIN
from qcompiler.graph.operator_body import OUR_DOMAIN, provide_body
from qcompiler.graph.own_matmul_nbits import rounded_activations

OP = "MatMulCodebook"
STOCK_OP = "MatMulBnb4"
SIZES = ("K", "N", "block_size", "quant_type")

_BODY = f"""
<domain: "{OUR_DOMAIN}", opset_import: ["" : 21, "{STOCK_DOMAIN}" : 1]>
{OP} <{", ".join(SIZES)}> (x, codes, scales) => (y) {{
    y = {STOCK_DOMAIN}.{STOCK_OP} <{", ".join(f"{name}: int = @{name}" for name in SIZES)}> (x, codes, scales)
}}
"""


def provide(model: ir.Model) -> None:
    """Gives the model the operator's body; see ``provide_body``."""
    provide_body(model, OP, _BODY)


def best_multiple(table: npt.NDArray[np.float32]) -> int:
    """The whole number of 64 .. 127 whose multiples of a table [16] are nearest to whole numbers, in proportion to it."""
    multiples = np.arange(64, 128, dtype=np.float32)[:, None]
    values = table * multiples
    errors = np.square((values - np.rint(values)) / multiples).sum(1, dtype=np.float32)
    return 64 + int(np.argmin(errors))


def reference(
    x: npt.NDArray[np.float32],
    codes: npt.NDArray[np.uint8],
    scales: npt.NDArray[Any],
    table: npt.NDArray[np.float32],
    *,
    block_size: int,
) -> npt.NDArray[np.float32]:
    """What our kernels compute, its sums in float64.

    Args:
        x: [.., K].
        codes: [N, K], unpacked, 0 .. 15; scales: [N, K / block_size].
    """
    multiple = best_multiple(table)
    whole = np.rint(table * np.float32(multiple)).astype(np.float64)
    w = whole[codes] * np.repeat(scales.astype(np.float32) / np.float32(multiple), block_size, 1)
    y: npt.NDArray[np.float64] = rounded_activations(x, block_size) @ w.T
    return y.astype(np.float32)
