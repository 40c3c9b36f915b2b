"""compile() with every scheme, with algorithms and rules: what is stored is what the recipe says."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from qcompiler.errors import SchemeError
from qcompiler.recipe import Recipe
from tests.compiled_models import (
    EIGHT_BIT,
    FOUR_BIT,
    Compile,
    check_outputs,
    check_rounding,
    count_of,
    loaded_model,
    normal,
    stored_weight,
    tied_decoder,
    two_layers,
)
from tests.small_models import Array, make_model, relative_error, run, weight


@pytest.mark.parametrize("fallback", ["adjust", "pad"])
@pytest.mark.parametrize("k", [96, 100, 40, 17])
def test_groups_that_do_not_divide_k(k: int, fallback: str, quantize: Compile) -> None:
    model = make_model(
        f"g (float[M,{k}] x) => (float[M,32] z) {{ y = MatMul(x, w) z = Relu(y) }}", {"w": weight(k, 32)}
    )
    compiled = quantize(model, settings=["group_size=64", f"group_fallback={fallback}"])
    (layer,) = compiled.report.layers
    assert any(f"does not divide K={k}" in note for note in layer.notes)
    expected = {96: 32, 100: 64, 40: 64, 17: 64}[k] if fallback == "adjust" else 64
    (node,) = [n for n in loaded_model(compiled).graph.node if n.op_type == "MatMulNBits"]
    assert onnx.helper.get_node_attr_value(node, "block_size") == expected
    check_outputs(model, {"x": normal(5, k)}, compiled, EIGHT_BIT)


def test_group_fallback_error_names_the_weight(quantize: Compile) -> None:
    model = make_model(
        "g (float[M,96] x) => (float[M,32] z) { y = MatMul(x, w) z = Relu(y) }", {"w": weight(96, 32)}
    )
    with pytest.raises(SchemeError, match=r"w: K=96 is not a multiple of group_size=64"):
        quantize(model, settings=["group_size=64", "group_fallback=error"])


@pytest.mark.parametrize("group", [16, 32, 64, 128, 256, "channel", "tensor"])
@pytest.mark.parametrize(("bits", "symmetric"), [(1, False), *itertools.product((2, 3, 4, 8), (True, False))])
def test_every_scheme(bits: int, group: int | str, symmetric: bool, quantize: Compile) -> None:
    model = make_model(
        "g (float[M,256] x) => (float[M,32] z) { y = MatMul(x, w) z = Relu(y) }", {"w": weight(256, 32)}
    )
    rows = [f"symmetric={str(symmetric).lower()}", f"bits={bits}", f"group_size={group}"]
    compiled = quantize(model, "w4a16-rtn", settings=rows)
    assert compiled.report.running == {"MatMulNBits": 1}
    stored, steps = stored_weight(compiled, "MatMulNBits", 256)
    check_rounding(weight(256, 32).T, stored, steps, symmetric)
    x = normal(5, 256)
    # what differs is the kernel's rounding of activations to int8 (accuracy_level 4)
    assert relative_error(np.maximum(x @ stored.T, 0), run(compiled.path, {"x": x})["z"]) <= EIGHT_BIT


def _outliers(*shape: int, channels: int, seed: int) -> Array:
    """Activations whose channels have sizes orders of magnitude apart: where weighing errors by the input pays."""
    sizes = np.exp(3 * np.random.default_rng(channels).standard_normal(shape[-1]))
    return (np.random.default_rng(seed).standard_normal(shape) * sizes).astype(np.float32)


def test_algorithms_beat_rounding_where_channels_differ(quantize: Compile) -> None:
    model = two_layers()
    error: dict[str, float] = dict.fromkeys(("rtn", "mse", "[awq, rtn]", "[awq, mse]"), 1.0)
    for algorithm, channels in itertools.product(error, range(4)):
        held_out = {"x": _outliers(64, 64, channels=channels, seed=2)}
        expected = run(model, held_out, optimize=False)["y"]
        settings = [
            f"algorithm={algorithm}",
            "head.bits=4",
            f"head.algorithm={algorithm}",
            "accuracy_level=0",
        ]
        compiled = quantize(
            model,
            "w4a16-rtn",
            settings=settings,
            calibration=[{"x": _outliers(64, 64, channels=channels, seed=1)}],
        )
        assert compiled.report.running == {"MatMulNBits": 2}
        error[algorithm] *= relative_error(expected, run(compiled.path, held_out)["y"]) ** 0.25
    assert error["rtn"] <= FOUR_BIT
    # Geometric means over four sets of channels: 0.63, 0.67 and 0.956; an algorithm that does nothing gives 1.
    assert error["mse"] <= 0.8 * error["rtn"]
    assert error["[awq, rtn]"] <= 0.9 * error["rtn"]
    assert error["[awq, mse]"] <= 0.97 * error["mse"]


def user_quantizer(values: Any, statistics: Any, scheme: Any, options: Any) -> Any:
    """Named in a recipe by the test below: every weight 0.5."""
    from qcompiler.quant.affine_tensor import AffineTensor

    n, k = values.shape
    codes = np.full((n, k), scheme.midpoint + 1, np.uint8)
    return AffineTensor(scheme, codes, np.full(scheme.scale_shape(n, k), 0.5, np.float32), None)


def test_a_users_own_algorithm(quantize: Compile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    model = make_model(
        "g (float[M,64] x) => (float[M,32] z) { y = MatMul(x, w) z = Neg(y) }", {"w": weight(64, 32)}
    )
    compiled = quantize(model, settings=[f"algorithm={Path(__file__).stem}:user_quantizer"])
    x = normal(5, 64)
    expected = np.broadcast_to(x.sum(axis=1, keepdims=True) * 0.5, (5, 32))
    assert relative_error(-expected, run(compiled.path, {"x": x})["z"]) <= EIGHT_BIT


def test_float_head_and_embedding(quantize: Compile) -> None:
    compiled = quantize(tied_decoder(), settings=["head=float"])
    assert [layer.name for layer in compiled.report.layers] == ["w"]
    untied = make_model(
        "g (int64[B,S] input_ids) => (float[B,S,64] z) { e = Gather(table, input_ids) h = MatMul(e, w) z = Relu(h) }",
        {"table": weight(80, 64, scale=1.0), "w": weight(64, 64, seed=1)},
    )
    compiled = quantize(untied, settings=["embedding=float"])
    assert [layer.name for layer in compiled.report.layers] == ["w"]
    assert any(skip.name == "table" and "float in recipe" in skip.reason for skip in compiled.report.skipped)


def test_a_rule_leaves_a_weight_alone(quantize: Compile) -> None:
    recipe = Recipe.from_text(
        "bits: 8\nrules: [{match: w1, quantize: false, reason: too small}]\nhead: {algorithm: rtn}", "t", "t"
    )
    compiled = quantize(two_layers(), recipe)
    assert [layer.name for layer in compiled.report.layers] == ["w2"]
    assert any(skip.name == "w1" and "too small" in skip.reason for skip in compiled.report.skipped)
    assert count_of(compiled, "MatMul") == 1
