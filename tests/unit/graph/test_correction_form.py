"""Corrections in the graph: they compute A B, keep every name, and are known again by their structure."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from qcompiler.graph.census import take_census
from qcompiler.graph.correction_form import add_corrections, corrected_output, corrections_of
from qcompiler.graph.edits import Names, all_nodes
from qcompiler.graph.quantized import register_constants
from qcompiler.graph.stored_corrections import restore_corrections, store_corrections
from qcompiler.graph.weight_form import emit_weight
from qcompiler.graph.weight_store import WeightStore
from qcompiler.pass_manager import check_model
from qcompiler.quant.low_rank import LowRank
from qcompiler.quant.outlier_columns import OutlierColumns
from qcompiler.quant.outliers import Outliers
from qcompiler.quant.scheme import Granularity, QuantScheme, ScaleDtype
from qcompiler.quant.tensor import CorrectedTensor
from tests.small_models import Array, make_model, op_types, relative_error, run, weight

N, K, RANK = 24, 64, 5
# The same products summed in another order; float16 results are rounded at each of four nodes. Not optimized: ONNX Runtime would
# multiply with 8-bit activations (docs/decisions/0005).
ROUNDING = {np.float32: 1e-5, np.float16: 4e-3}
ONE = "g ({t}[M,64] x) => ({t}[M,24] y) {{ a = Identity(x) y = MatMul(a, w) }}"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[WeightStore]:
    with WeightStore(tmp_path) as opened:
        yield opened


def _corrected(
    dtype: ScaleDtype = "float32", outliers: bool = False, columns: bool = False
) -> CorrectedTensor:
    from qcompiler.algorithms import rtn

    scheme = QuantScheme(4, False, Granularity.GROUP, 32, dtype)
    base = rtn.quantize(weight(N, K, scale=0.1), None, scheme)
    held = np.float16 if dtype == "float16" else np.float32
    left, right = (
        weight(*shape, seed=seed, scale=0.05, dtype=held).astype(np.float32)
        for seed, shape in enumerate(((N, RANK), (RANK, K)), 1)
    )
    random = np.random.default_rng(3)
    sparse = (
        Outliers.at(random.random((N, K)) < 0.05, weight(N, K, seed=5, scale=0.2), dtype)
        if outliers
        else None
    )
    kept = OutlierColumns.of(weight(N, K, seed=6), np.array([0, 9, 63]), dtype) if columns else None
    return CorrectedTensor(base, LowRank(left, right, dtype), sparse, kept)


def _correct(
    model: onnx.ModelProto, corrected: CorrectedTensor, store: WeightStore, restored: bool = False
) -> ir.Model:
    """Every MatMul by ``w`` reads the codes and has the corrections beside it."""
    loaded = ir.from_proto(model)
    (weight_,) = take_census(loaded).weights
    nodes = emit_weight(store, corrected.base, "kn", "w.quantized", weight_.dtype)
    loaded.graph.insert_before(loaded.graph[0], nodes)
    for node in nodes:
        register_constants(loaded.graph, node)
    for use in weight_.uses:
        use.node.replace_input_with(1, nodes[-1].outputs[0])
    del loaded.graph.initializers["w"]
    stored = store_corrections(store, corrected, "w")
    if restored:
        stored = restore_corrections(store, stored.record(), "w")
    products = add_corrections(loaded, [use.node for use in weight_.uses], stored, "w", Names(loaded))
    assert all(node.op_type == "MatMul" for node in products)
    check_model(loaded, "the test")
    return loaded


def _x(dtype: type = np.float32) -> Array:
    return np.random.default_rng(1).standard_normal((5, K)).astype(dtype)


@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("outliers", [False, True])
@pytest.mark.parametrize("restored", [False, True])
@pytest.mark.parametrize(
    ("dtype", "scales"), [(np.float32, "float32"), (np.float32, "float16"), (np.float16, "float16")]
)
def test_the_product_is_that_of_the_corrected_weight(
    dtype: type, scales: ScaleDtype, restored: bool, outliers: bool, columns: bool, store: WeightStore
) -> None:
    text = ONE.format(t="float" if dtype is np.float32 else "float16")
    model = make_model(text, {"w": weight(K, N, dtype=dtype)})
    corrected = _corrected(scales, outliers, columns)
    loaded = _correct(model, corrected, store, restored)
    exact = _x(dtype).astype(np.float32) @ corrected.dequantize().T
    found = run(loaded, {"x": _x(dtype)}, optimize=False)["y"]
    assert found.dtype == dtype
    assert relative_error(exact, found) <= ROUNDING[dtype]


def test_it_is_found_again_and_is_no_weight(store: WeightStore) -> None:
    loaded = _correct(make_model(ONE.format(t="float"), {"w": weight(K, N)}), _corrected(), store)
    (product,) = [
        node for node in loaded.graph if node.op_type == "MatMul" and corrected_output(node).name == "y"
    ]
    (form,) = corrections_of(product)
    assert (form.kind, form.rank, len(form.sources)) == ("rank 5", RANK, 2)
    census = take_census(loaded)
    assert not census.weights
    reasons = [alone.reason for alone in census.left_alone]
    assert sorted(reasons) == ["already a correction: rank 5 beside a quantized weight"] * 2 + [
        "already quantized"
    ]


def test_without_our_note_it_may_be_an_adapter(store: WeightStore) -> None:
    """What someone trained beside a quantized model has the same nodes."""
    loaded = _correct(make_model(ONE.format(t="float"), {"w": weight(K, N)}), _corrected(), store)
    for node in loaded.graph:
        node.metadata_props.clear()
    census = take_census(loaded)
    assert not census.weights
    assert "already a correction: low-rank part or adapter of rank 5 beside a quantized weight" in {
        alone.reason for alone in census.left_alone
    }


def test_outliers_are_found_beside_the_low_rank_part(store: WeightStore) -> None:
    corrected = _corrected(outliers=True, columns=True)
    loaded = _correct(make_model(ONE.format(t="float"), {"w": weight(K, N)}), corrected, store)
    (product,) = [
        node for node in loaded.graph if node.op_type == "MatMul" and corrected_output(node).name == "y"
    ]
    assert corrected.outliers is not None
    labels = [form.label(N * K) for form in corrections_of(product)]
    assert labels == ["3 outlier columns", corrected.outliers.label, "rank 5"]
    reasons = {alone.reason for alone in take_census(loaded).left_alone}
    assert reasons == {
        "already quantized",
        "already a correction: rank 5 beside a quantized weight",
        "already a correction: outliers beside a quantized weight",
        "already a correction: outlier columns beside a quantized weight",
    }


def test_two_products_share_the_factors(store: WeightStore) -> None:
    model = make_model(
        "g (float[M,64] x) => (float[M,24] y) { a = MatMul(x, w) n = Neg(x) b = MatMul(n, w) y = Sub(a, b) }",
        {"w": weight(K, N)},
    )
    corrected = _corrected()
    loaded = _correct(model, corrected, store)
    exact = 2 * _x() @ corrected.dequantize().T
    assert relative_error(exact, run(loaded, {"x": _x()}, optimize=False)["y"]) <= ROUNDING[np.float32]
    assert sum(value.dtype == ir.DataType.FLOAT for value in loaded.graph.initializers.values()) == 3
    assert len(take_census(loaded).left_alone) == 6


def test_inside_a_branch(store: WeightStore) -> None:
    model = make_model(
        """g (float[M,64] x, bool c) => (float[M,24] y) {
        y = If(c) <then_branch = t () => (float[M,24] z) { z = MatMul(x, w) },
                   else_branch = e () => (float[M,24] q) { h = Neg(x) q = MatMul(h, w) }> }""",
        {"w": weight(K, N)},
    )
    corrected = _corrected(columns=True)
    loaded = _correct(model, corrected, store)
    exact = _x() @ corrected.dequantize().T
    for chosen, sign in ((True, 1), (False, -1)):
        found = run(loaded, {"x": _x(), "c": np.array(chosen)}, optimize=False)["y"]
        assert relative_error(sign * exact, found) <= ROUNDING[np.float32]
    assert not take_census(loaded).weights


def test_names_of_outputs_and_scopes_stay(store: WeightStore) -> None:
    model = make_model(ONE.format(t="float"), {"w": weight(K, N)})
    model.graph.node[1].name = "fc"
    entry = model.graph.node[1].metadata_props.add()
    entry.key, entry.value = "scope", "layer"
    loaded = _correct(model, _corrected(), store)
    (product,) = [node for node in all_nodes(loaded) if node.name == "fc"]
    assert product.op_type == "MatMul" and product.metadata_props["scope"] == "layer"
    assert [value.name for value in loaded.graph.outputs] == ["y"]
    assert op_types(loaded)[-1] == "Add" and "scope" not in loaded.graph[-1].metadata_props


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("a = MatMul(x, w) b = MatMul(x, d) c = MatMul(b, u) y = Add(a, c)", "a float product"),
        (
            "s = Mul(v, v) w1 = Mul(s, v) a = MatMul(x, w1) b = MatMul(x, d) c = MatMul(b, u) y = Add(a, c)",
            "a float weight that nodes compute, as weight norm does",
        ),
        ("a = MatMul(x, q) n = Neg(x) b = MatMul(n, d) c = MatMul(b, u) y = Add(a, c)", "another input"),
        ("a = MatMul(x, q) b = MatMul(x, d) r = Relu(b) c = MatMul(r, u) y = Add(a, c)", "something between"),
        (
            "a = MatMul(x, q) n = Neg(x) b = MatMul(x, d) g = Gather<axis=-1>(n, i) c = MatMul(g, u) f = MatMul(b, u) e = Add(f, c) "
            "y = Add(a, e)",
            "channels of another input",
        ),
        ("a = MatMul(x, q) b = MatMul(x, d) c = MatMul(b, u) e = Add(a, c) y = Mul(e, c)", "read elsewhere"),
    ],
)
def test_near_misses_are_weights(body: str, why: str) -> None:
    """Adapters beside a float weight, a second branch, a small network: nothing of ours."""
    weights = {
        "d": weight(K, 16),
        "u": weight(16, N),
        "w": weight(K, N),
        "v": weight(K, N),
        "i": np.arange(16),
    }
    parts = {"codes": np.ones((K, N), np.int8), "scale": np.float32(0.1)}
    text = f"g (float[M,64] x) => (float[M,24] y) {{ q = DequantizeLinear(codes, scale) {body} }}"
    found = take_census(ir.from_proto(make_model(text, weights | parts)))
    assert {entry.source.name for entry in found.weights} >= {"d", "u"}, why


def test_a_long_chain_of_sums_is_not_followed() -> None:
    """The residuals and biases of some hundred layers before a product that looks like a correction of one of them."""
    count = 2000  # more than Python calls functions within functions
    steps = " ".join(f"s{index + 1} = Add(s{index}, x)" for index in range(count))
    text = f"g (float[M,64] x) => (float[M,64] y) {{ s0 = Add(x, x) {steps} b = MatMul(x, d) c = MatMul(b, u) y = Add(s{count}, c) }}"
    model = make_model(text, {"d": weight(K, 16), "u": weight(16, K)})
    assert {found.source.name for found in take_census(ir.from_proto(model)).weights} == {"d", "u"}
