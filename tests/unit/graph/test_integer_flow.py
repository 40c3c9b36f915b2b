"""Which values become integers, on small graphs written out."""

import onnx_ir as ir
import pytest
from onnx_ir.traversal import RecursiveGraphIterator

from qcompiler.graph.integer_flow import IntegerFlow, clipped_behind, find_integer_flow, islands, range_does
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


def test_all_parts_of_a_split_are_integers_where_one_is_wanted() -> None:
    flow = _flow(
        "a = Conv(x, k) s, t = Split<axis=2, num_outputs=2>(a) e = Exp(t) b = Conv(s, k) y = Concat<axis=2>(b, e)"
    )
    assert _names(flow.values) == ["a", "s", "t", "b"]
    flow = _flow(
        "a = Conv(x, k) s, t = Split<axis=2, num_outputs=2>(a) e = Exp(t) f = Exp(s) y = Concat<axis=2>(f, e)"
    )
    assert _names(flow.values) == ["a"]


@pytest.mark.parametrize(
    ("mode", "carries"),
    [
        ("", True),
        ('<mode="linear">', False),
        ('<coordinate_transformation_mode="tf_crop_and_resize">', False),
    ],
)
def test_a_resize_carries_where_it_repeats_numbers(mode: str, carries: bool) -> None:
    signature = "g (float[B,8,4,4] x, float[4] n, float[8] box) => (float[B,8,4,4] y)"
    flow = _flow(f"a = Conv(x, k) r = Resize{mode}(a, box, n) y = Conv(r, k)", signature)
    assert ("r" in _names(flow.values)) is carries


@pytest.mark.parametrize(
    ("body", "clipped"),
    [
        ("a = Conv(x, k) p = MaxPool<kernel_shape=[1,1]>(a) r = Relu(p) y = Conv(r, k)", {"a"}),
        (
            "a = Conv(x, k) t = Transpose(a) p = MaxPool<kernel_shape=[1,1]>(t) r = Relu(p) y = Conv(r, k)",
            {"a", "t"},
        ),
        ("a = Conv(x, k) b = Conv(x, k) c = Concat<axis=2>(a, b) r = Relu(c) y = Conv(r, k)", {"a", "b"}),
        ("a = Conv(x, k) p = MaxPool<kernel_shape=[1,1]>(a) r = Relu(p) b = Conv(r, k) y = Add(a, b)", set()),
        ("a = Conv(x, k) p = AveragePool<kernel_shape=[1,1]>(a) r = Relu(p) y = Conv(r, k)", set()),
    ],
)
def test_what_only_moves_to_a_relu_may_be_clipped_at_once(body: str, clipped: set[str]) -> None:
    found = clipped_behind(_flow(body))
    assert {value.name for value in found} == clipped and {value.name for value in found.values()} <= {"r"}


def test_islands_are_floats_between_integers() -> None:
    body = "a = Conv(x, k) e = Erf(a) g = Mul(a, e) b = Conv(g, k) y = Exp(b)"
    model = ir.from_proto(make_model(f"{SIGNATURE} {{ {body} }}", KERNEL))
    convolutions = {node for node in model.graph if node.op_type == "Conv"}
    flow = find_integer_flow(model.graph, convolutions, set())
    assert [node.op_type for node in islands(model.graph, flow, convolutions)] == ["Erf", "Mul"]


def test_a_body_reads_integers_of_the_graph_around_it() -> None:
    body = (
        "a = Conv(x, k) y = If(c) <then_branch = t () => (float[B,8,4,4] s) { b = Conv(a, k) r = Relu(b) s = Add(r, a) },"
        " else_branch = e () => (float[B,8,4,4] n) { n = Conv(x, k) }>"
    )
    model = ir.from_proto(
        make_model(f"g (float[B,8,4,4] x, bool c) => (float[B,8,4,4] y) {{ {body} }}", KERNEL)
    )
    convolutions = {node for node in RecursiveGraphIterator(model.graph) if node.op_type == "Conv"}
    flow = find_integer_flow(model.graph, convolutions, set())
    assert _names(flow.values) == ["a", "r", "n"]  # nothing in the branch reads its Add
    ((entry, readers),) = flow.entries.items()
    assert entry.name == "x" and len(readers) == 2
