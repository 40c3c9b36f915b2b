"""observe_ranges: the ranges of what a model computes, in any graph, in the memory of one feed in one segment."""

import tracemalloc

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from qcompiler.calibration.range_observers import RangeOptions
from qcompiler.calibration.ranges_of_model import observe_ranges
from qcompiler.errors import CalibrationError
from qcompiler.quant.ranges import Range
from tests.small_models import make_model, run, weight


def _values(model: ir.Model) -> dict[str, ir.Value]:
    """All named values, of bodies too."""
    found = {}
    for graph in model.graphs():
        for value in (
            *graph.inputs,
            *graph.initializers.values(),
            *(o for node in graph for o in node.outputs),
        ):
            found[value.name] = value
    return found


def _load(model: onnx.ModelProto) -> ir.Model:
    return ir.from_proto(onnx.shape_inference.infer_shapes(model))


def _ends(*arrays: np.ndarray) -> tuple[float, float]:
    return min(float(a.min()) for a in arrays), max(float(a.max()) for a in arrays)


def _chain(layers: int = 12) -> onnx.ModelProto:
    """Products on a residual stream, with weights large enough to be fed, and a small constant."""
    lines, weights, last = [], {}, "x"
    for i in range(layers):
        lines.append(
            f"a{i} = MatMul({last}, w{i}) b{i} = Relu(a{i}) c{i} = Add(b{i}, {last}) d{i} = Mul(c{i}, half)"
        )
        weights[f"w{i}"] = weight(160, 160, seed=i)
        last = f"d{i}"
    weights["half"] = np.array([0.5], np.float32)
    return make_model(
        f"g (float[M,160] x) => (float[M,160] y) {{ {' '.join(lines)} y = Neg({last}) }}", weights
    )


def _feeds(count: int, rows: int = 4) -> list[dict[str, np.ndarray]]:
    return [{"x": weight(rows + i, 160, seed=100 + i, scale=1.0 + i)} for i in range(count)]


def test_ranges_are_those_of_what_the_model_computes() -> None:
    proto = _chain()
    model = _load(proto)
    names = [name for name, value in _values(model).items() if value.producer() is not None or name == "x"]
    seen = observe_ranges(model, [_values(model)[n] for n in names], _feeds(3))
    del proto.graph.output[:]
    proto.graph.output.extend(onnx.helper.make_value_info(n, onnx.TypeProto()) for n in names if n != "x")
    runs = [run(proto, feed) | feed for feed in _feeds(3)]
    assert list(seen) == names
    for name in names:
        found = (seen[name].lowest, seen[name].highest)
        # other sessions sum in another order: some epsilons of numbers of the same size
        np.testing.assert_allclose(found, _ends(*(r[name] for r in runs)), rtol=1e-5, atol=1e-5)
        assert (seen[name].method, seen[name].batches) == ("minmax", 3)
        assert seen[name].numbers == sum(r[name].size for r in runs)


def test_the_model_stays_as_it_is_and_feeds_are_gone_through_once() -> None:
    model = _load(_chain())
    before = ir.to_proto(model).SerializeToString()
    steps = []
    observe_ranges(model, [_values(model)["b3"]], iter(_feeds(3)), progress=lambda *step: steps.append(step))
    assert ir.to_proto(model).SerializeToString() == before
    assert [done for _, done, _ in steps] == [1, 2, 3]


def test_histograms_are_made_of_all_feeds() -> None:
    model = _load(_chain())
    half = RangeOptions(percentile=50.0)
    narrow = observe_ranges(model, [_values(model)["b3"]], _feeds(3), "percentile", options=half)["b3"]
    wide = observe_ranges(model, [_values(model)["b3"]], _feeds(3))["b3"]
    assert narrow.highest < 0.5 * wide.highest
    assert narrow.method == "percentile"


def test_memory_does_not_grow_with_feeds() -> None:
    model = _load(_chain(4))
    values = [_values(model)[name] for name in ("a0", "d3")]

    def peak(count: int) -> int:
        feeds = ({"x": weight(64, 160, seed=i, scale=1.0)} for i in range(count))
        tracemalloc.start()
        try:
            observe_ranges(model, values, feeds, "percentile")
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    few, many = peak(5), peak(50)
    assert many < few + 64 * 160 * 4  # one array; were any kept, 45 would be


def test_constants_have_ranges_too() -> None:
    model = _load(_chain())
    found = observe_ranges(model, [_values(model)[n] for n in ("half", "w0")], _feeds(2))
    w = weight(160, 160, seed=0)
    assert (found["half"].lowest, found["half"].highest) == (0.5, 0.5)
    assert (found["w0"].lowest, found["w0"].highest, found["w0"].batches) == (*_ends(w), 1)


def test_no_values_is_no_run() -> None:
    assert observe_ranges(_load(_chain()), [], []) == {}


def test_no_feeds_are_refused() -> None:
    model = _load(_chain())
    with pytest.raises(CalibrationError, match="there are no feeds; give --calib"):
        observe_ranges(model, [_values(model)["b3"]], [])


def test_what_is_not_finite_is_refused_by_name() -> None:
    model = _load(_chain())
    bad = _feeds(1)[0]["x"]
    bad[0, 0] = np.inf
    with pytest.raises(CalibrationError, match=r"^a2: NaN or infinity"):
        observe_ranges(model, [_values(model)["a2"]], [{"x": bad}])


def test_integers_are_refused_by_name() -> None:
    model = _load(make_model("g (float[M,4] x) => (float[M,4] y) { s = Shape(x) y = Reshape(x, s) }"))
    with pytest.raises(CalibrationError, match=r"^s: holds int64"):
        observe_ranges(model, [_values(model)["s"]], [{"x": np.ones((2, 4), np.float32)}])


def test_a_value_of_another_model_is_refused() -> None:
    model, other = _load(_chain()), _load(_chain())
    with pytest.raises(CalibrationError, match=r"^b3: is not a value of this model"):
        observe_ranges(model, [_values(other)["b3"]], _feeds(1))


IF = """g (float[M,4] x, bool c) => (float[M,4] y) {
  z = Neg(x)
  y = If (c) <then_branch = t () => (float[M,4] a) { i = Exp(z) a = Relu(i) },
              else_branch = e () => (float[M,4] b) { j = Abs(z) b = Neg(j) }>
}"""


def test_a_branch_never_taken_is_missing() -> None:
    model = _load(make_model(IF))
    values = _values(model)
    x = weight(3, 4)
    wanted = [values[name] for name in ("z", "i", "j", "y")]
    before = ir.to_proto(model).SerializeToString()
    found = observe_ranges(model, wanted, [{"x": x, "c": np.array(True)}])
    assert list(found) == ["z", "i", "y"]
    np.testing.assert_allclose((found["i"].lowest, found["i"].highest), _ends(np.exp(-x)), rtol=1e-6)
    assert ir.to_proto(model).SerializeToString() == before
    both = observe_ranges(model, wanted, [{"x": x, "c": np.array(c)} for c in (True, False)])
    assert Range(both["j"].lowest, both["j"].highest) == Range(*_ends(np.abs(x)))
    assert both["z"].batches == 2 and both["j"].batches == 1


def test_two_values_of_one_name_are_refused() -> None:
    model = _load(make_model(IF))
    values = _values(model)
    values["j"].name = "i"
    with pytest.raises(CalibrationError, match=r"^i: two tensors have this name"):
        observe_ranges(model, [values["i"], values["j"]], [{"x": weight(3, 4), "c": np.array(True)}])


LOOP = """g (float[M,4] x, int64 n, bool c) => (float[P,4] y, float[T,M] s) {{
  yes = Constant<value = bool {{1}}> ()
  y, s = Loop (n, yes, x) <body = b (int64 at, bool go, float[Q,4] v) => (bool on, float[R,4] w, float[M] r) {{
    on = Identity(go)
    d = {step}
    w = If (c) <then_branch = t () => (float[R,4] a) {{ k = Add(d, d) a = Identity(k) }},
                else_branch = e () => (float[R,4] f) {{ f = Neg(d) }}>
    r = ReduceSum<keepdims = 0>(x, one)
  }}>
  u = Neg(s)
}}"""


@pytest.mark.parametrize("step", ["Mul(v, half)", "Concat<axis = 0>(v, v)"])
def test_a_loop_gives_all_its_iterations_and_keeps_its_own_outputs(step: str) -> None:
    proto = make_model(
        LOOP.format(step=step), {"half": np.array([0.75], np.float32), "one": np.array([1], np.int64)}
    )
    model = _load(proto)
    x = weight(3, 4)
    feed = {"x": x, "n": np.array(3), "c": np.array(True)}
    values = _values(model)
    found = observe_ranges(model, [values[name] for name in ("v", "d", "k", "f", "y", "s", "u")], [feed])
    expected: dict[str, list[np.ndarray]] = {"v": [], "d": [], "k": []}
    v = x
    for _ in range(3):
        d = v * np.float32(0.75) if "Mul" in step else np.concatenate([v, v])
        for name, array in (("v", v), ("d", d), ("k", d + d)):
            expected[name].append(array)
        v = d + d
    sums = x.sum(axis=1)
    expected |= {"y": [v], "s": [sums], "u": [-sums]}
    assert list(found) == list(expected)  # f's branch is never taken
    for name, arrays in expected.items():
        np.testing.assert_allclose((found[name].lowest, found[name].highest), _ends(*arrays), rtol=1e-6)
    assert found["k"].numbers == sum(a.size for a in expected["k"])


def test_a_loop_without_iterations_is_missing() -> None:
    proto = make_model(
        LOOP.format(step="Mul(v, half)"),
        {"half": np.array([0.75], np.float32), "one": np.array([1], np.int64)},
    )
    model = _load(proto)
    feed = {"x": weight(3, 4), "n": np.array(0), "c": np.array(True)}
    found = observe_ranges(model, [_values(model)[name] for name in ("d", "y")], [feed])
    assert list(found) == ["y"]


def test_a_scan_gives_all_its_iterations() -> None:
    model = _load(
        make_model(
            """g (float[T,4] x, float[4] h) => (float[4] y, float[T,4] z) {
              y, z = Scan <body = b (float[4] old, float[4] row) => (float[4] new, float[4] out) {
                new = Add(old, row)
                d = Mul(new, new)
                out = Identity(d)
              }, num_scan_inputs = 1> (h, x)
            }"""
        )
    )
    x = weight(5, 4)
    found = observe_ranges(model, [_values(model)["d"]], [{"x": x, "h": np.zeros(4, np.float32)}])
    np.testing.assert_allclose(
        (found["d"].lowest, found["d"].highest), _ends(np.cumsum(x, axis=0) ** 2), rtol=1e-5
    )


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_models_are_observed(dtype: type) -> None:
    name = {np.float16: "float16", ml_dtypes.bfloat16: "bfloat16"}[dtype]
    model = _load(
        make_model(f"g ({name}[M,4] x, bool c) => ({name}[M,4] y) {{ a = Identity(x) y = Identity(a) }}")
    )
    x = weight(3, 4).astype(dtype)
    found = observe_ranges(model, [_values(model)["a"]], [{"x": x, "c": np.array(True)}])
    assert (found["a"].lowest, found["a"].highest) == _ends(x)
