"""Sizes of activations for inputs of given shapes."""

import onnx_ir as ir

from qcompiler.graph.shape_inference import activation_bytes
from tests.small_models import make_model, weight


def test_sizes_follow_from_the_inputs_shapes() -> None:
    model = ir.from_proto(
        make_model(
            "g (float[M,64] x) => (float16[M,N] y) { h = MatMul(x, w) n = NonZero(h) y = Cast<to=10>(h) }",
            {"w": weight(64, 32)},
        )
    )
    assert activation_bytes(model, {"x": (5, 64)}) == {
        "h": 5 * 32 * 4,
        "y": 5 * 32 * 2,
    }  # not n: it depends on data
    assert activation_bytes(model, {"x": (0, 64)})["h"] == 0
