"""UseOwnCodebooks: which products of tables our operator takes over, and that nothing else changes."""

import numpy as np
import onnx
import pytest

from qcompiler.graph.operator_body import OUR_DOMAIN
from qcompiler.passes.use_own_codebooks import UseOwnCodebooks
from tests.small_models import Array, apply_pass, assert_equal_outputs, make_model, op_types, run

SIZES = "K=64, N=16, block_size=32, quant_type=1"
SAME = 0.0  # the body is the node that was there


def _model(body: str, inputs: str = "float[M,64] x", **weights: Array) -> onnx.ModelProto:
    constants = {
        "b": np.random.default_rng(0).integers(0, 256, 16 * 32).astype(np.uint8),
        "s": np.full(32, 0.01, np.float32),
        **weights,
    }
    used = {name: array for name, array in constants.items() if name in body}
    text = f"g ({inputs}) => (float[M,16] y) {{ {body} }}"
    return make_model(text, used, domains={"com.microsoft": 1})


def _product(inputs: str = "x, b, s", sizes: str = SIZES) -> str:
    return f"y = com.microsoft.MatMulBnb4<{sizes}>({inputs})"


def _feed() -> dict[str, Array]:
    return {"x": np.random.default_rng(1).standard_normal((3, 64)).astype(np.float32)}


def test_it_takes_over_the_node_on_the_same_bytes() -> None:
    model = _model(_product())
    entry = UseOwnCodebooks(accuracy_level=4)
    after, modified = apply_pass(entry, model)
    (node,) = after.graph
    assert modified and (node.domain, node.op_type) == (OUR_DOMAIN, "MatMulCodebook")
    assert node.inputs[1] is after.graph.initializers["b"]
    assert [lowered.operator for lowered in entry.lowered] == ["ai.qcompiler::MatMulCodebook"]
    assert_equal_outputs(run(model, _feed()), run(after, _feed()), SAME)
    assert not apply_pass(UseOwnCodebooks(accuracy_level=4), after)[1]


def test_scales_that_are_computed_from_constants_are_taken() -> None:
    model = _model(
        f"c = Cast<to=1>(codes) s2 = Mul(c, step) {_product('x, b, s2')}",
        codes=np.full(32, 100, np.uint8),
        step=np.array(0.001, np.float32),
    )
    after, modified = apply_pass(UseOwnCodebooks(accuracy_level=4), model)
    assert modified and "MatMulCodebook" in op_types(after)
    assert_equal_outputs(run(model, _feed()), run(after, _feed()), SAME)


@pytest.mark.parametrize(
    ("level", "body", "inputs", "reason"),
    [
        (0, _product(), "float[M,64] x", "accuracy_level 0: our kernels round activations to 8 bits"),
        (4, _product(sizes="K=64, N=16, block_size=256, quant_type=1"), "float[M,64] x", "64 columns are no multiple of block_size 256"),
        (4, _product(sizes="K=64, N=16, block_size=0, quant_type=1"), "float[M,64] x", "no multiple of block_size 0"),
        (4, _product(sizes="K=64, N=16, block_size=-16, quant_type=1"), "float[M,64] x", "no multiple of block_size -16"),
        (4, _product(sizes="K=64, N=16, quant_type=1"), "float[M,64] x", "it has no attribute block_size"),
        (4, _product(sizes="K=64, N=16, block_size=32"), "float[M,64] x", "it has no attribute quant_type"),
        (4, _product(sizes="K=64, N=16, block_size=32, quant_type=7"), "float[M,64] x", "quant_type 7: our kernels take 0, fp4, and 1, nf4"),
        (4, _product(sizes=f"{SIZES}, training_mode=1"), "float[M,64] x", "training_mode = 1, which our operator has not"),
        (4, _product("x, b2, s"), "float[M,64] x, uint8[512] b2", "its weight is not constant"),
        (4, _product("x, b, s2"), "float[M,64] x, float[32] s2", "its scales are not constant"),
    ],
)  # fmt: skip
def test_what_stays_says_why(level: int, body: str, inputs: str, reason: str) -> None:
    entry = UseOwnCodebooks(level)
    after, modified = apply_pass(entry, _model(body, inputs))
    assert not modified and not after.functions and op_types(after) == ["MatMulBnb4"]
    (line,) = entry.left
    assert reason in line and line.endswith("ONNX Runtime's own kernel runs it")
