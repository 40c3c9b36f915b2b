"""take_census: every product is found with its role, or left alone with a reason."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from qcompiler.graph.census import Census, take_census
from qcompiler.graph.weights import Expert, Role
from tests.small_models import Array, make_model, weight


def _census(graph: str, weights: dict[str, Array] | None = None, **options: object) -> Census:
    return take_census(ir.from_proto(make_model(graph, weights, **options)))  # type: ignore[arg-type]


def _roles(census: Census) -> dict[str, str]:
    return {found.name: found.role.value for found in census.weights}


def test_embedding_linear_head() -> None:
    census = _census(
        "g (int64[B,S] i) => (float[B,S,50] y) { e = Gather(t, i) h = MatMul(e, w) r = Relu(h) q = MatMul(r, v) y = Add(q, b) }",
        {"t": weight(50, 32), "w": weight(32, 32), "v": weight(32, 50), "b": weight(50)},
    )
    assert _roles(census) == {"t": "embedding", "w": "linear", "v": "head"}
    assert {found.name: found.shape for found in census.weights} == {
        "t": (50, 32),
        "w": (32, 32),
        "v": (50, 32),
    }
    assert not census.left_alone


@pytest.mark.parametrize(
    "head", ["q = Transpose<perm=[1,0]>(t) y = MatMul(e, q)", "f = Reshape(e, s) y = Gemm<transB=1>(f, t)"]
)
def test_a_tied_weight_is_one(head: str) -> None:
    census = _census(
        f"g (int64[B,S] i) => (float[B,S,50] y) {{ e = Gather(t, i) {head} }}".replace(
            "[B,S,50]", "[B,S,50]" if "MatMul" in head else "[M,50]"
        ),
        {"t": weight(50, 32), "s": np.array([-1, 32])},
    )
    (found,) = census.weights
    assert [use.role.value for use in found.uses] == ["embedding", "head"]
    assert found.role.value == "head"


def test_one_weight_both_ways_round_is_two() -> None:
    census = _census(
        "g (float[M,32] x) => (float[M,32] y) { h = MatMul(x, w) t = Transpose(w) r = Relu(h) q = MatMul(r, t) y = Relu(q) }",
        {"w": weight(32, 32)},
    )
    assert len(census.weights) == 2
    assert len({found.name for found in census.weights}) == 2


def test_one_weight_in_two_float_types_is_two() -> None:
    census = _census(
        "g (float[M,32] x, float16[M,32] z) => (float[M,24] y, float16[M,24] q) { c = Cast<to=1>(w) y = MatMul(x, c) q = MatMul(z, w) }",
        {"w": weight(32, 24, dtype=np.float16)},
    )
    assert sorted(found.dtype.name for found in census.weights) == ["FLOAT", "FLOAT16"]


@pytest.mark.parametrize(("text", "weights", "reason"), [
    ("y = MatMul(x, z)", {}, "both factors are activations"),
    ("y = MatMul(w, z)", {"w": weight(4, 32)}, "the constant is the left factor"),
    ("c = Mul(w, s) y = MatMul(x, c)", {"w": weight(32, 24), "s": weight(24)}, "computed by nodes from other constants"),
    ("c, d = Split<axis=1,num_outputs=2>(w) y = MatMul(x, c)", {"w": weight(32, 64)}, "computed by nodes from other constants"),
    ('y = Einsum<equation="mk,kn->mn">(x, w)', {"w": weight(32, 24)}, "an Einsum with a constant"),
    ("y = MatMul(x, w)", {"w": weight(2, 2, 32, 32)}, "4 dimensions"),
    ("s = Constant<value_ints=[-1,8]>() r = Reshape(x, s) y = MatMul(r, w)", {"w": weight(8, 32)}, "K=8 is less than"),
    ("c = DequantizeLinear(w, f) y = MatMul(x, c)", {"w": np.ones((32, 32), np.int8), "f": np.array(0.1, np.float32)}, "already quantized"),
    ("c = DequantizeLinear<axis=1,block_size=16>(w, f) t = Transpose<perm=[1,0]>(c) y = MatMul(x, t)",
     {"w": np.ones((32, 32), np.int8), "f": np.ones((32, 2), np.float32)}, "already quantized"),
    ("c = DequantizeLinear<axis=1>(w, f, p) t = Transpose<perm=[1,0]>(c) y = MatMul(x, t)",
     {"w": np.ones((32, 32), np.int8), "f": np.ones(32, np.float32), "p": np.ones(32, np.int8)}, "already quantized"),
    ("c = Cast<to=1>(w) y = MatMul(x, c)", {"w": np.ones((32, 32), np.int8)}, "already quantized"),
    ("i = Cast<to=6>(w) c = Cast<to=1>(i) y = MatMul(x, c)", {"w": weight(32, 32)}, "the weight is rounded by a Cast to INT32"),
    ("i = Cast<to=17>(w) c = Cast<to=1>(i) y = MatMul(x, c)", {"w": weight(32, 32)}, "the weight is rounded by a Cast to FLOAT8E4M3FN"),
])  # fmt: skip
def test_why_a_product_is_left_alone(text: str, weights: dict[str, Array], reason: str) -> None:
    census = _census(
        f"g (float[M,32] x, float[32,32] z) => (float[A,B] y) {{ {text} }}".replace(
            "[A,B]", "[A,B,C,D]" if "4 dim" in reason else "[A,B]"
        ),
        weights,
    )
    assert not census.weights
    assert [alone.reason for alone in census.left_alone if reason in alone.reason]


def test_a_kernel_is_a_weight_of_its_outputs_and_integers_are_left_alone() -> None:
    census = _census(
        "g (float[1,3,8,8] x, int32[M,32] i) => (float[A,B,C,D] y, int32[M,32] z) { y = Conv(x, k) z = MatMul(i, n) }",
        {"k": weight(4, 3, 3, 3), "n": np.ones((32, 32), np.int32)},
    )
    (kernel,) = census.weights
    assert (kernel.shape, kernel.kernel, kernel.role) == ((4, 27), (4, 3, 3, 3), Role.CONV)
    assert ["INT32" in alone.reason for alone in census.left_alone] == [True]


def test_a_transposed_convolution_is_left_alone() -> None:
    census = _census(
        "g (float[1,3,8,8] x) => (float[A,B,C,D] y) { y = ConvTranspose(x, k) }", {"k": weight(3, 4, 3, 3)}
    )
    assert not census.weights and "transposed convolution" in census.left_alone[0].reason


def test_a_rotary_table_is_no_embedding() -> None:
    census = _census(
        "g (int64[S] i, float[S,32] x) => (float[S,32] y) { c = Gather(t, i) y = Mul(x, c) }",
        {"t": weight(50, 32)},
    )
    assert not census.weights
    assert census.left_alone[0].reason.endswith("rotary positions")


def test_an_embedding_times_its_mask_is_an_embedding() -> None:
    model = make_model(
        "g (int64[B,S] i, float[B,S] mask) => (float[B,S,24] y) { e = Gather(t, i) last = Constant<value_ints=[-1]>()"
        " m = Unsqueeze(mask, last) h = Mul(e, m) q = MatMul(h, w) y = Relu(q) }",
        {"t": weight(50, 32), "w": weight(32, 24)},
    )
    census = take_census(ir.from_proto(onnx.shape_inference.infer_shapes(model)))
    assert _roles(census) == {"t": "embedding", "w": "linear"}


def test_a_slice_by_constant_indices_is_no_embedding() -> None:
    census = _census(
        "g (float[S,32] x) => (float[S,32] y) { c = Gather(t, i) y = Add(x, c) }",
        {"t": weight(50, 32), "i": np.array([3])},
    )
    assert not census.weights


def test_nested_bodies_are_searched_and_named() -> None:
    census = _census(
        """g (float[M,32] x, bool c) => (float[M,32] y) { n = Constant<value_int=2>() y = Loop(n, c, x) <
        body = b (int64 i, bool k, float[M,32] s) => (bool k2, float[M,32] s2) { k2 = Identity(k) [inner] s2 = If(k) <
        then_branch = t () => (float[M,32] z) { z = MatMul(s, w) }, else_branch = e () => (float[M,32] q) { q = Identity(s) }> }> }""",
        {"w": weight(32, 32)},
    )
    (found,) = census.weights
    assert found.uses[0].in_body == "If 'inner'"
    assert found.uses[0].top_level.op_type == "Loop"


def test_names_come_from_the_exporters_scopes_and_stay_unique() -> None:
    model = make_model(
        "g (float[M,32] x) => (float[M,32] y) { a = MatMul(x, val_1) b = MatMul(a, val_2) c = MatMul(b, val_3) y = Relu(c) }",
        {f"val_{i}": weight(32, 32, seed=i) for i in (1, 2, 3)},
    )
    for node, module in zip(model.graph.node, ("layers.0.q_proj", "layers.0.q_proj", None), strict=False):
        if module is not None:
            entry = node.metadata_props.add()
            entry.key, entry.value = "pkg.torch.onnx.name_scopes", f"['', 'layers.0', '{module}', 'linear']"
    loaded = ir.from_proto(model)
    names = [found.name for found in take_census(loaded).weights]
    assert names[0] == "layers.0.q_proj"
    assert len(set(names)) == 3
    assert isinstance(model, onnx.ModelProto)


STACK = weight(3, 32, 48)
TURNED = weight(3, 48, 32)


@pytest.mark.parametrize(
    ("text", "stack"),
    [
        ("y = MatMul(x, w)", STACK),
        ("t = Transpose<perm=[0,2,1]>(w) y = MatMul(x, t)", TURNED),
        ('y = Einsum<equation="abc, acd -> abd">(x, w)', STACK),
        ('y = Einsum<equation="etk,enk->etn">(x, w)', TURNED),
        ("v = Gather(w, i) y = MatMul(x, v)", STACK),
        ("v = Gather(w, i) t = Transpose<perm=[0,2,1]>(v) y = MatMul(x, t)", TURNED),
    ],
)
def test_stacked_experts_are_a_weight_each(text: str, stack: Array) -> None:
    census = _census(f"g (float[3,M,32] x, int64[3] i) => (float[3,M,48] y) {{ {text} }}", {"w": stack})
    assert not census.left_alone
    assert [found.name for found in census.weights] == ["w.0", "w.1", "w.2"]
    for index, found in enumerate(census.weights):
        assert found.shape == (48, 32) and found.expert == Expert("w", index, 3)
        assert found.float_bytes == 4 * 48 * 32
        np.testing.assert_array_equal(found.array(), stack[index].T if stack is STACK else stack[index])


def test_slices_of_a_stack_are_its_experts() -> None:
    census = _census(
        """g (float[M,32] x) => (float[M,48] y) {
            one = Constant<value_int=1>() u = Gather(w, one) a = MatMul(x, u)
            last = Constant<value_int=-1>() z = Gather(w, last) b = MatMul(x, z) y = Add(a, b)
        }""",
        {"w": STACK},
    )
    assert [found.name for found in census.weights] == ["w.1", "w.2"]
    np.testing.assert_array_equal(census.weights[1].array(), STACK[2].T)


@pytest.mark.parametrize(
    ("text", "signature", "reason"),
    [
        ("y = MatMul(x, w)", "(float[E,M,32] x)", "does not say which rows are whose"),
        ('y = Einsum<equation="emk,fkn->efmn">(x, w)', "(float[3,M,32] x)", "no product of each expert"),
        ("v = Gather(w, i) y = MatMul(x, v)", "(float[2,3,M,32] x, int64[2,3] i)", "ids of rank 2"),
        ("v = GatherND(w, i) y = MatMul(x, v)", "(float[2,M,32] x, int64[2,1] i)", "a GatherND that is not read"),
        ('v = Gather(w, i) y = Einsum<equation="tk,tkn->tn">(x, v)', "(float[2,32] x, int64[2] i)", "by Einsum"),
    ],
)  # fmt: skip
def test_why_experts_are_left_alone(text: str, signature: str, reason: str) -> None:
    outputs = {"efmn": "[3,3,M,48]", "rank 2": "[2,3,M,48]", "tn": "[2,48]"}
    shape = next((s for key, s in outputs.items() if key in text + reason), "[E,M,48]")
    census = _census(f"g {signature} => (float{shape} y) {{ {text} }}", {"w": STACK})
    assert not census.weights
    (alone,) = census.left_alone
    assert reason in alone.reason and alone.role.value == "linear"


def test_experts_inside_one_operator_are_left_alone() -> None:
    text = """g (float[M,32] x, float[M,2] r) => (float[M,32] y) {
        y = com.microsoft.MoE <k = 1> (x, r, up, "", down)
    }""".replace(', "", ', ", none, ")
    census = _census(
        text,
        {"up": weight(2, 48, 32), "none": np.zeros((2, 48), np.float32), "down": weight(2, 32, 48)},
        domains={"com.microsoft": 1},
    )
    (alone,) = census.left_alone
    assert (
        alone.reason
        == "experts inside one operator of ONNX Runtime: export them as products to quantize them"
    )


def test_products_inside_other_operators_are_told() -> None:
    """A weight that no MatMul reads is left alone like any other: with a reason."""
    census = _census(
        "g (float[S,1,32] x) => (float[A,B,C,D] y, float[S,1,24] z) { y = LSTM<hidden_size=8>(x, w, r) z = com.microsoft.FusedMatMul(x, v) }",
        {"w": weight(1, 32, 32), "r": weight(1, 32, 8), "v": weight(32, 24)},
        domains={"com.microsoft": 1},
    )
    assert not census.weights
    assert [alone.reason.split(":")[0] for alone in census.left_alone] == [
        "a recurrent cell",
        "weights inside FusedMatMul, an operator of ONNX Runtime",
    ]


@pytest.mark.parametrize(
    ("text", "role", "reason"),
    [
        ("y, m = com.microsoft.EmbedLayerNormalization(i, none, w, p, none, s, s)", "embedding",
         "weights inside EmbedLayerNormalization, an operator of ONNX Runtime: export without its fusions to quantize them"),
        ("y = com.microsoft.NhwcConv(x, k)", "conv", "a convolution: no weight-only kernel takes one"),
        ("y = my.lab.Mixer(x, w)", "linear",
         "weights inside Mixer, an operator of my.lab: export it as products to quantize them"),
        ("y = com.microsoft.RotaryEmbedding(x, i, w, p)", None, None),
        ("y = com.microsoft.FusedMatMul(x, x)", None, None),
        ("y = com.microsoft.BiasGelu(x, s)", None, None),
    ],
)  # fmt: skip
def test_weights_of_operators_that_are_not_onnxs_own(text: str, role: str | None, reason: str | None) -> None:
    """Any of them that holds a matrix of floats is told by name; tables of positions and vectors are no weights."""
    census = _census(
        f"g (float[M,32,4,4] x, int64[B,S] i) => (float[A,B,C,D] y) {{ {text} }}".replace("none", '""'),
        {"w": weight(64, 32), "p": weight(16, 32), "s": weight(1, 32)[0], "k": weight(8, 1, 1, 32)},
        domains={"com.microsoft": 1, "my.lab": 1},
    )
    assert not census.weights
    assert [(alone.role.value, alone.reason) for alone in census.left_alone] == (
        [] if reason is None else [(role, reason)]
    )
