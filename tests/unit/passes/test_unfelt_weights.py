"""A weight that no measured output shows does not get the fewest bits for it; one that rounding does not change may."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from qcompiler.graph.census import take_census
from qcompiler.passes.assign_bits import AssignBits, MixedResult
from qcompiler.passes.normalize import Normalize
from qcompiler.passes.quantize_weights import CalibrationRun
from qcompiler.passes.split_experts import SplitExperts
from qcompiler.recipe import Recipe
from qcompiler.recipe.mixed import SENSITIVITIES
from qcompiler.recipe.plan import Plan, make_plan
from tests.small_models import Array, apply_pass, make_model, weight

either = pytest.mark.parametrize("sensitivity", SENSITIVITIES)
X = weight(64, 32, seed=5, scale=1)


def _assign(
    proto: onnx.ModelProto, feed: dict[str, Array], mixed: str, folder: Path, more: str = ""
) -> tuple[Plan, MixedResult]:
    if "fisher" in mixed:
        pytest.importorskip("torch")
    recipe = Recipe.from_text(
        f"group_size: 32\nsymmetric: false\nhead: {{bits: 4}}\nembedding: {{bits: 4}}\nmixed: {{{mixed}}}\n{more}",
        "r", "r",
    )  # fmt: skip
    model, _ = apply_pass(Normalize(), proto)
    plan = make_plan(take_census(model), recipe)
    apply_pass(SplitExperts([planned.weight for planned in plan.quantized]), model)
    run = CalibrationRun([feed], folder, 1 << 30)
    assign = AssignBits(plan, recipe.mixed, lambda _: None, run, lambda *_: None)
    assign(model)
    assert assign.result is not None
    return plan, assign.result


def _bits(plan: Plan) -> dict[str, int]:
    return {planned.weight.name: planned.scheme.bits for planned in plan.quantized}


@either
def test_what_feeds_no_measured_output_keeps_the_reference_bits_and_is_named(
    sensitivity: str, tmp_path: Path
) -> None:
    """z is no head, and y is one."""
    model = make_model(
        "g (float[M,32] x) => (float[M,16] y, float[M,16] z) {"
        " s = MatMul(x, u) a = Tanh(s) b = MatMul(a, side) z = Softplus(b) y = MatMul(a, v) }",
        {"u": weight(32, 32), "side": weight(32, 16, seed=1), "v": weight(32, 16, seed=2)},
    )
    for budget in ("budget: 2.6bpw", "budget: 9bpw"):
        plan, result = _assign(model, {"x": X}, f"{budget}, sensitivity: {sensitivity}", tmp_path)
        assert _bits(plan)["side"] == 4
        (told,) = [line for line in plan.warnings if "not felt" in line]
        assert told.startswith("mixed: side: not felt in y on these data") and told.endswith("4 bits each")
        side = next(planned for planned in plan.quantized if planned.weight.name == "side")
        assert side.settings.decided_by == "mixed: 4 bits; no output that is measured shows it"
        assert {layer.name: layer.measured for layer in result.layers}["side"] == 0
        assert result.bytes == sum(planned.stored_bytes for planned in plan.quantized)


@either
def test_an_expert_that_the_data_missed_costs_what_the_others_do(sensitivity: str, tmp_path: Path) -> None:
    stack = np.stack([weight(32, 32, seed=seed) for seed in range(3)])
    model = make_model(
        "g (float[R,1,32] x, int64[R] i) => (float[R,1,16] y) { w = Gather(stack, i) a = MatMul(x, w) t = Tanh(a) y = MatMul(t, v) }",
        {"stack": stack, "v": weight(32, 16, seed=4)},
    )
    feed = {"x": X[:8, None], "i": np.array([0, 2, 2, 0, 0, 2, 0, 2])}
    model = onnx.shape_inference.infer_shapes(model)
    plan, result = _assign(model, feed, f"budget: 5bpw, sensitivity: {sensitivity}", tmp_path)
    of = {layer.name: layer for layer in result.layers}
    missed, *reached = (of[f"stack.{index}"] for index in (1, 0, 2))
    assert missed.measured == 0 and all(layer.measured > 0 for layer in reached)
    # Of two numbers: the sum's last bit.
    assert missed.losses == pytest.approx(np.mean([layer.losses for layer in reached], axis=0), rel=1e-12)
    (told,) = [line for line in plan.warnings if "not felt" in line]
    assert told.startswith(
        "mixed: stack.1: not felt in y on these data; taken to cost what the experts beside"
    )


def _on_grid(n: int, k: int, bits: int, seed: int) -> Array:
    """[K, N], each group of 32 in codes of so many bits that use the whole range, times a power of two."""
    codes = np.random.default_rng(seed).integers(0, 1 << bits, (n, k // 32, 32))
    codes[..., 0], codes[..., 1] = 0, (1 << bits) - 1
    return np.ascontiguousarray(((codes - (1 << (bits - 1))) / 64).reshape(n, k).astype(np.float32).T)


@either
def test_a_weight_on_the_reference_grid_is_measured_at_the_least_bits(
    sensitivity: str, tmp_path: Path
) -> None:
    """Its error at 4 bits is the noise of sums; that of 2 bits, over it, was 1e14 times as much."""
    model = make_model(
        "g (float[M,32] x) => (float[M,16] y) { a = MatMul(x, four) t = Tanh(a) b = MatMul(t, two) c = Tanh(b) y = MatMul(c, v) }",
        {"four": _on_grid(32, 32, 4, 0), "two": _on_grid(32, 32, 2, 1), "v": weight(32, 16, seed=2)},
    )
    plan, result = _assign(model, {"x": X}, f"budget: 9bpw, sensitivity: {sensitivity}", tmp_path)
    of = {layer.name: layer for layer in result.layers}
    assert [of[name].rounding.bits for name in ("four", "two", "v")] == [2, 2, 4]
    assert of["four"].losses[0] == pytest.approx(of["four"].measured, rel=0.5)  # 2 bits, searched or not
    assert of["four"].losses[1] < 1e-6 * of["four"].losses[0]
    # Codes of 2 bits: whatever is given, nothing changes, and that is no reason for a warning.
    assert of["two"].rounding.exact and max(of["two"].losses) < 1e-11
    assert not [line for line in plan.warnings if "not felt" in line]
    two = next(planned for planned in plan.quantized if planned.weight.name == "two")
    assert two.settings.decided_by.endswith("rounding to 2 bits does not change it")


@either
def test_rows_on_the_grid_beside_others(sensitivity: str, tmp_path: Path) -> None:
    """All rows that the ratios would be taken on are exact: every second of 512, and these have the largest scores too."""
    rows = _on_grid(512, 32, 4, 0).T
    rows[1:511:2] = weight(255, 32, seed=1, scale=0.01)
    louder = np.where(np.arange(512) % 2, 0.1, 1).astype(np.float32)
    model = make_model(
        "g (float[M,32] x) => (float[M,16] y) { a = MatMul(x, half) b = Mul(a, louder) t = Tanh(b) y = MatMul(t, v) }",
        {"half": np.ascontiguousarray(rows.T), "louder": louder, "v": weight(512, 16, seed=2)},
    )
    _, result = _assign(model, {"x": X}, f"budget: 5bpw, sensitivity: {sensitivity}", tmp_path)
    half = next(layer for layer in result.layers if layer.name == "half")
    # A step of 2 bits is 5 times that of 4: 25 times the error; of the whole weight more, for 2 bits do not hold the others.
    assert half.losses[1] < half.measured * 1.1 and 4 < half.losses[0] / half.measured < 1e6
