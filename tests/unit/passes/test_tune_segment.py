"""The pass with a reconstruction: weights of a segment are tuned against the float stream, and what is reported is what is stored."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from qcompiler.errors import CalibrationError, RecipeError, SchemeError
from qcompiler.graph.census import take_census
from qcompiler.graph.quantized import read_quantized
from qcompiler.graph.weight_store import WeightStore
from qcompiler.pass_manager import check_model
from qcompiler.passes.quantize_weights import CalibrationRun, QuantizeWeights
from qcompiler.passes.tune_segment import FILE
from qcompiler.recipe import Recipe
from qcompiler.recipe.plan import make_plan
from tests.small_models import Array, make_model, relative_error, run, weight

pytest.importorskip("torch")

# Two blocks with a residual; the second segment's inputs come from the first's quantized weights.
MODEL = """g (float[M,32] x) => (float[M,32] z) {
    a = MatMul(x, w1)  b = Relu(a)  c = MatMul(b, w2)  y = Add(c, x)
    d = MatMul(y, w3)  e = Sigmoid(d)  f = Mul(d, e)  h = MatMul(f, w4)  z = Add(h, y)
}"""
TUNED = "[rtn, {name: autoround, steps: 40}]"
HEAD = "\nhead: {algorithm: rtn}\nembedding: {algorithm: rtn}"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[WeightStore]:
    with WeightStore(tmp_path) as opened:
        yield opened


def model() -> onnx.ModelProto:
    shapes = {"w1": (32, 64), "w2": (64, 32), "w3": (32, 64), "w4": (64, 32)}
    return make_model(MODEL, {name: weight(*shape, seed=i) for i, (name, shape) in enumerate(shapes.items())})


def samples(count: int) -> list[dict[str, Array]]:
    """Rows whose channels go together, as activations do."""
    mixing = weight(32, 32, seed=9) * np.exp(np.random.default_rng(8).normal(0, 1, 32)).astype(np.float32)
    return [{"x": weight(48, 32, seed=100 + i, scale=1.0) @ mixing} for i in range(count)]


def quantize(
    proto: onnx.ModelProto,
    algorithm: str,
    store: WeightStore,
    folder: Path,
    more: str = "",
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> tuple[ir.Model, QuantizeWeights]:
    loaded = ir.from_proto(proto)
    recipe = Recipe.from_text(
        f"bits: 3\nsymmetric: false\nalgorithm: {algorithm}{HEAD}{more}", "test", "test"
    )
    plan = make_plan(take_census(loaded), recipe)
    transform = QuantizeWeights(plan, store, CalibrationRun(samples(6), folder, 1 << 20), progress)
    assert transform(loaded).modified
    assert transform(loaded).modified is False
    check_model(loaded, "the pass")
    return loaded, transform


def test_the_model_is_nearer_to_float_on_unseen_rows(store: WeightStore, tmp_path: Path) -> None:
    unseen = {"x": samples(8)[7]["x"]}
    errors = {}
    for algorithm in ("rtn", TUNED):
        loaded, _ = quantize(model(), algorithm, store, tmp_path)
        errors[algorithm] = relative_error(run(model(), unseen)["z"], run(ir.to_proto(loaded), unseen)["z"])
    assert errors[TUNED] < 0.9 * errors["rtn"]


def test_the_reported_errors_are_those_of_what_is_stored(store: WeightStore, tmp_path: Path) -> None:
    loaded, transform = quantize(model(), TUNED, store, tmp_path)
    stored = [
        read_quantized(node).dequantize() for node in loaded.graph if node.op_type == "DequantizeLinear"
    ]
    for result, values in zip(transform.results, stored, strict=True):
        exact = weight(*result.shape[::-1], seed=int(result.name[1]) - 1).T
        expected = float(np.sum((values - exact) ** 2) / np.sum(exact**2))
        assert result.weight_error == pytest.approx(expected, rel=1e-4)  # float32 sums
        assert any("autoround: relative error of the segment" in note for note in result.notes)


def test_each_step_is_told(store: WeightStore, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    algorithm = "[rtn, {name: autoround, steps: 3}]"
    quantize(model(), algorithm, store, tmp_path, progress=lambda *said: told.append(said))
    # One segment, named for its first weight; none of its 4 is finished until all are tuned.
    steps = [said for said in told if ", step " in said[0]]
    assert steps == [(f"tuning w1, step {step} of 3", 0, 4) for step in (1, 2, 3)]


def test_names_are_those_of_an_untuned_compile_and_nothing_is_left(
    store: WeightStore, tmp_path: Path
) -> None:
    plain, _ = quantize(model(), "rtn", store, tmp_path)
    tuned, _ = quantize(model(), TUNED, store, tmp_path)
    assert [node.name for node in tuned.graph] == [node.name for node in plain.graph]
    assert set(tuned.graph.initializers) == set(plain.graph.initializers)
    assert not (tmp_path / FILE).exists()


def test_a_weight_that_is_read_twice_is_left_as_it_was(store: WeightStore, tmp_path: Path) -> None:
    proto = make_model(
        "g (float[M,32] x) => (float[M,32] z) { a = MatMul(x, w) b = Relu(a) c = MatMul(b, w) d = MatMul(c, v) z = Relu(d) }",
        {"w": weight(32, 32), "v": weight(32, 32, seed=1)},
    )
    _, transform = quantize(proto, TUNED, store, tmp_path)
    notes = {result.name: " ".join(result.notes) for result in transform.results}
    assert "not tuned: the weight is used more than once" in notes["w"]
    assert "on held-out samples" in notes["v"]


def test_what_stands_beside_codes_is_not_tuned_and_says_so(store: WeightStore, tmp_path: Path) -> None:
    rule = "\nrules: [{match: w2, algorithm: [rtn, {name: lorc, rank: 4}, {name: autoround, steps: 40}]}]"
    _, transform = quantize(model(), TUNED, store, tmp_path, rule)
    notes = {result.name: " ".join(result.notes) for result in transform.results}
    assert "not tuned: that is for codes with plain scales alone, and this is rank 4" in notes["w2"]
    assert "on held-out samples" in notes["w1"]


def test_other_options_in_one_segment_are_refused(store: WeightStore, tmp_path: Path) -> None:
    rule = "\nrules: [{match: w2, algorithm: [rtn, {name: autoround, steps: 3}]}]"
    with pytest.raises(SchemeError, match=r"w2: is tuned together with w1, with other options"):
        quantize(model(), TUNED, store, tmp_path, rule)


def test_an_operator_that_cannot_be_differentiated_is_named(store: WeightStore, tmp_path: Path) -> None:
    proto = make_model(
        "g (float[M,32] x) => (float[M,32] z) { a = MatMul(x, w) b = Hardmax(a) z = MatMul(b, v) }",
        {"w": weight(32, 32), "v": weight(32, 32, seed=1)},
    )
    with pytest.raises(CalibrationError, match=r"Hardmax.*without autoround"):
        quantize(proto, TUNED, store, tmp_path)


@pytest.mark.parametrize(
    ("algorithm", "said"),
    [
        ("[autoround, rtn]", "write [rtn,autoround]"),
        ("[rtn, autoround, autoround]", "at most one reconstruction"),
        ("autoround", "write [mse,autoround]"),
    ],
)
def test_its_place_is_last(algorithm: str, said: Any) -> None:
    with pytest.raises(RecipeError) as refused:
        Recipe.from_text(f"algorithm: {algorithm}", "test", "test")
    assert said in str(refused.value)
