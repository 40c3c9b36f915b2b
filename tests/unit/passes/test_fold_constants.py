"""FoldConstants: what depends on constants alone is computed, and what is stored in codes stays."""

import numpy as np
from onnx.shape_inference import infer_shapes

from qcompiler.passes.fold_constants import FoldConstants
from tests.small_models import apply_pass, assert_equal_outputs, make_model, op_types, run


def test_a_bias_that_is_spelled_out_becomes_one() -> None:
    body = (
        "zero = Constant<value_float=0.5>() like = CastLike(zero, x) shape = Constant<value_ints=[4]>() "
        "b = Expand(like, shape) y = Add(x, b)"
    )
    model = make_model(f"g (float[M,4] x) => (float[M,4] y) {{ {body} }}")
    x = np.ones((2, 4), np.float32)
    after, modified = apply_pass(FoldConstants(), infer_shapes(model))
    assert modified and [op for op in op_types(after) if op != "Constant"] == ["Add"]
    assert_equal_outputs(run(model, {"x": x}), run(after, {"x": x}), 0)
    assert not apply_pass(FoldConstants(), after)[1]


def test_codes_stay() -> None:
    constants = {"q": np.ones((4, 4), np.int8), "s": np.array(0.1, np.float32)}
    model = make_model(
        "g (float[M,4] x) => (float[M,4] y) { d = DequantizeLinear(q, s) y = MatMul(x, d) }", constants
    )
    after, modified = apply_pass(FoldConstants(), model)
    assert not modified and op_types(after) == ["DequantizeLinear", "MatMul"]
