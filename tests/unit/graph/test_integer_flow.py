"""Which values become integers, on small graphs written out."""

import onnx_ir as ir
import pytest

from qcompiler.graph.integer_flow import IntegerFlow, find_integer_flow, range_does
from tests.small_models import make_model, weight

KERNEL = {"k": weight(8, 8, 1, 1), "k2": weight(8, 8, 3, 3, seed=1), "m": weight(8, 8, seed=2)}
SIGNATURE = "g (float[B,8,4,4] x) => (float[B,8,4,4] y)"


def _flow(body: str, signature: str = SIGNATURE) -> IntegerFlow:
    model = ir.from_proto(make_model(f"{signature} {{ {body} }}", KERNEL))
    convolutions = {node for node in model.graph if node.op_type == "Conv"}
    linears = {node for node in model.graph if node.op_type == "MatMul" and node.inputs[1].is_initializer()}  # type: ignore[union-attr]
    return find_integer_flow(model.graph, convolutions, linears)


def _names(values: list[ir.Value]) -> list[str | None]:
    return [value.name for value in values]


@pytest.mark.parametrize(
    "relu",
    [
        "r = Relu(a)",
        "zero = Constant<value_float=0.0>() six = Constant<value_float=6.0>() r = Clip(a, zero, six)",
    ],
)
def test_a_relu_behind_a_convolution_is_absorbed(relu: str) -> None:
    flow = _flow(f"a = Conv(x, k) {relu} y = Conv(r, k)")
    assert _names(list(flow.entries)) == ["x"] and _names(flow.values) == ["r", "y"]
    assert _names(list(flow.absorbed)) == ["r"]


def test_a_relu_of_which_something_else_reads_the_input_is_not() -> None:
    flow = _flow("a = Conv(x, k) r = Relu(a) s = Add(a, r) y = Conv(s, k)")
    assert "a" in _names(flow.values) and not flow.absorbed
    assert _names(list(flow.entries)) == ["x", "s"]  # Relu makes floats, so Add does


def test_a_clip_whose_upper_bound_is_computed_is_not() -> None:
    flow = _flow(
        "zero = Constant<value_float=0.0>() a = Conv(x, k) r = Clip(a, zero, top) y = Conv(r, k)",
        "g (float[B,8,4,4] x, float top) => (float[B,8,4,4] y)",
    )
    assert "a" in _names(flow.values) and not flow.absorbed


@pytest.mark.parametrize(("lowest", "highest", "does"), [(0, 6, True), (-0.1, 6, False), (0, 6.1, False)])
def test_a_range_does_what_a_clip_does_only_within_its_bounds(
    lowest: float, highest: float, does: bool
) -> None:
    flow = _flow(
        "zero = Constant<value_float=0.0>() six = Constant<value_float=6.0>() "
        "a = Conv(x, k) r = Clip(a, zero, six) y = Conv(r, k)"
    )
    (clip,) = flow.absorbed.values()
    assert range_does(clip, lowest, highest) is does


def test_a_residual_of_convolutions_stays_in_integers() -> None:
    flow = _flow("a = Conv(x, k) b = Conv(a, k) s = Add(a, b) r = Relu(s) y = Conv(r, k)")
    assert _names(flow.values) == ["a", "b", "r", "y"]


def test_an_end_that_no_integer_kernel_reads_stays_float() -> None:
    flow = _flow(
        "a = Conv(x, k) p = MaxPool<kernel_shape=[1,1]>(a) t = Transpose<perm=[0,1,3,2]>(p) y = Exp(t)"
    )
    assert _names(flow.values) == ["a"]


def test_moved_values_share_a_scale() -> None:
    flow = _flow(
        "a = Conv(x, k) b = Conv(a, k) c = Max(a, b) t = Transpose<perm=[0,1,3,2]>(c) y = Conv(t, k)"
    )
    (group,) = flow.together
    assert {value.name for value in group} == {"a", "b", "c", "t"}


def test_linears_take_integers_and_make_floats() -> None:
    flow = _flow(
        "a = MatMul(x, m) b = Relu(a) c = MatMul(b, m) y = Add(c, x)", "g (float[B,8] x) => (float[B,8] y)"
    )
    assert _names(list(flow.entries)) == ["x", "b"] and not flow.values
