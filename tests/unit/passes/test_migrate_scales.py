"""ScaleMigration: AWQ's scales move between weights and what feeds them, and the float function stays."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from qcompiler.algorithms import Algorithm, Need, NoOptions
from qcompiler.algorithms.awq import ScaleChoice
from qcompiler.calibration.collector import Collector
from qcompiler.graph.census import take_census
from qcompiler.graph.edits import Names, add_initializer
from qcompiler.passes.migrate_scales import ScaleMigration
from qcompiler.passes.normalize import Normalize
from qcompiler.passes.segment_stages import by_input
from qcompiler.recipe import Recipe
from qcompiler.recipe.plan import Plan, make_plan
from tests.small_models import Array, apply_pass, assert_equal_outputs, make_model, op_types, run, weight

# Scales up to 1e3 either way and back in float32: tens of roundings. A scale that is lost or doubled changes the output by its size.
ROUNDING = 1e-4


def _search(gain: float) -> Callable[..., ScaleChoice]:
    def run(weights: Any, statistics: Any, schemes: Any, options: Any, tie: Array | None) -> ScaleChoice:
        """Any scale, as if it brought the error to ``gain``; one factor for tied channels."""
        factors = np.exp(np.random.default_rng(3).uniform(-1, 1, weights[0].shape[1])).astype(np.float32)
        return ScaleChoice(factors if tie is None else factors[tie], gain, 1.0)

    return run


HALF = Algorithm("half", "transform", frozenset(Need), NoOptions, _search(0.5))
LITTLE = Algorithm("little", "transform", frozenset(Need), NoOptions, _search(0.95))
WORSE = Algorithm("worse", "transform", frozenset(Need), NoOptions, _search(1.0))


def _step(transform: str) -> str:
    return transform if transform == "awq" else f"tests.unit.passes.test_migrate_scales:{transform}"


def _recipe(*transforms: str, rules: str = "[]", quantizer: str = "rtn") -> Recipe:
    steps = ", ".join(f"'{_step(name)}'" for name in transforms)
    return Recipe.from_text(
        f"bits: 2\ngroup_size: 16\nalgorithm: [{steps}, {quantizer}]\nhead: float\nembedding: float\nrules: {rules}",
        "t",
        "t",
    )


def _outliers(*shape: int, seed: int = 0) -> Array:
    """Activations with a few channels thirty times the others, where AWQ has much to gain."""
    x = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    x[..., ::7] *= 30
    return x


def _migrate(
    model: onnx.ModelProto, feed: dict[str, Array], folder: Path, recipe: Recipe
) -> tuple[ir.Model, Plan]:
    """Every segment's scales, and then the float weights written out as they are to be rounded."""
    loaded, _ = apply_pass(Normalize(), model)
    plan = make_plan(take_census(loaded), recipe)
    by_node = {use.node: planned for planned in plan.quantized for use in planned.weight.uses}
    collector = Collector(loaded, list(by_node), [feed], folder, 1 << 20)
    names = Names(loaded)
    for segment in collector.segments:
        members = {node: by_node[node] for node in segment.nodes if node in by_node}
        inputs = by_input(members)
        taps = {tap: (next(iter(r.values())).weight.shape[1], frozenset(Need)) for tap, r in inputs.items()}
        seen = collector.observe(segment, taps)
        migration = ScaleMigration(
            loaded, collector.nodes_of(segment), segment.inputs, collector.sample(0), members, names
        )
        for tap, readers in inputs.items():
            migration.apply(tap, readers, seen[tap])
        for planned in dict.fromkeys(members.values()):
            _write_out(loaded, planned.weight, names)
        collector.advance(segment)
    return loaded, plan


def _write_out(loaded: ir.Model, held: Any, names: Names) -> None:
    values = np.ascontiguousarray(held.array().T).astype(np.float32)
    name = names.value(f"{held.name}.final")
    fresh = add_initializer(loaded.graph, ir.Tensor(values, name=name), name)
    for use in held.uses:
        use.node.replace_input_with(1, fresh)


def _scaled(plan: Plan) -> dict[str, str]:
    """What took the scale of each weight that has one."""
    found = {}
    for planned in plan.quantized:
        for note in planned.notes:
            if "scale taken by" in note:
                found[planned.weight.name] = note.split("scale taken by ")[1]
    return found


LLAMA = """g (float[B,S,32] x, float[B,2,P,8] past) => (float[B,S,32] out, float[B,2,T,8] present) {
    axes = Constant<value_ints=[-1]>()
    sq = Mul(x, x) mean = ReduceMean<keepdims=1>(sq, axes) inv = Sqrt(mean) n0 = Div(x, inv) n1 = Mul(n0, g1)
    q0 = MatMul(n1, wq) k0 = MatMul(n1, wk) v0 = MatMul(n1, wv)
    qs = Constant<value_ints=[0,0,4,8]>() ks = Constant<value_ints=[0,0,2,8]>()
    q1 = Reshape(q0, qs) k1 = Reshape(k0, ks) v1 = Reshape(v0, ks)
    q2 = Transpose<perm=[0,2,1,3]>(q1) k2 = Transpose<perm=[0,2,1,3]>(k1) v2 = Transpose<perm=[0,2,1,3]>(v1)
    present = Concat<axis=2>(past, v2)
    two = Constant<value_ints=[2]>() k3 = Unsqueeze(k2, two) v3 = Unsqueeze(VALUE, two)
    rep = Constant<value_ints=[1,1,2,1,1]>() k4 = Expand(k3, rep) v4 = Expand(v3, rep)
    hs = Constant<value_ints=[0,4,-1,8]>() k5 = Reshape(k4, hs) v5 = Reshape(v4, hs)
    k6 = Transpose<perm=[0,1,3,2]>(k5) s = MatMul(q2, k6) p = Softmax<axis=-1>(s) o = MatMul(p, v5)
    o1 = Transpose<perm=[0,2,1,3]>(o) ms = Constant<value_ints=[0,0,32]>() o2 = Reshape(o1, ms) o3 = MatMul(o2, wo)
    r = Add(x, o3)
    sq2 = Mul(r, r) mean2 = ReduceMean<keepdims=1>(sq2, axes) inv2 = Sqrt(mean2) m0 = Div(r, inv2) m1 = Mul(m0, g2)
    a = MatMul(m1, wg) sg = Sigmoid(a) t = Mul(a, sg) u = MatMul(m1, wu) m = Mul(t, u) d = MatMul(m, wd)
    out0 = Add(r, d) out = Softplus(out0)
}"""


def _llama(cached: bool) -> onnx.ModelProto:
    text = LLAMA.replace("VALUE", "present" if cached else "v2")
    if not cached:  # the cache is an output of its own making
        text = text.replace("present = Concat<axis=2>(past, v2)", "present = Relu(past)")
    else:
        text = text.replace(
            "k3 = Unsqueeze(k2, two)", "kk = Concat<axis=2>(past, k2) k3 = Unsqueeze(kk, two)"
        )
    shapes = {
        "wq": (32, 32),
        "wk": (32, 16),
        "wv": (32, 16),
        "wo": (32, 32),
        "wg": (32, 48),
        "wu": (32, 48),
        "wd": (48, 32),
    }
    weights = {name: weight(*shape, seed=i) for i, (name, shape) in enumerate(shapes.items())}
    return make_model(
        text, {**weights, "g1": 1 + weight(32, scale=0.1), "g2": 1 + weight(32, scale=0.1, seed=5)}
    )


@pytest.mark.parametrize("transform", ["HALF", "awq"])
@pytest.mark.parametrize("cached", [False, True])
def test_a_decoder_block(cached: bool, transform: str, tmp_path: Path) -> None:
    model = _llama(cached)
    feed = {"x": _outliers(1, 12, 32), "past": _outliers(1, 2, 3, 8, seed=4)}
    before = run(model, feed)
    after, plan = _migrate(model, feed, tmp_path, _recipe(transform))
    assert_equal_outputs(before, run(after, feed), ROUNDING)
    taken = _scaled(plan)
    if transform == "awq":
        assert taken  # it found something to gain; what took it is tested with scales that are always taken
        return
    assert {taken[name] for name in ("wq", "wk", "wv")} == {taken["wq"]}
    assert taken["wq"].startswith("weight g1")
    assert taken["wd"] == "output channels of wu"
    if cached:  # present is an output: v_proj must not change
        assert taken["wo"] == "a Mul of its own"
    else:
        assert taken["wo"] == "output channels of wv"


def test_a_norm_that_others_read_too_gets_a_mul(tmp_path: Path) -> None:
    """Post-norm: the norm's output is the next residual as well."""
    model = make_model(
        "g (float[M,32] x) => (float[M,32] y) { h = LayerNormalization(x, g, b) a = MatMul(h, w) r = Tanh(a) c = MatMul(r, v)"
        " s = Add(h, c) y = LayerNormalization(s, g, b) }",
        {
            "w": weight(32, 48),
            "v": weight(48, 32, seed=1),
            "g": 1 + 9 * (np.arange(32) % 7 == 0).astype(np.float32),
            "b": weight(32),
        },
    )
    feed = {"x": _outliers(12, 32)}
    before = run(model, feed)
    after, plan = _migrate(model, feed, tmp_path, _recipe("HALF"))
    assert _scaled(plan)["w"] == "a Mul of its own"
    assert "Mul" in op_types(after)
    assert_equal_outputs(before, run(after, feed), ROUNDING)


def test_a_mul_that_brings_little_is_not_made(tmp_path: Path) -> None:
    model = make_model(
        "g (float[M,32] x) => (float[M,48] y) { t = Tanh(x) a = MatMul(t, w) y = Relu(a) }",
        {"w": np.sign(weight(32, 48))},
    )
    feed = {"x": np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32)}
    for transform in ("LITTLE", "WORSE"):
        after, plan = _migrate(model, feed, tmp_path, _recipe(transform))
        assert not _scaled(plan)
        assert "Mul" not in op_types(after)


def test_a_scale_that_costs_nothing_is_taken_for_little(tmp_path: Path) -> None:
    model = make_model(
        "g (float[M,32] x) => (float[M,48] y) { h = LayerNormalization(x, g) a = MatMul(h, w) y = Softplus(a) }",
        {"w": weight(32, 48), "g": np.ones(32, np.float32)},
    )
    feed = {"x": _outliers(12, 32)}
    before = run(model, feed)
    after, plan = _migrate(model, feed, tmp_path, _recipe("LITTLE"))
    assert _scaled(plan)["w"].startswith("norm")
    assert_equal_outputs(before, run(after, feed), ROUNDING)
    assert not _scaled(_migrate(model, feed, tmp_path, _recipe("WORSE"))[1])


def test_a_weight_used_twice_is_not_scaled(tmp_path: Path) -> None:
    model = make_model(
        "g (float[M,32] x) => (float[M,32] y) { a = MatMul(x, w) r = Tanh(a) c = MatMul(r, w) y = Relu(c) }",
        {"w": weight(32, 32)},
    )
    feed = {"x": _outliers(12, 32)}
    before = run(model, feed)
    after, plan = _migrate(model, feed, tmp_path, _recipe("HALF"))
    assert not _scaled(plan)
    assert any("used more than once" in note for note in plan.quantized[0].notes)
    assert_equal_outputs(before, run(after, feed), ROUNDING)


def test_a_float_reader_keeps_the_input_as_it_was(tmp_path: Path) -> None:
    recipe = _recipe("HALF", rules="[{match: v, quantize: false}]")
    model = make_model(
        "g (float[M,32] x) => (float[M,32] y, float[M,32] z) { h = LayerNormalization(x, g) a = MatMul(h, w) y = Softplus(a)"
        " c = MatMul(h, v) z = Softplus(c) }",
        {
            "w": weight(32, 32),
            "v": weight(32, 32, seed=1),
            "g": 1 + 9 * (np.arange(32) % 7 == 0).astype(np.float32),
        },
    )
    feed = {"x": _outliers(12, 32)}
    before = run(model, feed)
    after, plan = _migrate(model, feed, tmp_path, recipe)
    assert _scaled(plan) == {"w": "a Mul of its own"}
    assert_equal_outputs(before, run(after, feed), ROUNDING)


def test_the_function_stays(tmp_path: Path) -> None:
    model = make_model(
        "g (float[M,32] x) => (float[M,32] y) { t = Tanh(x) e = MatMul(t, u) a = MatMul(e, w) i = Add(a, b) r = Relu(i) c = MatMul(r, v) d = Add(e, c)"
        " y = Softplus(d) }",
        {"u": weight(32, 32, seed=4), "w": weight(32, 48), "b": weight(48), "v": weight(48, 32, seed=1)},
    )
    feed = {"x": _outliers(64, 32)}
    before = run(model, feed)
    after, _ = _migrate(model, feed, tmp_path, _recipe("HALF"))
    assert_equal_outputs(before, run(after, feed), ROUNDING)


PAIR = (
    "g (float[M,32] x) => (float[M,32] y, float[M,32] z) { t = Tanh(x) a = MatMul(t, w) y = Softplus(a)"
    " c = MatMul(t, v) z = Softplus(c) }"
)


@pytest.mark.parametrize("norm", [False, True])
def test_two_transforms_are_both_taken_out(norm: bool, tmp_path: Path) -> None:
    """Without a norm that takes them, each scale gets its Mul, the second behind the first."""
    text = "h = LayerNormalization(x, g)" if norm else "h = Tanh(x)"
    model = make_model(
        f"g (float[M,32] x) => (float[M,48] y) {{ {text} a = MatMul(h, w) y = Softplus(a) }}",
        {"w": weight(32, 48), "g": np.ones(32, np.float32)},
    )
    feed = {"x": _outliers(12, 32)}
    after, plan = _migrate(model, feed, tmp_path, _recipe("HALF", "HALF"))
    assert sum("scale taken by" in note for note in plan.quantized[0].notes) == 2
    assert op_types(after).count("Mul") == (0 if norm else 2)
    assert_equal_outputs(run(model, feed), run(after, feed), ROUNDING)


def test_readers_with_other_transforms_are_not_scaled(tmp_path: Path) -> None:
    model = make_model(PAIR, {"w": weight(32, 32), "v": weight(32, 32, seed=1)})
    feed = {"x": _outliers(12, 32)}
    rule = f"[{{match: v, algorithm: ['{_step('LITTLE')}', rtn]}}]"
    after, plan = _migrate(model, feed, tmp_path, _recipe("HALF", rules=rule))
    assert not _scaled(plan)
    assert all("other transforms read the same input" in planned.notes[0] for planned in plan.quantized)
    assert_equal_outputs(run(model, feed), run(after, feed), ROUNDING)


SEEN: list[Any] = []


def _record(weights: Any, statistics: Any, schemes: Any, options: Any, tie: Array | None) -> ScaleChoice:
    SEEN.append(statistics)
    return ScaleChoice(np.ones(weights[0].shape[1], np.float32), 1.0, 1.0)


RECORD = Algorithm("record", "transform", frozenset(Need), NoOptions, _record)


@pytest.mark.parametrize(("quantizer", "weighed"), [("rtn", False), ("gptq", True)])
def test_a_transform_weighs_errors_as_the_quantizer_leaves_them(
    quantizer: str, weighed: bool, tmp_path: Path
) -> None:
    model = make_model(PAIR, {"w": weight(32, 32), "v": weight(32, 32, seed=1)})
    SEEN.clear()
    _migrate(model, {"x": _outliers(64, 32)}, tmp_path, _recipe("RECORD", quantizer=quantizer))
    (statistics,) = SEEN
    assert (statistics.remaining is not None) is weighed
    if weighed:
        assert (statistics.remaining <= 1.2 * statistics.diagonal()).all()  # damping adds a tenth of the mean
