"""KeepFloatProducts: float products between integers, which ONNX Runtime would round by itself."""

import numpy as np
import onnx_ir as ir
import pytest

from qcompiler.passes.keep_float_products import KeepFloatProducts
from tests.small_models import apply_pass, assert_equal_outputs, make_model, op_types, run, weight

# float32 sums of 27 products in another order; a weight in 8 bits with one scale for all of these channels differs by 0.02 and more.
ROUNDING = 1e-5
X = np.random.default_rng(1).standard_normal((2, 3, 6, 6)).astype(np.float32)
ROWS = np.random.default_rng(2).standard_normal((4, 6)).astype(np.float32)
SPREAD = np.exp(np.linspace(-3, 3, 5)).astype(np.float32)  # channels of very different size
CONSTANTS = {
    "s": np.array(0.03, np.float32),
    "z": np.array(128, np.uint8),
    "k": weight(5, 3, 3, 3, scale=0.3) * SPREAD.reshape(-1, 1, 1, 1),
    "t": weight(3, 5, 3, 3, scale=0.3) * SPREAD.reshape(1, -1, 1, 1),
    "b": weight(5, seed=1),
    "w": weight(6, 5) * SPREAD,
}
IMAGES, MATRIX = "g (float[B,3,6,6] x) => (float[B,5,H,W] y)", "g (float[M,6] x) => (float[M,5] y)"
BEFORE = "c = QuantizeLinear(x, s, z) d = DequantizeLinear(c, s, z)"
BEHIND = "q = QuantizeLinear(f, s, z) y = DequantizeLinear(q, s, z)"


@pytest.mark.parametrize(
    ("signature", "body"),
    [
        (IMAGES, "f = Conv(d, k, b)"),
        (IMAGES, "f = Conv(d, k)"),
        (IMAGES, "f = ConvTranspose(d, t, b)"),
        (IMAGES, "p = MaxPool<kernel_shape=[2,2]>(d) f = Conv(p, k, b)"),
        (MATRIX, "f = Gemm(d, w, b)"),
    ],
)
def test_its_weights_stay_float_in_what_runs(signature: str, body: str) -> None:
    model = make_model(f"{signature} {{ {BEFORE} {body} {BEHIND} }}", CONSTANTS)
    feed = {"x": X if signature == IMAGES else ROWS}
    after, modified = apply_pass(KeepFloatProducts(True), model)
    assert modified
    assert_equal_outputs(run(model, feed, optimize=False), run(after, feed), ROUNDING)
    assert not KeepFloatProducts(True)(after).modified


def test_codes_without_a_zero_point_keep_their_type_where_they_move() -> None:
    """QuantizeLinear makes uint8 where nothing says otherwise; these are int8, by its attribute."""
    before = "c = QuantizeLinear<output_dtype=3>(x, s) d = DequantizeLinear(c, s)"
    behind = "q = QuantizeLinear<output_dtype=3>(f, s) y = DequantizeLinear(q, s)"
    body = f"{before} p = MaxPool<kernel_shape=[2,2]>(d) f = Conv(p, k, b) {behind}"
    model = ir.from_proto(make_model(f"{IMAGES} {{ {body} }}", CONSTANTS))
    next(node for node in model.graph if node.op_type == "QuantizeLinear").outputs[0].dtype = ir.DataType.INT8
    wanted = run(model, {"x": X}, optimize=False)
    after, modified = apply_pass(KeepFloatProducts(True), model)
    assert modified
    assert_equal_outputs(wanted, run(after, {"x": X}, optimize=False), ROUNDING)


def test_other_readers_keep_theirs() -> None:
    body = "f = Conv<pads=[1,1,1,1]>(d, k, b) e = Relu(d) y = Conv<pads=[1,1,1,1]>(e, k, b) "
    signature = "g (float[B,3,6,6] x) => (float[B,5,H,W] y, float[B,5,H,W] f)"
    after, _ = apply_pass(
        KeepFloatProducts(True), make_model(f"{signature} {{ {BEFORE} {body} }}", CONSTANTS)
    )
    assert op_types(after).count("DequantizeLinear") == 2


@pytest.mark.parametrize(
    "body",
    [
        f"{BEFORE} e = Relu(d) y = Conv(e, k, b)",
        "y = Conv(x, k, b)",
        f"{BEFORE} kq = QuantizeLinear(k, s, z) kd = DequantizeLinear(kq, s, z) y = Conv(d, kd)",
    ],
)
def test_what_onnx_runtime_leaves_float_stays(body: str) -> None:
    assert not apply_pass(KeepFloatProducts(True), make_model(f"{IMAGES} {{ {body} }}", CONSTANTS))[1]


def test_nothing_is_done_where_no_ranges_are_static() -> None:
    model = make_model(f"{IMAGES} {{ {BEFORE} y = Conv(d, k, b) }}", CONSTANTS)
    assert not apply_pass(KeepFloatProducts(False), model)[1]


def test_a_single_channel_is_told() -> None:
    model = make_model(
        f"g (float[B,1,6,6] x) => (float[B,5,H,W] y) {{ {BEFORE} y = Conv(d, one, b) }}",
        CONSTANTS | {"one": weight(5, 1, 3, 3)},
    )
    keep = KeepFloatProducts(True)
    assert not apply_pass(keep, model)[1]
    assert len(keep.left) == 1 and "stay float" in keep.left[0]
