"""Products with static ranges in the bodies of If, Loop and Scan, from a recipe to ONNX Runtime's integer kernels in there."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from qcompiler.errors import CalibrationError
from tests.compiled_models import Compile
from tests.small_models import Array, Feed, make_model, relative_error, run, weight

# Steps of 1/255 of a tensor's range: 1 % of a normal tensor's spread each, for up to five layers.
STATIC = 0.06
BRANCHES = (
    "g (float[B,3,8,8] x, bool up) => (float[B,8,8,8] y) { a = Conv<pads=[1,1,1,1]>(x, k1, b1) h = If(up)"
    " <then_branch = t () => (float[B,8,8,8] p) { [first] c = Conv<pads=[1,1,1,1]>(a, k2, b2) r = Relu(c) s = Add(r, a) [last] p = Conv(s, k3) },"
    " else_branch = e () => (float[B,8,8,8] p) { f = Reshape(a, flat) [linear] c = MatMul(f, w) n = Neg(c) p = Reshape(n, back) }>"
    " y = Conv(h, k3) }"
)
CONSTANTS = {
    "k1": weight(8, 3, 3, 3, scale=0.3), "b1": weight(8, seed=1), "k2": weight(8, 8, 3, 3, seed=2, scale=0.2), "b2": weight(8, seed=3),
    "k3": weight(8, 8, 1, 1, seed=4, scale=0.4), "w": weight(64, 64, seed=5), "flat": np.array([-1, 64]), "back": np.array([-1, 8, 8, 8]),
}  # fmt: skip
LOOP = (
    "g (float[M,64] x, int64 count, bool go) => (float[M,64] y) { y = Loop(count, go, x)"
    " <body = b (int64 i, bool c, float[M,64] s) => (bool c2, float[M,64] t) {"
    " c2 = Identity(c) [step] d = MatMul(s, w) [given] e = MatMul(x, v) a = Add(d, e) t = Tanh(a) }> }"
)
SCAN = (
    "g (float[T,64] x, float[64] start) => (float[64] last, float[T,64] y) { last, y = Scan"
    " <num_scan_inputs=1, body = b (float[64] s, float[64] z) => (float[64] t, float[64] o) {"
    " u = Unsqueeze(s, zero) [step] d = MatMul(u, w) q = Squeeze(d, zero) a = Add(q, z) t = Tanh(a) o = Identity(t) }>(start, x) }"
)


def _image(seed: int, up: bool) -> dict[str, Array]:
    x = np.random.default_rng(seed).standard_normal((4, 3, 8, 8)).astype(np.float32)
    return {"x": x, "up": np.array(up)}


def _loop(seed: int, count: int) -> dict[str, Array]:
    x = np.random.default_rng(seed).standard_normal((5, 64)).astype(np.float32)
    return {"x": x, "count": np.array(count), "go": np.array(True)}


def _inside(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from attribute.g.node
                yield from _inside(attribute.g)


def running_inside(model: Path, folder: Path) -> Counter[str]:
    """Operators of the bodies that ONNX Runtime's optimizer leaves."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    graph = onnx.load(folder / "optimized.onnx", load_external_data=False).graph
    return Counter(node.op_type for node in _inside(graph))


@pytest.mark.parametrize("target", ["ort", "qcompiler"])
def test_a_convolution_in_one_branch_and_a_matrix_in_the_other(
    target: str, quantize: Compile, tmp_path: Path
) -> None:
    model = make_model(BRANCHES, CONSTANTS)
    compiled = quantize(
        model, "w8a8-static", target=target, calibration=[_image(seed, up=seed % 2 == 0) for seed in range(6)]
    )
    assert compiled.report.running["QLinearConv"] == 4 and sum(compiled.report.running.values()) == 5
    assert not any("stay float" in note for layer in compiled.report.layers for note in layer.notes)
    for up in (True, False):
        feed = _image(9, up)
        assert relative_error(run(model, feed)["y"], run(compiled.path, feed)["y"]) < STATIC
    if target == "ort":
        inside = running_inside(compiled.path, tmp_path)
        assert inside["QLinearConv"] == 2 and inside["QLinearAdd"] == 1
        assert inside["MatMulIntegerToFloat"] == 1
        assert not inside.keys() & {"Conv", "FusedConv", "MatMul", "QuantizeLinear"}


@pytest.mark.parametrize("kind", ["uint8", "int8", "uint16"])
def test_types_of_activations(kind: str, quantize: Compile) -> None:
    model = make_model(BRANCHES, CONSTANTS)
    feeds = [_image(seed, up=seed % 2 == 0) for seed in range(6)]
    compiled = quantize(model, "w8a8-static", calibration=feeds, settings=[f"activation_type={kind}"])
    for up in (True, False):
        feed = _image(9, up)
        assert relative_error(run(model, feed)["y"], run(compiled.path, feed)["y"]) < STATIC


def test_a_loop(quantize: Compile, tmp_path: Path) -> None:
    model = make_model(LOOP, {"w": weight(64, 64), "v": weight(64, 64, seed=1)})
    compiled = quantize(model, "w8a8-static", calibration=[_loop(seed, 3) for seed in range(4)])
    assert compiled.report.running == {"MatMulIntegerToFloat": 2}
    inside = running_inside(compiled.path, tmp_path)
    # What every iteration reads alike is rounded once, outside.
    assert inside["MatMulIntegerToFloat"] == 2 and inside["QuantizeLinear"] == 1
    assert relative_error(run(model, _loop(9, 3))["y"], run(compiled.path, _loop(9, 3))["y"]) < STATIC


def test_a_scan(quantize: Compile, tmp_path: Path) -> None:
    model = make_model(SCAN, {"w": weight(64, 64), "zero": np.array([0])})

    def feed(seed: int) -> Feed:
        rng = np.random.default_rng(seed)
        shapes = {"x": (6, 64), "start": (64,)}
        return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}

    compiled = quantize(model, "w8a8-static", calibration=[feed(seed) for seed in range(4)])
    assert running_inside(compiled.path, tmp_path)["MatMulIntegerToFloat"] == 1
    assert relative_error(run(model, feed(9))["y"], run(compiled.path, feed(9))["y"]) < STATIC


def test_norms_and_pads_of_a_body_are_folded_and_a_gemm_is_a_product(
    quantize: Compile, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    constants = {name: CONSTANTS[name] for name in ("k1", "b1")} | {
        "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]), "gamma": rng.uniform(0.5, 2, 8).astype(np.float32), "beta": weight(8, seed=3),
        "mean": weight(8, seed=4), "var": rng.uniform(0.5, 2, 8).astype(np.float32), "w": weight(10, 512, seed=5, scale=0.05),
        "b": weight(10, seed=6),
    }  # fmt: skip
    model = make_model(
        "g (float[4,3,8,8] x, bool up) => (float[4,10] y) { y = If(up)"
        " <then_branch = t () => (float[4,10] p) { q = Pad(x, pads) c = Conv(q, k1, b1)"
        " n = BatchNormalization(c, gamma, beta, mean, var) r = Relu(n) f = Flatten(r) p = Gemm<transB=1>(f, w, b) },"
        " else_branch = e () => (float[4,10] p) { f = Flatten(x) m = ReduceMean(f) p = Expand(m, shape) }> }",
        {**constants, "shape": np.array([4, 10])},
    )
    compiled = quantize(model, "w8a8-static", calibration=[_image(seed, up=True) for seed in range(4)])
    inside = running_inside(compiled.path, tmp_path)
    assert inside["QLinearConv"] == inside["MatMulIntegerToFloat"] == 1
    assert not inside.keys() & {"BatchNormalization", "Pad", "Relu"}
    feed = _image(9, up=True)
    assert relative_error(run(model, feed)["y"], run(compiled.path, feed)["y"]) < STATIC


def test_a_branch_that_the_data_never_take_stays_float_and_is_named(quantize: Compile) -> None:
    model = make_model(BRANCHES, CONSTANTS)
    compiled = quantize(model, "w8a8-static", calibration=[_image(seed, up=False) for seed in range(4)])
    (told,) = [line for line in compiled.report.warnings if "then_branch of If" in line]
    assert "never reached" in told and "ranges of r, s, p;" in told
    assert compiled.report.running == {"QLinearConv": 2, "MatMulIntegerToFloat": 1}
    feed = _image(9, up=False)
    assert relative_error(run(model, feed)["y"], run(compiled.path, feed)["y"]) < STATIC


def test_a_branch_that_the_data_never_take_can_have_ranges_of_the_recipe(quantize: Compile) -> None:
    model = make_model(BRANCHES, CONSTANTS)
    ranges = ["tensors={r: {range: [0, 8]}, s: {range: [-8, 12]}, p: {range: [-12, 12]}}"]
    feeds = [_image(seed, up=False) for seed in range(4)]
    compiled = quantize(model, "w8a8-static", calibration=feeds, settings=ranges)
    assert compiled.report.running["QLinearConv"] == 4
    assert not [line for line in compiled.report.warnings if "never reached" in line]


def test_a_loop_that_never_ran_with_nothing_beside_it_is_an_error(quantize: Compile) -> None:
    model = make_model(LOOP.replace("[given] e = MatMul(x, v)", "e = Neg(x)"), {"w": weight(64, 64)})
    with pytest.raises(CalibrationError, match="calibration data never reached it"):
        quantize(model, "w8a8-static", calibration=[_loop(0, 0)])


def test_a_weight_of_the_main_graph_and_of_a_body(quantize: Compile) -> None:
    text = LOOP.replace("y = Loop(count, go, x)", "z = MatMul(x, w) y = Loop(count, go, z)")
    model = make_model(text, {"w": weight(64, 64), "v": weight(64, 64, seed=1)})
    compiled = quantize(model, "w8a8-static", calibration=[_loop(seed, 3) for seed in range(4)])
    assert compiled.report.running == {"MatMulIntegerToFloat": 3} and len(compiled.report.layers) == 2
    assert relative_error(run(model, _loop(9, 3))["y"], run(compiled.path, _loop(9, 3))["y"]) < STATIC
