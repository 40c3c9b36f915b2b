"""The operator ``ai.qcompiler::SparseMatMul``: a product with a sparse matrix S [N, K], stored row after row.

    y = x S^T,      x [.., K],  y [.., N],  S[n, columns[e]] = values[e]  for  offsets[n] <= e < offsets[n + 1]

values [E] of any float type; columns [E] uint16 or int32, rising within a row; offsets int32 [N + 1]. The sum is taken in float32, y has
the type of x.

The model carries the operator's body in plain ONNX, so that ONNX Runtime runs it without a library of ours. Up to FEW rows of x it
gathers and scatters, which costs E numbers a row; past that it makes a dense matrix for the time of the product
(docs/decisions/0016-sparse-product-in-plain-onnx.md has the figures). ``reference`` says what it means.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.graph.operator_body import OUR_DOMAIN, provide_body

OP = "SparseMatMul"
FEW = 4  # rows: 0.4 ms a row one way, 3 ms the other for 1 % of 1536 x 576 (2 threads of an x86-64 server)

_BODY = f"""
<domain: "{OUR_DOMAIN}", opset_import: ["" : 21]>
{OP} (x, values, columns, offsets) => (y) {{
    zero = Constant <value_ints = [0]> ()
    one = Constant <value_ints = [1]> ()
    last = Constant <value_ints = [-1]> ()
    end = Constant <value_ints = [9223372036854775807]> ()
    few = Constant <value_ints = [{FEW}]> ()
    none = Constant <value_float = 0.0> ()
    along = Constant <value_int = 0> ()

    column = Cast <to = 7> (columns)
    number = Cast <to = 1> (values)
    count = Shape (column)
    ends = Slice (offsets, one, last, zero)
    end_places = Cast <to = 7> (ends)
    end_shape = Shape (ends)
    each = Expand (one, end_shape)
    count_and_one = Add (count, one)
    unmarked = Expand (zero, count_and_one)
    marks = ScatterElements <axis = 0, reduction = "add"> (unmarked, end_places, each)
    passed = CumSum (marks, along)
    row = Slice (passed, zero, count, zero)
    offset_count = Shape (offsets)
    n = Sub (offset_count, one)

    shape = Shape (x)
    batch = Slice (shape, zero, last, zero)
    k = Slice (shape, last, end, zero)
    flat_shape = Concat <axis = 0> (last, k)
    flat = Reshape (x, flat_shape)
    rows = Cast <to = 1> (flat)
    rows_shape = Shape (rows)
    m = Slice (rows_shape, zero, one, zero)
    is_few = LessOrEqual (m, few)
    condition = Squeeze (is_few, zero)
    product = If (condition) <
        then_branch = gathered () => (float[m1, n1] scattered) {{
            picked = Gather <axis = 1> (rows, column)
            terms = Mul (picked, number)
            term_shape = Shape (terms)
            sum_shape = Concat <axis = 0> (m, n)
            empty = Expand (none, sum_shape)
            place = Expand (row, term_shape)
            scattered = ScatterElements <axis = 1, reduction = "add"> (empty, place, terms)
        }},
        else_branch = dense () => (float[m2, n2] multiplied) {{
            first = Slice (rows, zero, one, zero)
            corner = Slice (first, zero, one, one)
            any_number = Reshape (corner, one)
            is_itself = Equal (any_number, any_number)
            nothing = Where (is_itself, zero, zero)
            k_again = Add (k, nothing)
            matrix_shape = Concat <axis = 0> (k_again, n)
            blank = Expand (none, matrix_shape)
            down = Unsqueeze (column, one)
            across = Unsqueeze (row, one)
            place = Concat <axis = 1> (down, across)
            matrix = ScatterND (blank, place, number)
            multiplied = MatMul (rows, matrix)
        }}
    >
    y_shape = Concat <axis = 0> (batch, n)
    unflat = Reshape (product, y_shape)
    y = CastLike (unflat, x)
}}
"""
# ``nothing`` is 0, computed from x: a matrix of constants alone would be folded when the model is loaded, and stay in memory.


def provide(model: ir.Model) -> None:
    """Gives the model the operator's body; see ``provide_body``."""
    provide_body(model, OP, _BODY)


def reference(
    x: npt.NDArray[Any],
    values: npt.NDArray[Any],
    columns: npt.NDArray[np.integer],
    offsets: npt.NDArray[np.integer],
) -> npt.NDArray[Any]:
    """What the operator computes."""
    picked = np.moveaxis(x.astype(np.float32)[..., columns] * values.astype(np.float32), -1, 0)
    y = np.zeros((len(offsets) - 1, *x.shape[:-1]), np.float32)
    np.add.at(y, np.repeat(np.arange(len(offsets) - 1), np.diff(offsets)), picked)
    return np.moveaxis(y, 0, -1).astype(x.dtype)
