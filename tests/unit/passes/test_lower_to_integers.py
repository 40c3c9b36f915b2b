"""LowerToIntegers: rounded activations and 8-bit weights become integer products of the same numbers."""

import numpy as np
import onnx_ir as ir
import pytest

from qcompiler.passes.lower_to_integers import LowerToIntegers
from tests.rounded_product import ROWS, TENSOR, K, N, rounded_product
from tests.small_models import Array, apply_pass, assert_equal_outputs, op_types, run

# Sums of 48 products are exact in integers; the float form adds them up rounded: 48 epsilons and a few for scales.
ROUNDING = 1e-5


def _x(*shape: int) -> Array:
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(
    ("rounding", "op"), [(ROWS, "MatMulIntegerToFloat"), (TENSOR, "DynamicQuantizeMatMul")]
)
def test_the_same_numbers_come_out(rounding: str, op: str) -> None:
    model = rounded_product(rounding)
    entry = LowerToIntegers()
    after, modified = apply_pass(entry, model)
    assert modified and op in op_types(after)
    assert not {"MatMul", "DequantizeLinear", "FakeQuantRows", "DynamicQuantizeLinear"} & set(op_types(after))
    (lowered,) = entry.lowered
    assert (lowered.operator, lowered.packed) == (op, "w")
    feed = {"x": _x(2, 5, K)}
    assert_equal_outputs(run(model, feed, optimize=False), run(after, feed), ROUNDING)
    assert not apply_pass(LowerToIntegers(), after)[1]


def test_products_on_one_input_round_it_once() -> None:
    model = rounded_product(ROWS, "y = MatMul(r, d) z = MatMul(r, d)", f"float[B,M,{N}] y, float[B,M,{N}] z")
    after, _ = apply_pass(LowerToIntegers(), model)
    assert op_types(after).count("QuantizeLinear") == 1 and op_types(after).count("MatMulIntegerToFloat") == 2


def test_rows_of_zeros_and_of_huge_numbers() -> None:
    x = _x(1, 3, K)
    x[0, 0], x[0, 1] = 0, x[0, 1] * np.float32(1e30)
    model = rounded_product(ROWS)
    (found,) = run(apply_pass(LowerToIntegers(), model)[0], {"x": x}).values()
    assert np.isfinite(found).all() and not found[0, 0].any()


@pytest.mark.parametrize("what", ["not rounded", "another reader", "other kernels"])
def test_what_stays(what: str) -> None:
    if what == "not rounded":
        model, entry = rounded_product("r = Identity(x)"), LowerToIntegers()
    elif what == "another reader":  # [N, K] through a Transpose, as a head has it that an embedding shares
        model = rounded_product(ROWS, "t = Transpose<perm=[1,0]>(d) y = MatMul(r, t)", layout="nk")
        entry = LowerToIntegers()
    else:
        model, entry = rounded_product(ROWS), LowerToIntegers(rows=False)
    before = op_types(model)
    after, modified = apply_pass(entry, model)
    assert not modified and op_types(after) == before and not entry.lowered


def test_the_body_of_what_stays_is_kept() -> None:
    model = rounded_product(ROWS, "a = MatMul(r, d) y = Add(a, a)")
    after, _ = apply_pass(LowerToIntegers(), model)
    assert isinstance(after, ir.Model) and ("ai.qcompiler", "FakeQuantRows", "") in after.functions
