"""Where the loss of a rounded weight is measured: every output that a weight has a part in, as what it is."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from qcompiler.errors import CalibrationError, RecipeError
from qcompiler.graph.census import take_census
from qcompiler.passes.fisher_sensitivity import by_fisher
from qcompiler.passes.measured_outputs import find_ends
from qcompiler.passes.normalize import Normalize
from qcompiler.passes.output_sensitivity import by_output
from qcompiler.passes.quantize_weights import CalibrationRun
from qcompiler.passes.sensitivity import Sensitivities
from qcompiler.recipe import Recipe
from qcompiler.recipe.mixed import SENSITIVITIES, MixedSettings
from qcompiler.recipe.plan import make_plan
from tests.small_models import Array, apply_pass, make_model, weight

RECIPE = Recipe.from_text("group_size: 32\nsymmetric: false\nhead: {bits: 4}\nembedding: {bits: 4}", "r", "r")
BUDGET = MixedSettings(budget="4bpw")
X = weight(64, 32, seed=5, scale=1)
either = pytest.mark.parametrize("sensitivity", SENSITIVITIES)


def _found(
    proto: onnx.ModelProto, sensitivity: str, folder: Path, x: Array = X, settings: MixedSettings = BUDGET
) -> Sensitivities:
    model, _ = apply_pass(Normalize(), proto)
    free = make_plan(take_census(model), RECIPE).quantized
    run = CalibrationRun([{"x": x}], folder, 1 << 30)
    if sensitivity == "output":
        return by_output(model, free, settings, run, lambda *_: None)
    pytest.importorskip("torch")
    return by_fisher(model, free, settings, run, lambda *_: None, 0)


def _measured(found: Sensitivities) -> dict[str, float]:
    return {each.name: each.measured for each in found.of.values()}


@either
def test_every_head_is_measured_and_their_losses_add_up(sensitivity: str, tmp_path: Path) -> None:
    weights = {"u": weight(32, 32), "v": weight(32, 16, seed=1), "w": weight(32, 24, seed=2)}
    text = "g (float[M,32] x) => (float[M,16] y, float[M,24] z) { s = MatMul(x, u) a = Tanh(s) y = MatMul(a, v) z = MatMul(a, w) }"
    found = _found(make_model(text, weights), sensitivity, tmp_path)
    both = _measured(found)
    assert found.measure == "kl" and found.outputs == ("y", "z")
    of_one = {}
    for one, name, output in (("y", "v", "float[M,16] y"), ("z", "w", "float[M,24] z")):
        alone = (
            f"g (float[M,32] x) => ({output}) {{ s = MatMul(x, u) a = Tanh(s) {one} = MatMul(a, {name}) }}"
        )
        kept = {key: weights[key] for key in ("u", name)}
        of_one[one] = _measured(_found(make_model(alone, kept), sensitivity, tmp_path))
    assert both["v"] > 0 and both["w"] > 0
    # By scores the draws differ: 64 tokens, one run.
    near = 1e-6 if sensitivity == "output" else 0.5
    assert both["v"] == pytest.approx(of_one["y"]["v"], rel=near)
    assert both["w"] == pytest.approx(of_one["z"]["w"], rel=near)
    assert both["u"] == pytest.approx(of_one["y"]["u"] + of_one["z"]["u"], rel=near)


@either
def test_what_no_weight_has_a_part_in_is_not_measured(sensitivity: str, tmp_path: Path) -> None:
    """The first outputs are the input itself and a constant; neither of the others comes from a head."""
    model = make_model(
        "g (float[M,32] x) => (float[M,32] same, float[2] fixed, float[M,16] y, float[M,32] early) {"
        " same = Identity(x) fixed = Identity(two) a = MatMul(x, u) early = Softplus(a) b = MatMul(a, v) y = Softplus(b) }",
        {"two": np.ones(2, np.float32), "u": weight(32, 32), "v": weight(32, 16, seed=1)},
    )
    found = _found(model, sensitivity, tmp_path)
    assert found.measure == "relative error" and found.outputs == ("y", "early")
    assert all(measured > 1e-4 for measured in _measured(found).values())


@either
def test_a_head_of_one_output_is_no_distribution_whatever_its_shape(sensitivity: str, tmp_path: Path) -> None:
    """Squeezed to a row of the batch, or to a single number."""
    weights = {
        "u": weight(32, 32),
        "v": weight(32, 1, seed=1),
        "last": np.array([1]),
        "all": np.array([0, 1]),
    }
    text = "g (float[M,32] x) => (float[M] y) { a = MatMul(x, u) t = Tanh(a) h = MatMul(t, v) y = Squeeze(h, last) }"
    found = _found(make_model(text, weights), sensitivity, tmp_path, X[:8])
    assert found.measure == "relative error" and min(_measured(found).values()) > 1e-5
    text = text.replace("(h, last)", "(h, all)").replace("(float[M] y)", "(float y)").replace("M,", "1,")
    found = _found(make_model(text, weights), sensitivity, tmp_path, X[:1])
    assert found.measure == "relative error" and min(_measured(found).values()) > 1e-7


@either
def test_a_distribution_and_a_number_are_measured_as_what_they_are(sensitivity: str, tmp_path: Path) -> None:
    model = make_model(
        "g (float[M,32] x) => (float[M,16] y, float[M,1] z) { a = MatMul(x, u) y = MatMul(a, v) z = MatMul(a, w) }",
        {"u": weight(32, 32), "v": weight(32, 16, seed=1), "w": weight(32, 1, seed=2)},
    )
    found = _found(model, sensitivity, tmp_path)
    assert found.measure == "kl + relative error" and min(_measured(found).values()) > 1e-5


@pytest.mark.parametrize(
    ("after", "shape", "measure"),
    [
        ("y = Identity(h)", (4, 24), "kl"),
        ("y = Slice(h, zero, twenty, last)", (4, 20), "kl"),  # padding of a vocabulary
        ("y = Reshape(h, heads)", (4, 3, 8), "kl"),  # three heads in one
        ("y = Transpose<perm=[1,0]>(h)", (24, 4), "relative error"),
        ("y = Transpose<perm=[1,0]>(h)", (24, 24), "kl"),  # which cannot be told from the shape
        ("y = Reshape(h, flat)", (96,), "relative error"),
    ],
)
def test_classes_are_on_the_last_axis(after: str, shape: tuple[int, ...], measure: str) -> None:
    constants = {"zero": [0], "twenty": [20], "last": [1], "heads": [-1, 3, 8], "flat": [-1]}
    dims = ",".join(f"d{i}" for i in range(len(shape)))
    proto = make_model(
        f"g (float[M,32] x) => (float[{dims}] y) {{ h = MatMul(x, v) {after} }}",
        {"v": weight(32, 24)}
        | {name: np.array(values) for name, values in constants.items() if name in after},
    )
    model, _ = apply_pass(Normalize(), proto)
    (end,) = find_ends(model)
    assert end.measure(shape) == measure


def test_without_an_output_to_measure_on_it_refuses() -> None:
    proto = make_model(
        "g (float[M,32] x) => (int64[M,1] y) { a = MatMul(x, u) y = ArgMax<axis=1>(a) }",
        {"u": weight(32, 32)},
    )
    model, _ = apply_pass(Normalize(), proto)
    with pytest.raises(CalibrationError, match="no output of floats"):
        find_ends(model)


@either
def test_a_bound_on_the_kl_where_the_classes_turn_out_to_be_elsewhere(
    sensitivity: str, tmp_path: Path
) -> None:
    """Of a head of 24 classes; that they are no longer on the last axis is seen when the model has run."""
    proto = make_model(
        "g (float[M,32] x) => (float[24,M] y) { h = MatMul(x, v) y = Transpose<perm=[1,0]>(h) }",
        {"v": weight(32, 24)},
    )
    with pytest.raises(RecipeError, match=r"^mixed.max_kl: 0.1 bounds a KL divergence"):
        _found(proto, sensitivity, tmp_path, settings=MixedSettings(max_kl=0.1))
