"""cut_segments: where graphs are cut, and that the pieces are the graph."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompiler.calibration.segments import LARGEST_SEGMENT, Segment, cut_segments
from qcompiler.graph.extract import Piece
from tests.small_models import Array, make_model, run, weight

D = 16


def _cut(model: onnx.ModelProto) -> tuple[ir.Model, list[Segment]]:
    loaded = ir.from_proto(model)
    anchors = [n for n in loaded.graph if n.op_type in ("MatMul", "Gemm", "Loop", "If") and _has_weight(n)]
    return loaded, cut_segments(loaded.graph, anchors, fewest=1)


def _has_weight(node: ir.Node) -> bool:
    return node.op_type in ("Loop", "If") or any(v is not None and v.is_initializer() for v in node.inputs)


def _widths(loaded: ir.Model, segments: list[Segment]) -> list[int]:
    """How many values each later segment takes that are no inputs of the model."""
    inputs = set(loaded.graph.inputs)
    return [len([v for v in s.inputs if v not in inputs]) for s in segments[1:]]


def _replay(loaded: ir.Model, segments: list[Segment], feed: dict[str, Array]) -> dict[str, Array]:
    """Outputs of the graph from its segments run one after another."""
    held = {value: feed[value.name or ""] for value in loaded.graph.inputs}
    for segment in segments:
        if segment.outputs:
            held.update(Piece(loaded, segment.nodes, segment.inputs, segment.outputs).run(held))
    return {value.name or "": held[value] for value in loaded.graph.outputs}


def _check(model: onnx.ModelProto, feed: dict[str, Array]) -> tuple[ir.Model, list[Segment]]:
    loaded, segments = _cut(model)
    assert [node for segment in segments for node in segment.nodes] == list(loaded.graph)
    after = _replay(loaded, segments, feed)
    for name, expected in run(model, feed).items():
        # other fusions in the pieces: a few float32 roundings
        np.testing.assert_allclose(after[name], expected, rtol=1e-4, atol=1e-5)
    return loaded, segments


def _x(*shape: int) -> Array:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def _weights(names: list[str], d: int = D) -> dict[str, Array]:
    return {name: weight(d, d, seed=i) for i, name in enumerate(names)}


def test_a_residual_stream_is_cut_at_width_one() -> None:
    text, x = "", "x"
    for i in range(4):
        text += f" a{i} = MatMul({x}, u{i}) r{i} = Relu(a{i}) b{i} = MatMul(r{i}, d{i}) x{i} = Add({x}, b{i})"
        x = f"x{i}"
    names = [f"{kind}{i}" for i in range(4) for kind in "ud"]
    model = make_model(f"g (float[M,{D}] x) => (float[M,{D}] x3) {{{text} }}", _weights(names))
    loaded, segments = _check(model, {"x": _x(3, D)})
    assert _widths(loaded, segments) == [1, 1, 1]
    assert [segment.outputs[0].name for segment in segments] == ["x0", "x1", "x2", "x3"]


def test_products_of_one_input_stay_together_in_the_first_block() -> None:
    text = " n = Tanh(x) q = MatMul(n, w0) k = MatMul(n, w1) s = Mul(q, k) o = MatMul(s, w2) r = Add(x, o) u = MatMul(r, w3) y = Add(r, u)"
    model = make_model(
        f"g (float[M,{D}] x) => (float[M,{D}] y) {{{text} }}", _weights(["w0", "w1", "w2", "w3"])
    )
    _, segments = _check(model, {"x": _x(3, D)})
    assert [len([n for n in s.nodes if n.op_type == "MatMul"]) for s in segments] == [3, 1]


def _cross(layers: int = 10) -> onnx.ModelProto:
    """An encoder whose output every decoder layer multiplies: two values are alive in the decoder."""
    text = " e0 = MatMul(x, we) e1 = Relu(e0) e2 = MatMul(e1, wf) y0 = MatMul(z, wg)"
    names = ["we", "wf", "wg"]
    for i in range(layers):
        text += f" k{i} = MatMul(e2, wk{i}) q{i} = MatMul(y{i}, wq{i}) m{i} = Mul(k{i}, q{i}) o{i} = MatMul(m{i}, wo{i}) y{i + 1} = Add(y{i}, o{i})"
        names += [f"wk{i}", f"wq{i}", f"wo{i}"]
    return make_model(
        f"g (float[M,{D}] x, float[M,{D}] z) => (float[M,{D}] y{layers}) {{{text} }}", _weights(names)
    )


def test_an_encoder_that_a_decoder_reads_throughout() -> None:
    loaded, segments = _check(_cross(), {"x": _x(3, D), "z": _x(3, D)})
    held = [sum(_has_weight(n) and n.op_type == "MatMul" for n in s.nodes) for s in segments]
    assert max(held) <= LARGEST_SEGMENT, "the decoder is cut again at its own least width"
    assert max(_widths(loaded, segments)) <= 2


def test_skips_like_a_unets() -> None:
    text = " a = MatMul(x, w0) b = Relu(a) c = MatMul(b, w1) d = Relu(c) e = MatMul(d, w2) f = Add(e, c) h = MatMul(f, w3) y = Add(h, a)"
    model = make_model(
        f"g (float[M,{D}] x) => (float[M,{D}] y) {{{text} }}", _weights(["w0", "w1", "w2", "w3"])
    )
    _check(model, {"x": _x(3, D)})


def test_one_weight_is_one_segment() -> None:
    model = make_model(
        f"g (float[M,{D}] x) => (float[M,{D}] y) {{ a = Relu(x) y = MatMul(a, w) }}", _weights(["w"])
    )
    _, segments = _check(model, {"x": _x(3, D)})
    assert len(segments) == 1


def test_branches_that_never_meet_before_the_end() -> None:
    text = " a = MatMul(x, w0) b = MatMul(x, w1) c = MatMul(x, w2) d = Add(a, b) y = Add(c, d)"
    model = make_model(f"g (float[M,{D}] x) => (float[M,{D}] y) {{{text} }}", _weights(["w0", "w1", "w2"]))
    _check(model, {"x": _x(3, D)})


def test_convolutions_before_a_classifier() -> None:
    model = make_model(
        "g (float[B,1,8,8] x) => (float[B,10] y) { a = Conv<pads=[1,1,1,1]>(x, k) b = Relu(a) c = MaxPool<kernel_shape=[2,2], strides=[2,2]>(b)"
        " d = Flatten(c) e = Gemm(d, w, s) f = Relu(e) y = Gemm<transB=1>(f, v) }",
        {"k": weight(4, 1, 3, 3), "w": weight(64, 32), "s": weight(32), "v": weight(10, 32)},
    )
    loaded, segments = _check(model, {"x": _x(2, 1, 8, 8)})
    assert len(segments) == 2
    assert _widths(loaded, segments) == [1]


def test_values_that_no_weight_makes_are_carried_not_counted() -> None:
    text = " n = Neg(x) a = MatMul(x, w0) b = Add(a, n) c = MatMul(b, w1) d = Add(c, n) e = MatMul(d, w2) y = Add(e, n)"
    model = make_model(f"g (float[M,{D}] x) => (float[M,{D}] y) {{{text} }}", _weights(["w0", "w1", "w2"]))
    _, segments = _check(model, {"x": _x(3, D)})
    assert len(segments) == 3
    assert {v.name for v in segments[2].inputs} == {"c", "n"}


def test_constants_are_not_carried_wherever_their_nodes_stand() -> None:
    text = (
        " c1 = Cast<to=1>(w1) t2 = Transpose<perm=[1,0]>(w2) k = Constant<value_float=2.0>()"
        " a = MatMul(x, w0) b = MatMul(a, c1) c = MatMul(b, t2) y = Mul(c, k)"
    )
    weights = _weights(["w0", "w2"]) | {"w1": weight(D, D, dtype=np.float16)}
    model = make_model(f"g (float[M,{D}] x) => (float[M,{D}] y) {{{text} }}", weights)
    loaded = ir.from_proto(model)
    segments = cut_segments(loaded.graph, [n for n in loaded.graph if n.op_type == "MatMul"], fewest=1)
    assert len(segments) == 3
    assert [[v.name for v in s.inputs] for s in segments] == [["x"], ["a"], ["b"]]
    np.testing.assert_allclose(
        _replay(loaded, segments, {"x": _x(3, D)})["y"],
        run(model, {"x": _x(3, D)})["y"],
        rtol=1e-4,
        atol=1e-5,
    )


def test_what_a_body_captures_is_carried() -> None:
    model = make_model(
        f"""g (float[M,{D}] x, bool c) => (float[M,{D}] y) {{ n = Neg(x) a = MatMul(x, w0) b = MatMul(a, w1)
        d = If(c) <then_branch = t () => (float[M,{D}] p) {{ o = Add(n, b) p = MatMul(o, w2) }},
                   else_branch = e () => (float[M,{D}] q) {{ q = Identity(a) }}>
        y = MatMul(d, w3) }}""",
        _weights(["w0", "w1", "w2", "w3"]),
    )
    for c in (True, False):
        _, segments = _check(model, {"x": _x(3, D), "c": np.array(c)})
        assert len(segments) > 1


@settings(max_examples=15, deadline=None)
@given(data=st.data(), count=st.integers(2, 9))
def test_any_graph_is_replayed_by_its_segments(data: st.DataObject, count: int) -> None:
    """Random graphs of products, sums and curves: concatenated segments are the graph and compute the same."""
    values, text, names = ["x"], "", []
    for i in range(count):
        kind = data.draw(st.sampled_from(["MatMul", "Add", "Tanh"]))
        left, right = (data.draw(st.sampled_from(values)) for _ in range(2))
        if kind == "MatMul":
            names.append(f"w{i}")
            text += f" v{i} = MatMul({left}, w{i})"
        else:
            text += f" v{i} = Add({left}, {right})" if kind == "Add" else f" v{i} = Tanh({left})"
        values.append(f"v{i}")
    model = make_model(
        f"g (float[M,{D}] x) => (float[M,{D}] y, float[M,{D}] {values[-2] if count > 1 and values[-2] != 'x' else 'v0'})"
        f" {{{text} y = Neg({values[-1]}) }}",
        _weights(names),
    )
    _check(model, {"x": _x(2, D)})


@pytest.mark.parametrize("optional", [True, False])
def test_missing_optional_inputs_are_no_values(optional: bool) -> None:
    clip = "Clip(a, , high)" if optional else "Clip(a, high, high)"
    model = make_model(
        f"g (float[M,{D}] x) => (float[M,{D}] y) {{ high = Constant<value_float=1.0>() a = MatMul(x, w0) b = {clip} y = MatMul(b, w1) }}",
        _weights(["w0", "w1"]),
    )
    _, segments = _check(model, {"x": _x(3, D)})
    assert len(segments) == 2
