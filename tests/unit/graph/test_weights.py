"""constant_view and Weight: the numbers behind a chain of nodes are those that ONNX Runtime computes."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompiler.graph.census import take_census
from qcompiler.graph.weights import constant_view
from tests.small_models import Array, make_model, run, weight


def _view_values(model: onnx.ModelProto) -> Array | None:
    """What constant_view says of the value ``v``, or None."""
    loaded = ir.from_proto(model)
    node = next(n for n in loaded.graph if n.outputs[0].name == "y")
    view = constant_view(node.inputs[0])
    if view is None:
        return None
    result = view.array().astype(view.dtype.numpy())
    assert result.shape == view.final_shape
    return result


def _model(text: str, array: Array, opset: int = 21) -> onnx.ModelProto:
    return make_model(f"g () => (float[A,B] y) {{ {text} y = Neg(v) }}", {"w": array}, opset=opset)


STEPS = {
    "identity": "{out} = Identity({x})",
    "transpose": "{out} = Transpose<perm=[1,0]>({x})",
    "plain transpose": "{out} = Transpose({x})",
    "no transpose": "{out} = Transpose<perm=[0,1]>({x})",
    "narrow": "{out}c = Cast<to=10>({x}) {out} = Cast<to=1>({out}c)",
    "reshape": "{out}s = Constant<value_ints=[-1,4]>() {out} = Reshape({x}, {out}s)",
    "keep": "{out}s = Constant<value_ints=[0,-1]>() {out} = Reshape({x}, {out}s)",
    "in and out": "{out}a = Constant<value_ints=[1]>() {out}u = Unsqueeze({x}, {out}a) {out} = Squeeze({out}u, {out}a)",
}


@settings(max_examples=40, deadline=None)
@given(chain=st.lists(st.sampled_from(sorted(STEPS)), max_size=4))
def test_any_chain_says_what_the_runtime_computes_or_nothing(chain: list[str]) -> None:
    text, x = "", "w"
    for number, name in enumerate([*chain, "identity"]):
        out = "v" if number == len(chain) else f"t{number}"
        text += STEPS[name].format(out=out, x=x) + " "
        x = out
    model = _model(text, weight(8, 6))
    values = _view_values(model)
    turned = [i for i, name in enumerate(chain) if "transpose" in name and name != "no transpose"]
    shaped = [i for i, name in enumerate(chain) if name in ("reshape", "keep", "in and out")]
    if not turned or not shaped:
        assert values is not None, "a chain of only one kind is always seen through"
    if values is not None:
        # through float16 both round; without it equal
        np.testing.assert_allclose(
            -values,
            run(model, {})["y"],
            rtol=2**-10 if "narrow" in chain else 0,
            atol=1e-6 if "narrow" in chain else 0,
        )


@pytest.mark.parametrize("text", [
    "s = Shape(w) r = Cast<to=1>(s) v = Add(w, w)",
    "v = Mul(w, w)",
    "z = Constant<value_ints=[0]>() o = Constant<value_ints=[4]>() v = Slice(w, z, o)",
])  # fmt: skip
def test_what_computes_is_no_constant(text: str) -> None:
    assert _view_values(_model(text, weight(8, 6))) is None


def test_an_input_is_no_constant() -> None:
    loaded = ir.from_proto(make_model("g (float[4,4] x) => (float[4,4] y) { v = Identity(x) y = Neg(v) }"))
    assert constant_view(loaded.graph[0].outputs[0]) is None
    assert constant_view(None) is None


@pytest.mark.parametrize(
    "text", ["i = Cast<to=6>(w) v = Cast<to=1>(i)", "i = Cast<to=17>(w) v = Cast<to=1>(i)"]
)
def test_a_cast_that_rounds_is_computed(text: str) -> None:
    assert _view_values(_model(text, weight(8, 6, scale=3.0))) is None


def test_integers_behind_a_cast_are_no_floats() -> None:
    assert _view_values(_model("v = Cast<to=1>(w)", np.ones((8, 6), np.int8))) is None


def test_doubles_behind_a_cast_are_floats() -> None:
    values = _view_values(_model("v = Cast<to=1>(w)", weight(8, 6, dtype=np.float64)))
    assert values is not None
    assert values.dtype == np.float32


@pytest.mark.parametrize(("shape", "attribute"), [([0, -1], ""), ([0, 6], "<allowzero=1>")])
def test_reshaping_an_empty_constant_says_nothing(shape: list[int], attribute: str) -> None:
    text = f"s = Constant<value_ints={shape}>() v = Reshape{attribute}(w, s)"
    assert _view_values(_model(text, np.zeros((0, 6), np.float32))) is None


def test_squeezing_before_opset_13() -> None:
    model = make_model(
        "g () => (float[A,B] y) { v = Squeeze<axes=[0]>(w) y = Neg(v) }", {"w": weight(1, 8, 6)}, opset=11
    )
    values = _view_values(model)
    assert values is not None
    np.testing.assert_array_equal(-values, run(model, {})["y"])


@pytest.mark.parametrize("transposed", [True, False])
def test_scales_are_multiplied_when_read(transposed: bool) -> None:
    text = "t = Transpose(w) y = MatMul(x, t)" if transposed else "y = MatMul(x, w)"
    stored = weight(24, 32) if transposed else weight(32, 24)
    loaded = ir.from_proto(make_model(f"g (float[M,32] x) => (float[M,24] y) {{ {text} }}", {"w": stored}))
    (found,) = take_census(loaded).weights
    plain = stored if transposed else stored.T
    assert found.shape == (24, 32)
    np.testing.assert_array_equal(found.array(), plain)
    rows, columns = np.exp(weight(24, seed=1)), np.exp(weight(32, seed=2))
    for _ in range(2):  # twice: factors multiply
        found.scale_rows(rows)
        found.scale_columns(columns)
    # four float32 products: four roundings
    np.testing.assert_allclose(
        found.array(), plain * rows[:, None] ** 2 * columns[None] ** 2, rtol=4 * 1.2e-7
    )
    np.testing.assert_array_equal(loaded.graph.initializers["w"].const_value.numpy(), stored)


PARTS = {
    "gather": "i = Constant<value_int=2>() v = Gather(w, i)",
    "gather from the end": "i = Constant<value_int=-1>() v = Gather<axis=0>(w, i)",
    "gather, kept": "i = Constant<value_ints=[1]>() v = Gather(w, i)",
    "turned": "t = Transpose<perm=[0,2,1]>(w) i = Constant<value_int=1>() v = Gather(t, i)",
    "turned after": "i = Constant<value_int=1>() t = Gather(w, i) v = Transpose<perm=[1,0]>(t)",
    "slice": "b = Constant<value_ints=[1]>() e = Constant<value_ints=[2]>() a = Constant<value_ints=[0]>() v = Slice(w, b, e, a)",
    "last slice": "b = Constant<value_ints=[-1]>() e = Constant<value_ints=[99]>() a = Constant<value_ints=[0]>() v = Slice(w, b, e, a)",
    "split": "p, q, v = Split<axis=0, num_outputs=3>(w)",
    "split, squeezed": "p, q, r = Split<axis=0, num_outputs=3>(w) a = Constant<value_ints=[0]>() v = Squeeze(q, a)",
    "reshaped": "s = Constant<value_ints=[6,4,5]>() t = Reshape(w, s) i = Constant<value_int=4>() v = Gather(t, i)",
}
OTHERS = {
    "another axis": "i = Constant<value_int=1>() v = Gather<axis=1>(w, i)",
    "two": "i = Constant<value_ints=[0,1]>() v = Gather(w, i)",
    "a longer slice": "b = Constant<value_ints=[0]>() e = Constant<value_ints=[2]>() a = Constant<value_ints=[0]>() v = Slice(w, b, e, a)",
    "rows": "b = Constant<value_ints=[0]>() e = Constant<value_ints=[1]>() a = Constant<value_ints=[1]>() v = Slice(w, b, e, a)",
    "uneven": "s = Constant<value_ints=[2,1]>() p, v = Split<axis=0>(w, s)",
    "part of a part": "i = Constant<value_int=1>() t = Gather(w, i) s = Constant<value_ints=[2,4,5]>() u = Reshape(t, s) v = Gather(u, i)",
}


@pytest.mark.parametrize("name", PARTS)
def test_one_of_a_stack_is_what_the_runtime_computes(name: str) -> None:
    array = weight(3, 8, 5)
    model = make_model(f"g () => (float y) {{ {PARTS[name]} y = Neg(v) }}", {"w": array})
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    model.graph.output[0].type.tensor_type.ClearField("shape")
    values = _view_values(model)
    assert values is not None
    np.testing.assert_array_equal(-run(model, {})["y"], values)


@pytest.mark.parametrize("name", OTHERS)
def test_other_selections_are_no_view(name: str) -> None:
    model = make_model(f"g () => (float y) {{ {OTHERS[name]} y = Neg(v) }}", {"w": weight(3, 8, 5)})
    assert _view_values(model) is None
