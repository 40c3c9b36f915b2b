"""QuantizeWeights and LowerToMatMulNBits: the middle form computes what the stored weight says, and so does what it is lowered to."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from qcompiler.algorithms import rtn
from qcompiler.errors import SchemeError
from qcompiler.graph.census import take_census
from qcompiler.graph.quantized import read_quantized
from qcompiler.graph.weight_store import WeightStore
from qcompiler.pass_manager import check_model
from qcompiler.passes.lower_to_matmul_nbits import LowerToMatMulNBits
from qcompiler.passes.quantize_weights import CalibrationRun, QuantizeWeights
from qcompiler.quant.outliers import Outliers
from qcompiler.quant.scheme import QuantScheme
from qcompiler.quant.tensor import CorrectedTensor
from qcompiler.recipe import Recipe
from qcompiler.recipe.plan import Plan, make_plan
from qcompiler.targets import ort
from tests.small_models import Array, assert_equal_outputs, make_model, op_types, relative_error, run, weight

# The same codes and scales summed in another order: float32 roundings of up to 64 terms.
ROUNDING = 1e-5


@pytest.fixture
def store(tmp_path: Path) -> Iterator[WeightStore]:
    with WeightStore(tmp_path) as opened:
        yield opened


def _recipe(text: str) -> Recipe:
    return Recipe.from_text(text + "\nhead: {algorithm: rtn}\nembedding: {algorithm: rtn}", "test", "test")


def _quantize(
    model: onnx.ModelProto,
    recipe: Recipe,
    store: WeightStore,
    folder: Path,
    feeds: list[dict[str, Array]] | None = None,
) -> tuple[ir.Model, QuantizeWeights, Plan]:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    loaded = ir.from_proto(copy)
    plan = make_plan(take_census(loaded), recipe)
    calibration = None if feeds is None else CalibrationRun(feeds, folder, 1 << 20)
    transform = QuantizeWeights(plan, store, calibration, lambda *_: None)
    assert transform(loaded).modified
    assert transform(loaded).modified is False, "a second run finds every weight done"
    check_model(loaded, "the pass")
    return loaded, transform, plan


def _lower(loaded: ir.Model, level: int = 0) -> LowerToMatMulNBits:
    transform = LowerToMatMulNBits(level)
    assert transform(loaded).modified
    assert transform(loaded).modified is False
    assert LowerToMatMulNBits(level)(loaded).modified is False
    check_model(loaded, "the pass")
    assert "DequantizeLinear" not in op_types(loaded)
    return transform


def _x(*shape: int) -> Array:
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("symmetric", ["true", "false"])
@pytest.mark.parametrize(
    ("bits", "group"), [(4, 32), (8, 16), (4, "channel"), (8, "tensor"), (3, 32), (4, 64)]
)
def test_both_forms_compute_the_stored_weight(
    bits: int, group: Any, symmetric: str, store: WeightStore, tmp_path: Path
) -> None:
    model = make_model(
        "g (float[M,80] x) => (float[M,24] y) { h = MatMul(x, w) r = Relu(h) y = MatMul(r, v) }",
        {"w": weight(80, 48), "v": weight(48, 24, seed=1)},
    )
    recipe = _recipe(
        f"bits: {bits}\ngroup_size: {group}\nsymmetric: {symmetric}\ngroup_fallback: pad\nalgorithm: rtn"
    )
    loaded, transform, _ = _quantize(model, recipe, store, tmp_path)
    first = next(node for node in loaded.graph if node.op_type == "DequantizeLinear")
    stored = read_quantized(first).dequantize()
    x = _x(5, 80)
    middle = run(loaded, {"x": x}, optimize=False)
    second = [node for node in loaded.graph if node.op_type == "DequantizeLinear"][1]
    expected = np.maximum(x @ stored.T, 0) @ read_quantized(second).dequantize().T
    assert relative_error(expected, middle["y"]) <= ROUNDING
    lowered = _lower(loaded)
    assert [node.op_type for node in lowered.lowered] == ["MatMulNBits", "MatMulNBits"]
    assert_equal_outputs(middle, run(loaded, {"x": x}), ROUNDING)
    assert [result.name for result in transform.results] == ["w", "v"]
    assert transform.results[0].weight_error == pytest.approx(
        relative_error(weight(80, 48).T, stored) ** 2, rel=1e-3
    )


@pytest.mark.parametrize("k", [64, 100, 17])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_tied_weight_is_one_tensor_in_both_forms(
    bits: int, k: int, store: WeightStore, tmp_path: Path
) -> None:
    model = make_model(
        "g (int64[B,S] i) => (float[B,S,40] y) { e = Gather(t, i) q = Transpose<perm=[1,0]>(t) y = MatMul(e, q) }",
        {"t": weight(40, k)}, opset=25,
    )  # fmt: skip
    model = onnx.shape_inference.infer_shapes(model)
    recipe = Recipe.from_text(f"bits: 8\nhead: {{bits: {bits}, algorithm: rtn, symmetric: false}}", "t", "t")
    loaded, _, plan = _quantize(model, recipe, store, tmp_path)
    assert len(plan.quantized) == 1
    assert op_types(loaded).count("DequantizeLinear") == 1
    feed = {"i": np.arange(6, dtype=np.int64)[None]}
    middle = run(loaded, feed, optimize=False)
    lowered = _lower(loaded)
    assert sorted(node.op_type for node in lowered.lowered) == ["GatherBlockQuantized", "MatMulNBits"]
    assert_equal_outputs(middle, run(loaded, feed), ROUNDING)
    big = [
        v
        for v in loaded.graph.initializers.values()
        if v.shape is not None and v.dtype == ir.DataType.UINT8 and v.shape[0] == 40
    ]
    assert len([v for v in big if not (v.name or "").endswith("zero_points")]) == 1
    output = next(node for node in loaded.graph if node.op_type == "MatMulNBits").inputs[0]
    assert output is not None and output.shape is not None
    assert output.shape[-1] == k


def test_gathered_rows_that_are_an_output_keep_their_name(store: WeightStore, tmp_path: Path) -> None:
    model = make_model("g (int64[S] i) => (float[S,40] y) { y = Gather(t, i) }", {"t": weight(30, 40)})
    recipe = _recipe("bits: 8\ngroup_fallback: pad")
    loaded, _, _ = _quantize(model, recipe, store, tmp_path)
    feed = {"i": np.arange(4, dtype=np.int64)}
    middle = run(loaded, feed)
    _lower(loaded)
    assert_equal_outputs(middle, run(loaded, feed), ROUNDING)


@pytest.mark.parametrize("level", [0, 4])
def test_the_accuracy_level_is_written(level: int, store: WeightStore, tmp_path: Path) -> None:
    model = make_model("g (float[M,64] x) => (float[M,24] y) { y = MatMul(x, w) }", {"w": weight(64, 24)})
    loaded, _, _ = _quantize(model, _recipe("bits: 4"), store, tmp_path)
    _lower(loaded, level)
    assert loaded.graph[0].attributes["accuracy_level"].as_int() == level


def test_each_segment_sees_the_quantized_ones_before_it(store: WeightStore, tmp_path: Path) -> None:
    """The statistics of the second weight are of the first's quantized output: with 2 bits far from the float one's."""
    model = make_model(
        "g (float[M,32] x) => (float[M,32] z) { h = MatMul(x, w) y = MatMul(h, v) z = Relu(y) }",
        {"w": weight(32, 32), "v": weight(32, 32, seed=1)},
    )
    x = _x(20, 32)
    recipe = _recipe("bits: 4\nrules: [{match: w, bits: 2, algorithm: rtn}]\nalgorithm: mse")
    loaded, transform, _ = _quantize(model, recipe, store, tmp_path, [{"x": x}])
    first, second = (read_quantized(n).dequantize() for n in loaded.graph if n.op_type == "DequantizeLinear")
    h = x @ first.T
    error = second - weight(32, 32, seed=1).T
    expected = float(np.sum((h @ error.T) ** 2) / np.sum((h @ weight(32, 32, seed=1)) ** 2))
    assert transform.results[1].output_error == pytest.approx(expected, rel=1e-2)


def test_a_branch_that_no_sample_reaches_is_noted(store: WeightStore, tmp_path: Path) -> None:
    """Rows chosen by a mask, as of an expert that no token is sent to."""
    model = make_model(
        "g (float[M,32] x) => (float[M,32] z, float[A,32] y) { h = MatMul(x, w) z = Relu(h) k = Constant<value_float=1e9>()"
        " one = Constant<value_ints=[-1]>() m = ReduceMax<keepdims=0>(h, one) c = Greater(m, k) r = Compress<axis=0>(z, c) p = MatMul(r, v) y = Neg(p) }",
        {"w": weight(32, 32), "v": weight(32, 32, seed=1)},
    )
    loaded, transform, _ = _quantize(
        model, _recipe("bits: 4\nalgorithm: mse"), store, tmp_path, [{"x": _x(5, 32)}]
    )
    notes = {result.name: result.notes for result in transform.results}
    assert any("calibration never reached it" in note for note in notes["v"])
    assert not notes["w"]
    assert op_types(loaded).count("DequantizeLinear") == 2


def one_outlier(values: Array, statistics: object, scheme: QuantScheme, options: object) -> CorrectedTensor:
    """A user's own quantizer: a plain function, which announces nothing."""
    outliers = Outliers.at(np.arange(values.size).reshape(values.shape) == 0, values, "float32")
    return CorrectedTensor(rtn.quantize(values, None, scheme), None, outliers)


def test_outliers_that_nobody_announced_are_remarked_on(store: WeightStore, tmp_path: Path) -> None:
    model = make_model(
        "g (float[M,32] x) => (float[M,32] y) { h = MatMul(x, w) y = Relu(h) }", {"w": weight(32, 32)}
    )
    loaded = ir.from_proto(model)
    recipe = _recipe(f"bits: 4\nrules: [{{match: w, algorithm: '{__name__}:one_outlier'}}]")
    plan = make_plan(take_census(loaded), recipe)
    plan.note(ort.remark)
    assert plan.quantized[0].notes == []
    transform = QuantizeWeights(plan, store, None, lambda *_: None, remark=ort.remark)
    transform(loaded)
    (note,) = transform.results[0].notes
    assert note.startswith("outliers are added by SparseMatMul")


def test_what_is_not_finite_is_named(store: WeightStore, tmp_path: Path) -> None:
    broken = weight(32, 32)
    broken[0, 0] = np.nan
    model = make_model("g (float[M,32] x) => (float[M,32] y) { y = MatMul(x, w) }", {"w": broken})
    with pytest.raises(SchemeError, match=r"^w: "):
        _quantize(model, _recipe("bits: 4"), store, tmp_path)


@pytest.mark.parametrize(("rows", "told"), [(20, True), (40, False)])
def test_too_few_rows_for_a_hessian_are_told(
    rows: int, told: bool, store: WeightStore, tmp_path: Path
) -> None:
    model = make_model(
        "g (float[M,32] x) => (float[M,32] y) { h = MatMul(x, w) y = Relu(h) }", {"w": weight(32, 32)}
    )
    _, transform, plan = _quantize(
        model, _recipe("bits: 4\nalgorithm: gptq"), store, tmp_path, [{"x": _x(rows, 32)}]
    )
    assert any("give more data" in note for note in transform.results[0].notes) is told
    assert any("1 of the weights have more channels" in warning for warning in plan.warnings) is told
