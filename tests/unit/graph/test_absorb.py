"""find_absorber: what takes a factor upstream, and that the function stays to the last bits."""

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompiler.graph.absorb import Absorber, find_absorber
from qcompiler.graph.census import take_census
from qcompiler.graph.edits import Names
from qcompiler.graph.weights import Weight
from tests.small_models import Array, make_model, relative_error, run, weight

# Moving a factor changes the rounding of a few chained float32 operations; a factor that is lost or doubled changes by half.
ROUNDING = 1e-5


class Scene:
    """A model as one segment, with a weight for each MatMul."""

    def __init__(self, model: onnx.ModelProto, feed: dict[str, Array]) -> None:
        self.before = run(model, feed)
        self.feed = feed
        self.model = ir.from_proto(model)
        self.weights = {use.node: weight for weight in take_census(self.model).weights for use in weight.uses}

    def find(self, *readers: str) -> Absorber | None:
        """For the input of the products of these names."""
        nodes = {node.name: node for node in self.model.graph}
        chosen = [nodes[name] for name in readers]
        value = chosen[0].inputs[0]
        assert value is not None and all(node.inputs[0] is value for node in chosen)
        self.readers = chosen
        graph = self.model.graph
        sample = {graph_input: self.feed[graph_input.name or ""] for graph_input in graph.inputs}
        return find_absorber(
            self.model,
            list(graph),
            value,
            chosen,
            list(graph.inputs),
            sample,
            self._single,
            Names(self.model),
        )

    def _single(self, node: ir.Node) -> Weight | None:
        found = self.weights.get(node)
        return found if found is not None and len(found.uses) == 1 else None

    def scale(self, absorber: Absorber, seed: int = 0) -> None:
        """Random factors into the absorber and their inverse into the readers, then weights written out."""
        factors = np.exp(np.random.default_rng(seed).uniform(-1, 1, absorber.channels)).astype(np.float32)
        absorber.apply(factors)
        for node in self.readers:
            self.weights[node].scale_columns((1 / factors[absorber.follows]).astype(np.float32))
        for each in dict.fromkeys(self.weights.values()):
            values = each.array().T if each.transposed else each.array()
            each.source.const_value = ir.Tensor(
                np.ascontiguousarray(values).astype(np.float32), name=each.source.name
            )

    def error(self) -> float:
        """The largest relative change of any output."""
        after = run(self.model, self.feed)
        assert list(after) == list(self.before)
        return max(relative_error(self.before[name], after[name]) for name in after)


def _x(*shape: int) -> Array:
    return np.random.default_rng(7).standard_normal(shape).astype(np.float32)


RMS = """s = Mul({x}, {x}) axes = Constant<value_ints=[-1]>() m = ReduceMean<keepdims=1>(s, axes) eps = Constant<value_float=1e-6>()
 me = Add(m, eps) root = Sqrt(me) inv = Reciprocal(root) n = Mul({x}, inv)"""


def _norms() -> dict[str, Any]:
    w = {
        "w": weight(32, 24),
        "v": weight(32, 24, seed=2),
        "g": 1 + weight(32, scale=0.1),
        "b": weight(32, seed=3),
    }
    head = "g (float[M,32] x) => (float[M,24] y, float[M,24] z) {"
    tail = " [a] y = MatMul(h, w) [c] z = MatMul(h, v) }"
    return {
        "decomposed rms": make_model(head + RMS.format(x="x") + " h = Mul(g, n)" + tail, {k: w[k] for k in "wvg"}),
        "decomposed rms, weight of three axes": make_model(
            "g (float[B,M,32] x) => (float[B,M,24] y, float[B,M,24] z) {" + RMS.format(x="x") + " h = Mul(n, g)" + tail,
            {**{k: w[k] for k in "wv"}, "g": w["g"].reshape(1, 1, 32)},
        ),
        "layer norm": make_model(head + " h = LayerNormalization(x, g, b)" + tail, w),
        "rms norm": make_model(head + " h = RMSNormalization(x, g)" + tail, {k: w[k] for k in "wvg"}, opset=23),
        "mul and add": make_model(head + RMS.format(x="x") + " q = Mul(n, g) h = Add(q, b)" + tail, w),
        "skip layer norm": make_model(
            head + " h = com.microsoft.SkipLayerNormalization(x, x, g, b, e)" + tail, {**w, "e": weight(32, seed=9)},
            domains={"com.microsoft": 1},
        ),
        "skip rms norm": make_model(
            head + " h = com.microsoft.SkipSimplifiedLayerNormalization(x, x, g, e)" + tail,
            {**{k: w[k] for k in "wvg"}, "e": weight(32, seed=9)}, domains={"com.microsoft": 1},
        ),
    }  # fmt: skip


@pytest.mark.parametrize("kind", _norms())
def test_a_norms_weight_takes_the_factor(kind: str) -> None:
    shape = (2, 5, 32) if "three" in kind else (5, 32)
    scene = Scene(_norms()[kind], {"x": _x(*shape)})
    absorber = scene.find("a", "c")
    assert absorber is not None
    assert absorber.channels == 32
    scene.scale(absorber)
    assert scene.error() <= ROUNDING
    assert len([v for v in scene.model.graph.initializers.values() if not v.uses()]) == 0


def test_a_norm_weight_shared_by_two_norms_is_copied() -> None:
    model = make_model(
        "g (float[M,32] x) => (float[M,24] y, float[M,24] z) { h = LayerNormalization(x, g, b) [a] y = MatMul(h, w)"
        " q = Neg(x) k = LayerNormalization(q, g, b) [c] z = MatMul(k, v) }",
        {
            "w": weight(32, 24),
            "v": weight(32, 24, seed=2),
            "g": 1 + weight(32, scale=0.1),
            "b": weight(32, seed=3),
        },
    )
    scene = Scene(model, {"x": _x(5, 32)})
    absorber = scene.find("a")
    assert absorber is not None
    scene.scale(absorber)
    assert scene.error() <= ROUNDING
    assert {"g", "b"} <= set(scene.model.graph.initializers)


def test_relu_passes_a_factor_to_the_linear_before_it() -> None:
    model = make_model(
        "g (float[M,16] x) => (float[M,24] y) { [a] h = MatMul(x, w) i = Add(h, b) r = Relu(i) [c] y = MatMul(r, v) }",
        {"w": weight(16, 32), "b": weight(32), "v": weight(32, 24, seed=2)},
    )
    scene = Scene(model, {"x": _x(64, 16)})
    absorber = scene.find("c")
    assert absorber is not None
    scene.scale(absorber)
    assert scene.error() <= ROUNDING


def test_the_gated_product_follows_its_linear_half() -> None:
    model = make_model(
        "g (float[M,16] x) => (float[M,16] y) { [gate] a = MatMul(x, w) s = Sigmoid(a) t = Mul(a, s)"
        " [up] u = MatMul(x, v) m = Mul(t, u) [down] y = MatMul(m, z) }",
        {"w": weight(16, 32), "v": weight(16, 32, seed=1), "z": weight(32, 16, seed=2)},
    )
    scene = Scene(model, {"x": _x(8, 16)})
    absorber = scene.find("down")
    assert absorber is not None
    assert absorber.what == "output channels of v"
    np.testing.assert_array_equal(absorber.follows, np.arange(32))
    scene.scale(absorber)
    assert scene.error() <= ROUNDING


ATTENTION = """g (float[B,S,32] x) => (float[B,S,32] y) {
    [q] q0 = MatMul(x, wq) [k] k0 = MatMul(x, wk) [v] v0 = MatMul(x, wv)
    qs = Constant<value_ints=[0,0,4,8]>() ks = Constant<value_ints=[0,0,2,8]>()
    q1 = Reshape(q0, qs) k1 = Reshape(k0, ks) v1 = Reshape(v0, ks)
    q2 = Transpose<perm=[0,2,1,3]>(q1) k2 = Transpose<perm=[0,2,1,3]>(k1) v2 = Transpose<perm=[0,2,1,3]>(v1)
    two = Constant<value_ints=[2]>()
    k3 = Unsqueeze(k2, two) v3 = Unsqueeze(v2, two)
    rep = Constant<value_ints=[1,1,2,1,1]>()
    k4 = Expand(k3, rep) v4 = Expand(v3, rep)
    hs = Constant<value_ints=[0,4,-1,8]>()
    k5 = Reshape(k4, hs) v5 = Reshape(v4, hs)
    k6 = Transpose<perm=[0,1,3,2]>(k5)
    s = MatMul(q2, k6) p = Softmax<axis=-1>(s) o = MatMul(p, v5)
    o1 = Transpose<perm=[0,2,1,3]>(o) ms = Constant<value_ints=[0,0,32]>() o2 = Reshape(o1, ms)
    [o] y = MatMul(o2, wo)
}"""


def _attention(graph: str = ATTENTION) -> onnx.ModelProto:
    return make_model(
        graph,
        {
            "wq": weight(32, 32),
            "wk": weight(32, 16, seed=1),
            "wv": weight(32, 16, seed=2),
            "wo": weight(32, 32, seed=3),
        },
    )


def test_grouped_query_heads_share_the_factors_of_their_value() -> None:
    scene = Scene(_attention(), {"x": _x(2, 6, 32)})
    absorber = scene.find("o")
    assert absorber is not None
    assert absorber.channels == 16
    # heads 0 and 1 read value head 0, heads 2 and 3 value head 1
    expected = np.concatenate([np.tile(np.arange(8), 2), np.tile(np.arange(8, 16), 2)])
    np.testing.assert_array_equal(absorber.follows, expected)
    scene.scale(absorber)
    assert scene.error() <= ROUNDING


def test_a_value_that_is_also_the_present_cache_is_left_alone() -> None:
    graph = ATTENTION.replace("(float[B,S,32] y)", "(float[B,S,32] y, float[B,2,S,8] v2)")
    scene = Scene(_attention(graph), {"x": _x(2, 6, 32)})
    assert scene.find("o") is None


@pytest.mark.parametrize(
    "other",
    [
        "z = Neg(h)",  # another reader of the norm's output
        "z = Identity(h)",
    ],
)
def test_another_reader_of_the_input_forbids_it(other: str) -> None:
    model = make_model(
        f"g (float[M,32] x) => (float[M,24] y, float[M,32] z) {{ h = LayerNormalization(x, g, b) [a] y = MatMul(h, w) {other} }}",
        {"w": weight(32, 24), "g": 1 + weight(32, scale=0.1), "b": weight(32, seed=3)},
    )
    assert Scene(model, {"x": _x(5, 32)}).find("a") is None


def test_the_product_under_a_bias_must_not_be_an_output() -> None:
    model = make_model(
        "g (float[M,16] x) => (float[M,24] y, float[M,32] h) { [a] h = MatMul(x, w) i = Add(h, b) r = Relu(i) [c] y = MatMul(r, v) }",
        {"w": weight(16, 32), "b": weight(32), "v": weight(32, 24, seed=2)},
    )
    assert Scene(model, {"x": _x(64, 16)}).find("c") is None


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_float16_that_overflows_on_the_sample_forbids_it() -> None:
    big = weight(16, 32, dtype=np.float16)
    big[:, 5] = -60000  # the Relu clears the infinities
    model = make_model(
        "g (float16[M,16] x) => (float16[M,24] y) { [a] h = MatMul(x, w) r = Relu(h) [c] y = MatMul(r, v) }",
        {"w": big, "v": weight(32, 24, seed=2, dtype=np.float16)},
    )
    assert Scene(model, {"x": np.ones((4, 16), np.float16)}).find("c") is None


@pytest.mark.parametrize("op", ["Tanh", "Sigmoid", "Erf", "Exp", "Softplus"])
def test_a_curve_in_between_forbids_it(op: str) -> None:
    model = make_model(
        f"g (float[M,16] x) => (float[M,24] y) {{ [a] h = MatMul(x, w) r = {op}(h) [c] y = MatMul(r, v) }}",
        {"w": weight(16, 32), "v": weight(32, 24, seed=2)},
    )
    assert Scene(model, {"x": _x(64, 16)}).find("c") is None


@pytest.mark.parametrize("bound", [
    "r = Min(h, top)", "r = Max(h, bottom)", "g = Greater(h, top) r = Where(g, top, h)",
    "r = ThresholdedRelu<alpha=0.001>(h)", "r = Shrink<lambd=0.001>(h)",
])  # fmt: skip
def test_a_bound_that_the_sample_never_reaches_forbids_it(bound: str) -> None:
    model = make_model(
        f"g (float[M,16] x) => (float[M,24] y) {{ [a] h = MatMul(x, w) {bound} [c] y = MatMul(r, v) }}",
        {
            "w": weight(16, 32),
            "v": weight(32, 24, seed=2),
            "top": np.full(1, 1000, np.float32),
            "bottom": np.full(1, -1000, np.float32),
        },
    )
    assert Scene(model, {"x": _x(64, 16)}).find("c") is None


def test_a_bound_that_only_a_real_outlier_reaches_forbids_it() -> None:
    """Relu of what passes 60 is taken off again; channel 0 is 100, normal numbers of the same spread stay under 60."""
    first = weight(16, 256, scale=0.0)
    first[:, 0] = 100 / 16
    model = make_model(
        "g (float[M,16] x) => (float[M,24] y) { [a] h = MatMul(x, w) d = Sub(h, top) e = Relu(d) r = Sub(h, e) [c] y = MatMul(r, v) }",
        {"w": first, "v": weight(256, 24, seed=2), "top": np.full(1, 60, np.float32)},
    )
    assert Scene(model, {"x": np.ones((8, 16), np.float32)}).find("c") is None


@pytest.mark.parametrize("op", ["Abs", "LeakyRelu<alpha=0.1>", "Relu"])
def test_positively_homogeneous_functions_pass_it(op: str) -> None:
    model = make_model(
        f"g (float[M,16] x) => (float[M,24] y) {{ [a] h = MatMul(x, w) r = {op}(h) [c] y = MatMul(r, v) }}",
        {"w": weight(16, 32), "v": weight(32, 24, seed=2)},
    )
    scene = Scene(model, {"x": _x(64, 16)})
    absorber = scene.find("c")
    assert absorber is not None
    scene.scale(absorber)
    assert scene.error() <= ROUNDING


def test_channels_that_are_summed_follow_none() -> None:
    model = make_model(
        "g (float[M,16] x) => (float[M,24] y) { [a] h = MatMul(x, w) one = Constant<value_ints=[1]>() t = ReduceSum<keepdims=1>(h, one)"
        " r = Add(h, t) [c] y = MatMul(r, v) }",
        {"w": weight(16, 32), "v": weight(32, 24, seed=2)},
    )
    assert Scene(model, {"x": _x(64, 16)}).find("c") is None


@settings(max_examples=6, deadline=None)
@given(order=st.permutations([0, 1, 2]), heads=st.sampled_from([1, 2, 4]), seed=st.integers(0, 9))
def test_any_shuffle_of_channels_is_followed(order: list[int], heads: int, seed: int) -> None:
    """Reshape to [M, heads, width, 2], permute the last three axes, and back: y is the same after any factors."""
    perm = [0, *(1 + axis for axis in order)]
    model = make_model(
        f"g (float[M,16] x) => (float[M,24] y) {{ [a] h = MatMul(x, w) s = Constant<value_ints=[-1,{heads},{16 // heads},2]>()"
        f" r = Reshape(h, s) t = Transpose<perm={perm}>(r) f = Constant<value_ints=[-1,32]>() q = Reshape(t, f) [c] y = MatMul(q, v) }}",
        {"w": weight(16, 32), "v": weight(32, 24, seed=2)},
    )
    scene = Scene(model, {"x": _x(4, 16)})
    absorber = scene.find("c")
    assert absorber is not None
    assert sorted(absorber.follows) == list(range(32))
    scene.scale(absorber, seed)
    assert scene.error() <= ROUNDING
