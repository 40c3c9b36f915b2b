"""Products in the middle form, whose activations are rounded and whose weights have 8 bits."""

import numpy as np
import onnx

from qcompiler.graph.quantized import SCHEME_KEY
from tests.small_models import make_model

K, N = 48, 24
ROWS = "r = ai.qcompiler.FakeQuantRows(x)"
TENSOR = "q, qs, qz = DynamicQuantizeLinear(x) r = DequantizeLinear(q, qs, qz)"
FAKE_QUANT_ROWS = """
<domain: "ai.qcompiler", opset_import: ["" : 21]>
FakeQuantRows (x) => (y) {
    last = Constant <value_ints = [-1]> ()
    steps = Constant <value_float = 127.0> ()
    sizes = Abs (x) largest = ReduceMax <keepdims = 1> (sizes, last) scale = Div (largest, steps)
    scaled = Div (x, scale) codes = Round (scaled) y = Mul (codes, scale)
}"""


def rounded_product(
    rounding: str, tail: str = "y = MatMul(r, d)", outputs: str = f"float[B,M,{N}] y", layout: str = "kn"
) -> onnx.ModelProto:
    """x float [B, M, K]; ``r`` is what it is rounded to, ``d`` the weight [K, N] (or [N, K])."""
    rng = np.random.default_rng(0)
    codes = rng.integers(-128, 128, (K, N)).astype(np.int8)
    constants = {
        "w": codes if layout == "kn" else codes.T,
        "s": rng.uniform(-0.01, 0.01, N).astype(np.float32),
    }
    axis = 1 if layout == "kn" else 0
    model = make_model(
        f"g (float[B,M,{K}] x) => ({outputs}) {{ {rounding} d = DequantizeLinear<axis={axis}>(w, s) {tail} }}",
        constants,
        functions=FAKE_QUANT_ROWS,
        domains={"ai.qcompiler": 1},
    )
    (weight,) = (
        node for node in model.graph.node if node.op_type == "DequantizeLinear" and "w" in node.input
    )
    entry = weight.metadata_props.add()
    entry.key, entry.value = SCHEME_KEY, "int8 channel sym"
    return model
