"""CorrectBiasesAnalytically: what it takes away of the error that coarse weights leave, without data; what it leaves alone and why."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from qcompiler.graph.weight_store import WeightStore
from qcompiler.pass_manager import check_model, run_passes
from qcompiler.passes.correct_biases_analytically import CorrectBiasesAnalytically
from qcompiler.passes.quantize_weights import QuantizeWeights
from qcompiler.pipeline import plan_weights, preparing_passes
from qcompiler.quant.scheme import Granularity, QuantScheme
from qcompiler.recipe import Recipe
from tests.small_models import Array, make_model, relative_error, run, weight

IMAGES = "float[B,3,8,8] x"
BODY = (
    "c = Conv<pads=[1,1,1,1]>(x, k1) n = BatchNormalization(c, g1, b1, m1, v1) r = Relu(n) "
    "d = Conv<pads=[1,1,1,1], group=8>(r, k2) o = BatchNormalization(d, g2, b2, m2, v2) s = Clip(o, zero, six) "
    "e = Conv(s, k3) p = GlobalAveragePool(e) f = Flatten(p) q = GlobalAveragePool(s) j = Flatten(q) h = MatMul(j, w) "
    "t = Add(h, b4) y = Add(t, f)"
)


def _images(count: int, seed: int) -> Array:
    return np.random.default_rng(seed).standard_normal((count, 3, 8, 8)).astype(np.float32)


def _model() -> onnx.ModelProto:
    """Norms whose statistics are those of what the convolutions before them make of normal images."""
    rng = np.random.default_rng(0)
    parts: dict[str, Array] = {
        "k1": weight(8, 3, 3, 3, scale=0.3), "k2": weight(16, 1, 3, 3, seed=2, scale=0.4), "k3": weight(10, 16, 1, 1, seed=3),
        "w": weight(16, 10, seed=5), "b4": weight(10, seed=6), "zero": np.array(0, np.float32),
        "six": np.array(6, np.float32),
    }  # fmt: skip
    for number, channels in ((1, 8), (2, 16)):
        parts |= {
            f"g{number}": rng.uniform(0.5, 1.5, channels).astype(np.float32), f"b{number}": rng.uniform(0, 1, channels).astype(np.float32),
            f"m{number}": np.zeros(channels, np.float32), f"v{number}": np.ones(channels, np.float32),
        }  # fmt: skip
    for number, made in ((1, "c"), (2, "d")):
        outputs = f"float[B,10] y, float[B,N,8,8] {made}"
        seen = run(make_model(f"g ({IMAGES}) => ({outputs}) {{ {BODY} }}", parts), {"x": _images(64, 7)})[
            made
        ]
        parts |= {f"m{number}": seen.mean((0, 2, 3)), f"v{number}": seen.var((0, 2, 3))}
    return make_model(f"g ({IMAGES}) => (float[B,10] y) {{ {BODY} }}", parts)


def _recipe(*settings: str) -> Recipe:
    plain = ["algorithm=rtn", "head.algorithm=rtn", "calib.correct_biases=analytical"]
    return Recipe.load("w8a8-static").with_settings([*plain, *settings])


@pytest.fixture
def store(tmp_path: Path) -> Iterator[WeightStore]:
    with WeightStore(tmp_path) as opened:
        yield opened


def _corrected(
    store: WeightStore, wanted: bool, model: onnx.ModelProto, bits: int = 4
) -> tuple[ir.Model, CorrectBiasesAnalytically]:
    """The model with weights of so many bits, one scale each, activations float."""
    recipe = _recipe()
    loaded = ir.from_proto(onnx.ModelProto.FromString(model.SerializeToString()))
    run_passes(loaded, preparing_passes(recipe), [])
    plan = plan_weights(loaded, recipe)
    for planned in plan.quantized:
        planned.scheme = QuantScheme(bits, True, Granularity.TENSOR)
    QuantizeWeights(plan, store, None, lambda *_: None)(loaded)
    done = CorrectBiasesAnalytically(plan, wanted)
    assert done(loaded).modified is wanted
    assert done(loaded).modified is False
    check_model(loaded, "the pass")
    return loaded, done


def test_coarse_weights_shift_means_less(store: WeightStore) -> None:
    """Four bits for whole weights: what they shift is mostly gone, without a look at data, and with it a share of all error."""
    model, x = _model(), _images(256, 1)
    exact = run(model, {"x": x})["y"]
    made = {wanted: run(_corrected(store, wanted, model)[0], {"x": x})["y"] for wanted in (False, True)}
    shifts = {wanted: float(np.abs((y - exact).mean(0)).mean()) for wanted, y in made.items()}
    assert shifts[True] < 0.5 * shifts[False]
    assert relative_error(exact, made[True]) < 0.8 * relative_error(exact, made[False])


def test_what_no_norm_stands_before_says_so(store: WeightStore) -> None:
    _, done = _corrected(store, True, _model())
    assert sorted(done.corrected) == ["d", "e", "h"]
    assert done.reasons == ["c: bias not corrected: x is no result of a BatchNormalization"]


def test_a_linear_without_a_bias_stays(store: WeightStore) -> None:
    model = _model()
    (add,) = [node for node in model.graph.node if node.output[0] == "t"]
    add.op_type = "Identity"
    del add.input[1]
    _, done = _corrected(store, True, model)
    assert "h: bias not corrected: no bias is added to what it makes" in done.reasons


def test_eight_bits_for_means_that_are_right_change_next_to_nothing(store: WeightStore) -> None:
    model, x = _model(), _images(16, 1)
    exact = run(model, {"x": x})["y"]
    # a step of 1/127 of the largest weight, a normal one's spread / 30, in three layers
    assert relative_error(exact, run(_corrected(store, True, model, bits=8)[0], {"x": x})["y"]) < 0.03
