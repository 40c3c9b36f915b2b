"""The operator ``ai.qcompiler::FakeQuantRows``: activations as 8 bits hold them, with one scale for each row.

    y[m, k] = round(x[m, k] / s[m]) s[m],      s[m] = max_k |x[m, k]| / 127

It says in the middle form that a product's activations are rounded by rows (token by token), which QDQ has no words for; targets make
integer products of it. The body is plain ONNX, so that the middle form runs anywhere. x: any float type, [.., K]; y: the same.
"""

import onnx_ir as ir

from qcompiler.graph.edits import Names, set_info
from qcompiler.graph.operator_body import OUR_DOMAIN, provide_body
from qcompiler.quant.activations import SMALLEST, STEPS

OP = "FakeQuantRows"

_BODY = f"""
<domain: "{OUR_DOMAIN}", opset_import: ["" : 21]>
{OP} (x) => (y) {{
    last = Constant <value_ints = [-1]> ()
    steps = Constant <value_float = {float(STEPS)}> ()
    smallest = Constant <value_float = {float(SMALLEST)!r}> ()
    wide = Cast <to = 1> (x)
    sizes = Abs (wide)
    largest = ReduceMax <keepdims = 1> (sizes, last)
    felt = Max (largest, smallest)
    inverse = Div (steps, felt)
    scaled = Mul (wide, inverse)
    codes = Round (scaled)
    step = Div (largest, steps)
    rounded = Mul (codes, step)
    y = CastLike (rounded, x)
}}
"""


def provide(model: ir.Model) -> None:
    """Gives the model the operator's body; see ``provide_body``."""
    provide_body(model, OP, _BODY)


def is_fake_quant_rows(value: ir.Value | None) -> bool:
    """Whether the operator makes the value."""
    node = None if value is None else value.producer()
    return node is not None and node.op_type == OP and node.domain == OUR_DOMAIN


def fake_quant_rows(x: ir.Value, dtype: ir.DataType, names: Names) -> ir.Node:
    """A node on ``x``, which belongs to no graph yet."""
    output = ir.Value(name=names.value(f"{x.name}.rounded"))
    set_info(output, dtype, x.shape)
    return ir.node(OP, [x], domain=OUR_DOMAIN, outputs=[output], name=names.node(f"{x.name}.round"))
