"""Piece: part of a graph computes what the whole computes there."""

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from qcompiler.errors import CalibrationError
from qcompiler.graph.extract import INLINE_BYTES, Piece, is_constant
from tests.small_models import make_model, weight

# Another session may fuse other operators: a few roundings of float32.
ROUNDING = {"rtol": 1e-4, "atol": 1e-5}


def _x(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("size", [16, 256], ids=["written in", "fed"])
@pytest.mark.parametrize("form", ["plain", "transposed", "cast"])
def test_constants_of_any_size_and_form(size: int, form: str) -> None:
    assert (size * size * 4 > INLINE_BYTES) == (size == 256)
    held = weight(size, size, dtype=np.float16 if form == "cast" else np.float32)
    text = {
        "plain": "h = MatMul(x, w)",
        "transposed": "t = Transpose(w) h = MatMul(x, t)",
        "cast": "c = Cast<to=1>(w) h = MatMul(x, c)",
    }[form]
    loaded = ir.from_proto(
        make_model(f"g (float[M,{size}] x) => (float[M,{size}] y) {{ {text} y = Relu(h) }}", {"w": held})
    )
    value = next(n for n in loaded.graph if n.op_type == "MatMul").outputs[0]
    piece = Piece(loaded, list(loaded.graph), loaded.graph.inputs, [value])
    x = _x(3, size)
    used = (held.T if form == "transposed" else held).astype(np.float32)
    for _ in range(2):  # the session is kept
        np.testing.assert_allclose(piece.run({loaded.graph.inputs[0]: x})[value], x @ used, **ROUNDING)
    assert len(loaded.graph) == 2 + (form != "plain"), "the graph is as it was"


def test_only_what_is_needed_is_asked_for() -> None:
    loaded = ir.from_proto(
        make_model(
            "g (float[2,4] x, float[2,4] z) => (float[2,4] y, float[2,4] q) { y = Neg(x) q = Relu(z) }"
        )
    )
    x, z = loaded.graph.inputs
    y = loaded.graph.outputs[0]
    piece = Piece(loaded, list(loaded.graph), [x, z], [y])
    assert piece.inputs == (x,)
    np.testing.assert_array_equal(piece.run({x: _x(2, 4)})[y], -_x(2, 4))


@pytest.mark.parametrize("c", [True, False])
def test_bodies_with_what_they_capture(c: bool) -> None:
    loaded = ir.from_proto(make_model(
        """g (float[M,128] x, bool c) => (float[M,128] y) { n = Neg(x) y = If(c) <
        then_branch = t () => (float[M,128] z) { z = MatMul(n, w) }, else_branch = e () => (float[M,128] q) { q = Add(x, b) }> }""",
        {"w": weight(128, 256)[:, :128] if INLINE_BYTES < 128 * 128 * 4 else weight(128, 128), "b": weight(128)},
    ))  # fmt: skip
    piece = Piece(loaded, list(loaded.graph), loaded.graph.inputs, loaded.graph.outputs)
    x = _x(3, 128)
    fed = dict(zip(loaded.graph.inputs, (x, np.array(c)), strict=True))
    held = {
        k: v.const_value.numpy() for k, v in loaded.graph.initializers.items() if v.const_value is not None
    }
    expected = -x @ held["w"] if c else x + held["b"]
    np.testing.assert_allclose(piece.run(fed)[loaded.graph.outputs[0]], expected, **ROUNDING)


def test_a_piece_from_the_middle_and_constants_from_before_it() -> None:
    loaded = ir.from_proto(
        make_model(
            "g (float[2,4] x) => (float[2,4] y) { k = Constant<value_float=3.0>() a = Neg(x) b = Mul(a, k) y = Relu(b) }"
        )
    )
    a, b = loaded.graph[1].outputs[0], loaded.graph[2].outputs[0]
    piece = Piece(loaded, [loaded.graph[2]], [a], [b])
    np.testing.assert_array_equal(piece.run({a: _x(2, 4)})[b], _x(2, 4) * np.float32(3))


def test_a_bfloat16_value_is_fed_as_it_is() -> None:
    loaded = ir.from_proto(make_model("g (bfloat16[M,4] x) => (float[M,4] y) { y = Cast<to=1>(x) }"))
    x = _x(2, 4).astype(ml_dtypes.bfloat16)
    made = Piece(loaded, list(loaded.graph), loaded.graph.inputs, loaded.graph.outputs).run(
        {loaded.graph.inputs[0]: x}
    )
    np.testing.assert_array_equal(made[loaded.graph.outputs[0]], x.astype(np.float32))


def test_what_is_missing_and_what_does_not_fit_is_said() -> None:
    loaded = ir.from_proto(
        make_model("g (float[M,4] x) => (float[M,4] y) { a = Neg(x) y = MatMul(a, w) }", {"w": weight(4, 4)})
    )
    y = loaded.graph.outputs[0]
    with pytest.raises(CalibrationError, match=r"^a: is needed before it is computed"):
        Piece(loaded, [loaded.graph[1]], loaded.graph.inputs, [y])
    whole = Piece(loaded, list(loaded.graph), loaded.graph.inputs, [y])
    with pytest.raises(CalibrationError, match=r"^y: ONNX Runtime cannot run") as caught:
        whole.run({loaded.graph.inputs[0]: _x(2, 5)})
    assert "\n" not in str(caught.value)


def test_is_constant() -> None:
    loaded = ir.from_proto(make_model(
        "g (float[2,4] x) => (float[2,4] y) { k = Constant<value_float=3.0>() d = DequantizeLinear(q, s) t = Transpose(d) i = Identity(w)"
        " a = Mul(x, k) b = Mul(a, i) e = Mul(b, t) y = Relu(e) }",
        {"q": np.ones((4, 2), np.int8), "s": np.array(0.5, np.float32), "w": weight(2, 4)},
    ))  # fmt: skip
    found = {value.name for node in loaded.graph for value in node.outputs if is_constant(value)}
    assert found == {"k", "d", "t", "i"}
    assert not is_constant(loaded.graph.inputs[0])


def test_integers_cast_to_floats_before_the_segment_are_computed_in_the_piece() -> None:
    loaded = ir.from_proto(make_model(
        "g (float[2,4] x) => (float[2,3] y) { f = Cast<to=1>(q) t = Transpose(f) a = Relu(x) y = MatMul(a, t) }",
        {"q": np.arange(12, dtype=np.int8).reshape(3, 4)},
    ))  # fmt: skip
    piece = Piece(loaded, list(loaded.graph)[2:], loaded.graph.inputs, loaded.graph.outputs)
    x = _x(2, 4)
    (y,) = piece.run({loaded.graph.inputs[0]: x}).values()
    # one float32 rounding a term
    np.testing.assert_allclose(y, np.maximum(x, 0) @ np.arange(12).reshape(3, 4).T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [64, 256], ids=["written in", "fed"])
@pytest.mark.parametrize(
    "text", ["t = Transpose(w)", "t_ = Transpose(w) t = Neg(t_)"], ids=["turned", "computed"]
)
def test_what_is_made_of_constants_alone_outlives_the_session(text: str, size: int) -> None:
    """ONNX Runtime lends such outputs: their memory goes with the session, and with it what biases and weights were folded to."""
    held = weight(size, 192)
    assert (held.nbytes < INLINE_BYTES) == (size == 64)
    text = f"g (float[M,192] x) => (float[M,{size}] y) {{ {text} y = MatMul(x, t) }}"
    loaded = ir.from_proto(make_model(text, {"w": held}))
    wanted = next(node for node in loaded.graph if node.op_type == "MatMul").inputs[1]
    found = Piece(loaded, list(loaded.graph), [], [wanted]).run({})[wanted]
    others = [np.full_like(held, index) for index in range(100)]  # take what memory was freed
    np.testing.assert_array_equal(found, held.T if "Neg" not in text else -held.T)
    assert found.flags.owndata and len(others) == 100


def test_an_input_that_is_wanted_is_the_callers_copy() -> None:
    loaded = ir.from_proto(make_model("g (float[M,8] x) => (float[M,8] y) { y = Relu(x) }"))
    (x,) = loaded.graph.inputs
    piece = Piece(loaded, list(loaded.graph), [x], [x, loaded.graph.outputs[0]])
    array = _x(8, 4).T
    found = piece.run({x: array})
    np.testing.assert_array_equal(found[x], array)
    assert found[x].flags.owndata
