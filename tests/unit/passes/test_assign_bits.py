"""AssignBits: what each weight costs is measured on the model, and more bits go where it costs most."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from qcompiler.algorithms import kquant, rtn
from qcompiler.algorithms.error import quantization_error
from qcompiler.errors import CalibrationError
from qcompiler.graph.census import take_census
from qcompiler.passes.assign_bits import AssignBits, MixedResult
from qcompiler.passes.normalize import Normalize
from qcompiler.passes.quantize_weights import CalibrationRun
from qcompiler.passes.sensitivity import scheme_at
from qcompiler.quant import metrics
from qcompiler.recipe import Recipe
from qcompiler.recipe.mixed import SENSITIVITIES
from qcompiler.recipe.plan import Plan, make_plan
from tests.small_models import Array, apply_pass, assert_equal_outputs, make_model, run, weight

FEED = {"x": np.random.default_rng(0).standard_normal((8, 32)).astype(np.float32)}
# One branch counts a hundred times as much as the other.
TWO = (
    "g (float[M,32] x) => (float[M,48] y) { s = Tanh(x) a = MatMul(s, loud) b = MatMul(s, quiet) t = Mul(b, small)"
    " c = Add(a, t) d = Relu(c) y = MatMul(d, out) }"
)


def _two() -> onnx.ModelProto:
    weights = {"loud": weight(32, 64), "quiet": weight(32, 64, seed=1), "out": weight(64, 48, seed=2)}
    return make_model(TWO, {**weights, "small": np.full(64, 0.01, np.float32)})


def _assign(
    model: onnx.ModelProto,
    feeds: list[dict[str, Array]],
    folder: Path,
    mixed: str,
    rules: str = "[]",
    more: str = "",
) -> tuple[ir.Model, Plan, MixedResult]:
    recipe = Recipe.from_text(
        f"bits: 4\ngroup_size: 32\nsymmetric: false\nhead: {{bits: 4}}\nembedding: {{bits: 4}}\nmixed: {mixed}\nrules: {rules}\n{more}",
        "r", "r",
    )  # fmt: skip
    loaded, _ = apply_pass(Normalize(), model)
    plan = make_plan(take_census(loaded), recipe)
    run_of = CalibrationRun(feeds, folder, 1 << 20)
    assign = AssignBits(plan, recipe.mixed, lambda scheme: None, run_of, lambda what, done, total: None)
    assert not assign(loaded).modified
    assert assign.result is not None
    return loaded, plan, assign.result


def _bits(plan: Plan) -> dict[str, int]:
    return {planned.weight.name: planned.scheme.bits for planned in plan.quantized}


@pytest.mark.parametrize("sensitivity", SENSITIVITIES)
def test_more_bits_go_where_more_is_felt(sensitivity: str, tmp_path: Path) -> None:
    if sensitivity == "fisher":
        pytest.importorskip("torch")
    model = _two()
    loaded, plan, result = _assign(model, [FEED], tmp_path, f"{{budget: 5bpw, sensitivity: {sensitivity}}}")
    assert result.sensitivity == sensitivity
    bits = _bits(plan)
    assert bits["quiet"] == 2 and bits["loud"] > 2
    by_name = {layer.name: layer for layer in result.layers}
    assert by_name["loud"].measured > 1000 * by_name["quiet"].measured
    assert "mixed: 2 bits" in next(p for p in plan.quantized if p.weight.name == "quiet").settings.decided_by
    assert_equal_outputs(run(model, FEED), run(loaded, FEED), 0)  # the probes are gone


def test_two_level_scales_are_measured_as_such(tmp_path: Path) -> None:
    settings = "{bits: [2, 4], budget: 5bpw}"
    _, plan, result = _assign(_two(), [FEED], tmp_path, settings, more="two_level: true\nalgorithm: kquant")
    loud = next(planned for planned in plan.quantized if planned.weight.name == "loud")
    layer = next(layer for layer in result.layers if layer.name == "loud")
    rows, at_two = loud.weight.array(), scheme_at(loud, 2)
    assert loud.scheme.two_level and at_two.two_level
    searched = quantization_error(rows, kquant.quantize(rows, None, at_two), None).weight
    nearest = quantization_error(
        rows, kquant.quantize(rows, None, scheme_at(loud, 4), kquant.KquantOptions(steps=1, rounds=0)), None
    ).weight
    # The prediction weighs by the inputs, which are alike in all channels here: within a tenth.
    assert layer.losses[0] / layer.measured == pytest.approx(searched / nearest, rel=0.1)


def test_a_weights_loss_is_that_of_the_model_with_it_alone_rounded(tmp_path: Path) -> None:
    model = _two()
    _, plan, result = _assign(model, [FEED], tmp_path, "{budget: 5bpw}")
    wanted = run(model, FEED)["y"]
    for planned, layer in zip(plan.quantized, result.layers, strict=True):
        alone = copy.deepcopy(model)
        tensor = next(t for t in alone.graph.initializer if t.name == layer.name)
        values = numpy_helper.to_array(tensor)
        scheme = Recipe.from_text("bits: 4\ngroup_size: 32\nsymmetric: false", "r", "r").settings_for(
            "w", "linear", "MatMul"
        )
        if layer.name == "out":  # its role is head
            scheme = Recipe.from_text("bits: 4", "r", "r").settings_for("w", "linear", "MatMul")
        rounded = rtn.quantize(values.T, None, scheme.scheme("float32")).dequantize().T  # type: ignore[union-attr]
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(rounded), layer.name))
        assert layer.measured == pytest.approx(metrics.kl_divergence(wanted, run(alone, FEED)["y"]), rel=1e-3)
        assert planned.weight.name == layer.name


def test_a_larger_budget_is_used_and_never_worse(tmp_path: Path) -> None:
    losses = []
    for budget in (3.3, 4, 5.5, 7, 9.9):
        _, plan, result = _assign(_two(), [FEED], tmp_path, f"{{budget: {budget}bpw}}")
        weights = sum(p.weight.shape[0] * p.weight.shape[1] for p in plan.quantized)
        stored = sum(p.stored_bytes for p in plan.quantized)
        assert stored == result.bytes <= budget * weights / 8
        losses.append(result.loss)
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0] / 10


def test_a_budget_that_cannot_be_met_is_told_with_the_nearest(tmp_path: Path) -> None:
    _, plan, _ = _assign(_two(), [FEED], tmp_path, "{budget: 1bpw}")
    assert set(_bits(plan).values()) == {2}
    least = next(warning for warning in plan.warnings if "1bpw cannot be met" in warning).split()[-1]
    assert least.endswith("bpw")
    _, plan, _ = _assign(_two(), [FEED], tmp_path, f"{{budget: {least}}}")
    assert not plan.warnings  # as told, it is enough
    _, plan, _ = _assign(_two(), [FEED], tmp_path, "{max_kl: 1.0e-12}")
    assert set(_bits(plan).values()) == {8}
    assert any("max_kl 1e-12 cannot be met" in warning for warning in plan.warnings)


def test_max_kl_takes_the_smallest_model_that_keeps_it(tmp_path: Path) -> None:
    _, _, loose = _assign(_two(), [FEED], tmp_path, "{max_kl: 0.1}")
    _, _, tight = _assign(_two(), [FEED], tmp_path, "{max_kl: 0.0001}")
    assert loose.loss <= 0.1 and tight.loss <= 0.0001
    assert loose.bytes < tight.bytes


def test_what_a_rule_decides_stays(tmp_path: Path) -> None:
    _, plan, result = _assign(_two(), [FEED], tmp_path, "{budget: 4bpw}", "[{match: quiet, bits: 8}]")
    assert _bits(plan)["quiet"] == 8
    assert [layer.name for layer in result.layers] == ["loud", "out"]


def test_without_data_or_anything_to_choose_it_refuses(tmp_path: Path) -> None:
    recipe = Recipe.from_text("mixed: {budget: 5bpw}", "r", "r")
    loaded, _ = apply_pass(Normalize(), _two())
    plan = make_plan(take_census(loaded), recipe)

    def assign(run_of: Any) -> None:
        AssignBits(plan, recipe.mixed, lambda s: None, run_of, lambda *_: None).call(loaded)

    with pytest.raises(CalibrationError, match="mixed: "):
        assign(None)
    plan.quantized.clear()
    with pytest.raises(CalibrationError, match="no weight's effect can be measured"):
        assign(CalibrationRun([FEED], tmp_path, 0))


def test_a_tied_weight_is_rounded_in_both_places(tmp_path: Path) -> None:
    table = weight(24, 32, seed=3)
    model = make_model(
        "g (int64[1,S] ids) => (float[1,S,24] logits) { e = Gather(table, ids) a = MatMul(e, w) t = Tanh(a)"
        " tt = Transpose<perm=[1,0]>(table) logits = MatMul(t, tt) }",
        {"table": table, "w": weight(32, 32)},
    )
    feed = {"ids": np.arange(12).reshape(1, 12)}
    _, plan, result = _assign(model, [feed], tmp_path, "{budget: 5bpw}")
    layer = next(layer for layer in result.layers if layer.name == "table")
    scheme = Recipe.from_text("bits: 4", "r", "r").settings_for("w", "linear", "MatMul").scheme("float32")  # type: ignore[union-attr]
    rounded = rtn.quantize(table, None, scheme).dequantize()
    both = copy.deepcopy(model)
    next(t for t in both.graph.initializer if t.name == "table").CopyFrom(
        numpy_helper.from_array(rounded, "table")
    )
    expected = metrics.kl_divergence(run(model, feed)["logits"], run(both, feed)["logits"])
    assert layer.measured == pytest.approx(expected, rel=1e-3)
    assert len(plan.quantized) == 2


def test_a_weight_stored_in_another_float_type_than_it_is_used_in(tmp_path: Path) -> None:
    model = make_model(
        "g (float[M,32] x) => (float[M,48] y) { w = Cast<to=1>(half) a = MatMul(x, w) b = Relu(a) y = MatMul(b, out) }",
        {"half": weight(32, 64, dtype=np.float16), "out": weight(64, 48, seed=2)},
    )
    _, plan, result = _assign(model, [FEED], tmp_path, "{budget: 5bpw}")
    assert len(result.layers) == len(plan.quantized) == 2
    assert all(layer.measured > 0 for layer in result.layers)


@pytest.mark.parametrize("end", ["y = MatMul(d, out)", "e = MatMul(d, out) y = Softplus(e)"])
def test_where_no_distribution_comes_out_the_relative_error_is_measured(end: str, tmp_path: Path) -> None:
    """One output, whose softmax is always 1; or no head at all."""
    width = 1 if end.startswith("y") else 48
    text = TWO.replace("y = MatMul(d, out)", end).replace("float[M,48]", f"float[M,{width}]")
    weights = {"loud": weight(32, 64), "quiet": weight(32, 64, seed=1), "out": weight(64, width, seed=2)}
    model = make_model(text, {**weights, "small": np.full(64, 0.01, np.float32)})
    _, plan, result = _assign(model, [FEED], tmp_path, "{budget: 6bpw}")
    assert result.measure == "relative error"
    assert _bits(plan)["loud"] > 2
    by_name = {layer.name: layer for layer in result.layers}
    assert by_name["loud"].measured > 1000 * by_name["quiet"].measured > 0


def test_three_bits_are_counted_as_they_are_stored(tmp_path: Path) -> None:
    _, _, result = _assign(_two(), [FEED], tmp_path, "{budget: 5bpw, bits: [3, 4]}")
    assert all(layer.bytes[0] == layer.bytes[1] for layer in result.layers)
    assert set(result.chosen) == {4}  # for the same bytes
