"""Products of two 8-bit floats: parted so that ONNX Runtime loads them; any other stays as it is."""

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidGraph

from qcompiler.passes.part_float8_products import PartFloat8Products
from tests.small_models import apply_pass, make_model, op_types, run

K, N = 32, 16
ROUNDED = "q = QuantizeLinear(x, s, z) r = DequantizeLinear(q, s, z)"
FLOAT8 = np.dtype(ml_dtypes.float8_e4m3fn)


def _model(body: str, kind: np.dtype = FLOAT8) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    constants = {
        "w": rng.uniform(-100, 100, (K, N)).astype(kind),
        "t": rng.uniform(0.01, 0.02, N).astype(np.float32),
        "s": np.float32(0.01),
        "z": np.zeros((), kind),
        "v": np.ones((K, N), np.float32),
    }
    text = f"g (float[B,M,{K}] x) => (float[B,M,{N}] y) {{ d = DequantizeLinear<axis=1>(w, t) {body} }}"
    return make_model(text, constants)


def test_a_product_of_two_of_them_loads() -> None:
    model = _model(f"{ROUNDED} y = MatMul(r, d)")
    x = np.random.default_rng(1).standard_normal((2, 3, K)).astype(np.float32)
    with pytest.raises(InvalidGraph, match="MatMulIntegerToFloat"):  # when this loads, the pass can go
        run(model, {"x": x})
    transform = PartFloat8Products()
    after, modified = apply_pass(transform, model)
    assert modified and op_types(after).count("Reshape") == 1
    assert np.array_equal(run(after, {"x": x})["y"], run(model, {"x": x}, optimize=False)["y"])
    assert not apply_pass(PartFloat8Products(), after)[1]


def test_products_of_one_weight_share_it() -> None:
    model = _model(f"{ROUNDED} a = MatMul(r, d) b = MatMul(r, d) y = Add(a, b)")
    assert op_types(apply_pass(PartFloat8Products(), model)[0]).count("Reshape") == 1


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ("y = MatMul(x, d)", FLOAT8),
        (f"{ROUNDED} a = MatMul(r, v) b = MatMul(x, d) y = Add(a, b)", FLOAT8),
        (f"{ROUNDED} n = Neg(r) y = MatMul(n, d)", FLOAT8),
        (f"{ROUNDED} y = MatMul(r, d)", np.dtype(np.int8)),
    ],
    ids=["float activations", "not the weight", "something between", "integers"],
)
def test_near_misses_stay(body: str, kind: np.dtype) -> None:
    model = _model(body, kind)
    after, modified = apply_pass(PartFloat8Products(), model)
    assert not modified and "Reshape" not in op_types(after)
