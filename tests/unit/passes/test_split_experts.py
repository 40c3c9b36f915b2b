"""SplitExperts: the same numbers from one product for each expert; nothing where there is nothing to split."""

from collections.abc import Collection

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from qcompiler.graph.census import take_census
from qcompiler.graph.weights import Weight
from qcompiler.passes.split_experts import SplitExperts
from tests.small_models import Array, apply_pass, assert_equal_outputs, make_model, op_types, run, weight

E, K, N = 3, 32, 24
TOLERANCE = 1e-6  # of the norm: float32 sums of 32 products, in another order
STACK, TURNED = weight(E, K, N, scale=0.2), weight(E, N, K, scale=0.2)


def _split(model: onnx.ModelProto, only: Collection[int] = range(E)) -> tuple[ir.Model, bool, list[Weight]]:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    loaded = ir.from_proto(copy)
    weights = [w for w in take_census(loaded).weights if w.expert is None or w.expert.index in only]
    changed, modified = apply_pass(SplitExperts(weights), loaded)
    return changed, modified, weights


DENSE = {
    "apart": ("float[3,M,32] x", "y = MatMul(x, w)", STACK, (E, 5, K)),
    "turned": ("float[3,M,32] x", "t = Transpose<perm=[0,2,1]>(w) y = MatMul(x, t)", TURNED, (E, 5, K)),
    "in batches": ("float[B,3,M,32] x", "z = MatMul(x, w) y = ReduceSum<keepdims=0>(z, zero)", STACK, (2, E, 5, K)),
    "einsum": ("float[3,M,32] x", 'y = Einsum<equation="etk,enk->etn">(x, w)', TURNED, (E, 5, K)),
    "shared": ("float[M,32] x", "y = MatMul(x, w)", STACK, (5, K)),
    "shared, one before": ("float[1,M,32] x", "y = MatMul(x, w)", STACK, (1, 5, K)),
    "shared einsum": ("float[M,32] x", 'y = Einsum<equation="tk,ekn->etn">(x, w)', STACK, (5, K)),
    "expanded": (
        "float[M,32] x", "u = Unsqueeze(x, zero) s = Constant<value_ints=[3,1,1]>() e = Expand(u, s) y = MatMul(e, w)", STACK, (5, K),
    ),
    "repeated": (
        "float[M,32] x",
        "c = Constant<value_ints=[3,1]>() t = Tile(x, c) s = Constant<value_ints=[3,-1,32]>() e = Reshape(t, s) y = MatMul(e, w)",
        STACK, (5, K),
    ),
}  # fmt: skip


def _dense(name: str) -> tuple[onnx.ModelProto, dict[str, Array]]:
    signature, text, stack, shape = DENSE[name]
    model = make_model(
        f"g ({signature}) => (float[3,M,24] y) {{ {text} }}", {"w": stack, "zero": np.array([0])}
    )
    return onnx.shape_inference.infer_shapes(model), {"x": weight(*shape, seed=1, scale=1.0)}


@pytest.mark.parametrize("name", DENSE)
def test_dense(name: str) -> None:
    model, feed = _dense(name)
    split, modified, weights = _split(model)
    assert modified
    assert_equal_outputs(run(model, feed), run(split, feed), TOLERANCE)
    for found in weights:
        assert found.uses[0].node.op_type == "MatMul" and found.uses[0].top_level is found.uses[0].node
    assert len({found.uses[0].node for found in weights}) == E
    assert ("Split" in op_types(split)) == (name in ("apart", "turned", "in batches", "einsum"))
    assert not apply_pass(SplitExperts(weights), split)[1]
    assert [w.name for w in take_census(split).weights] == [w.name for w in weights]


REPEATED_ROWS = {
    "one row, unsqueezed": (
        "float[1,32] x",
        "u = Unsqueeze(x, zero) e = Expand(u, sizes)",
        (1, K),
        [E, 5, K],
    ),
    "one row": ("float[1,32] x", "e = Expand(x, sizes)", (1, K), [E, 5, K]),
    "one channel": ("float[5,1] x", "e = Expand(x, sizes)", (5, 1), [E, 5, K]),
    "in batches": ("float[5,32] x", "e = Expand(x, sizes)", (5, K), [2, E, 5, K]),
}


@pytest.mark.parametrize("name", REPEATED_ROWS)
def test_an_expand_that_repeats_more_than_the_experts_read_is_kept(name: str) -> None:
    """Its sizes are those of the rows; only as often as there are experts is it dropped."""
    signature, text, shape, sizes = REPEATED_ROWS[name]
    result = ",".join(map(str, [*sizes[:-1], N]))
    model = make_model(
        f"g ({signature}) => (float[{result}] y) {{ {text} y = MatMul(e, w) }}",
        {"w": STACK, "zero": np.array([0]), "sizes": np.array(sizes)},
    )
    feed = {"x": weight(*shape, seed=1, scale=1.0)}
    split, modified, _ = _split(onnx.shape_inference.infer_shapes(model, data_prop=True))
    assert modified
    assert_equal_outputs(run(model, feed), run(split, feed), TOLERANCE)


@pytest.mark.parametrize("name", ["expanded", "repeated"])
def test_experts_that_read_the_same_rows_share_them(name: str) -> None:
    model, _ = _dense(name)
    split, _, weights = _split(model)
    assert {found.uses[0].node.inputs[0] for found in weights} == {split.graph.inputs[0]}


def test_rows_of_a_rank_that_only_the_einsum_tells() -> None:
    """A Reshape to sizes that are an input; ONNX infers no rank from it."""
    text = 'r = Reshape(x, sizes) y = Einsum<equation="ck,ekn->ecn">(r, w)'
    model = make_model(f"g (float[A] x, int64[R] sizes) => (float[3,M,24] y) {{ {text} }}", {"w": STACK})
    feed = {"x": weight(5 * K, seed=1, scale=1.0), "sizes": np.array([5, K])}
    split, modified, weights = _split(model)
    assert weights[0].uses[0].node.inputs[0].shape is None  # type: ignore[union-attr]
    assert modified
    assert_equal_outputs(run(model, feed), run(split, feed), TOLERANCE)


def test_a_vector_is_not_split() -> None:
    model = make_model("g (float[32] x) => (float[3,24] y) { y = MatMul(x, w) }", {"w": STACK})
    census = take_census(ir.from_proto(model))
    assert not census.weights
    assert [left.reason for left in census.left_alone] == [
        "the weight holds 3 matrices for a vector; products of rows are split into experts"
    ]


GATHERED = {
    "gather": ("v = Gather(w, i) y = MatMul(x, v)", STACK),
    "turned": ("v = Gather(w, i) t = Transpose<perm=[0,2,1]>(v) y = MatMul(x, t)", TURNED),
    "turned before": ("t = Transpose<perm=[0,2,1]>(w) v = Gather(t, i) y = MatMul(x, v)", TURNED),
    "gather nd": ("u = Unsqueeze(i, last) v = GatherND(w, u) y = MatMul(x, v)", STACK),
}
IDS = {"mixed": [2, 0, 0, 1, 2], "one never": [2, 0, 0, 2, 2], "from the end": [-1, 0, 1, -3, 2]}


@pytest.mark.parametrize("ids", IDS)
@pytest.mark.parametrize(
    ("name", "kind"), [*((name, "int64") for name in GATHERED), ("gather", "int32")]
)  # GatherND takes int64 alone
def test_gathered(name: str, ids: str, kind: str) -> None:
    text, stack = GATHERED[name]
    model = make_model(
        f"g (float[R,2,32] x, {kind}[R] i) => (float[R,2,24] y) {{ {text} }}",
        {"w": stack, "last": np.array([-1])},
    )
    feed = {"x": weight(5, 2, K, seed=1, scale=1.0), "i": np.array(IDS[ids], kind)}
    split, modified, weights = _split(onnx.shape_inference.infer_shapes(model))
    assert modified and len(weights) == E
    assert_equal_outputs(run(model, feed), run(split, feed), TOLERANCE)
    assert not apply_pass(SplitExperts(weights), split)[1]


def test_products_with_the_same_ids_find_their_rows_once() -> None:
    text = """g (float[R,1,32] x, int64[R] i) => (float[R,1,32] y) {
        a = Gather(up, i) h = MatMul(x, a) b = Gather(down, i) y = MatMul(h, b)
    }"""
    model = make_model(text, {"up": STACK, "down": TURNED})
    split, _, weights = _split(onnx.shape_inference.infer_shapes(model))
    assert len(weights) == 2 * E
    assert op_types(split).count("NonZero") == E
    feed = {"x": weight(5, 1, K, seed=1, scale=1.0), "i": np.array([2, 0, 0, 1, 2])}
    assert_equal_outputs(run(model, feed), run(split, feed), 2 * TOLERANCE)


def test_the_same_ids_into_stacks_of_other_sizes() -> None:
    text = """g (float[R,1,32] x, int64[R] i) => (float[R,1,24] y) {
        a = Gather(few, i) h = MatMul(x, a) b = Gather(many, i) g = MatMul(x, b) y = Add(h, g)
    }"""
    model = make_model(text, {"few": STACK, "many": weight(E + 2, K, N, seed=3, scale=0.2)})
    split, _, weights = _split(onnx.shape_inference.infer_shapes(model), only=range(E + 2))
    assert len(weights) == 2 * E + 2
    feed = {"x": weight(5, 1, K, seed=1, scale=1.0), "i": np.array([2, 0, 0, 1, 2])}
    assert_equal_outputs(run(model, feed), run(split, feed), 2 * TOLERANCE)


def test_an_expert_that_stays_float_still_reads_the_stack() -> None:
    model, feed = _dense("apart")
    split, modified, weights = _split(model, only=[1])
    assert modified and [found.name for found in weights] == ["w.1"]
    assert_equal_outputs(run(model, feed), run(split, feed), TOLERANCE)


def test_nothing_to_quantize_nothing_split() -> None:
    model, _ = _dense("apart")
    assert not _split(model, only=[])[1]


def test_a_slice_is_one_matrix_already() -> None:
    model = make_model(
        "g (float[M,32] x) => (float[M,24] y) { one = Constant<value_int=1>() v = Gather(w, one) y = MatMul(x, v) }",
        {"w": STACK},
    )
    split, modified, weights = _split(model)
    assert not modified and [found.name for found in weights] == ["w.1"]
    assert op_types(split) == ["Constant", "Gather", "MatMul"]


def test_names_of_results_and_metadata_stay() -> None:
    model, _ = _dense("apart")
    model.graph.node.append(onnx.helper.make_node("Relu", ["y"], ["r"]))
    model.graph.node[0].metadata_props.add(key="of", value="the layer")
    model.graph.output[0].name = "r"
    split, _, weights = _split(model)
    assert "y" in {value.name for node in split.graph for value in node.outputs}
    assert all(found.uses[0].node.metadata_props["of"] == "the layer" for found in weights)
