"""What lies between convolutions with static ranges: which integer kernels ONNX Runtime's optimizer makes of it, by reading back its graph."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from qcompiler.api import CompiledModel
from tests.compiled_models import Compile
from tests.small_models import Array, make_model, relative_error, run, weight

# Four layers of 8 bits, 1/255 of a tensor's range each.
STATIC = 0.06
SIGNATURE = "g (float[B,3,8,8] x, bool[B,8,8,8] c) => (float[B,4,H,W] y)"
FIRST = "a = Conv<pads=[1,1,1,1]>(x, k1, b1) "
LAST = " y = Conv(m, k3)"
TWO = "b = Conv<pads=[1,1,1,1]>(x, k2) "
CONSTANTS = {
    "k1": weight(8, 3, 3, 3, scale=0.3), "b1": weight(8, seed=1), "k2": weight(8, 3, 3, 3, seed=1, scale=0.6),
    "k3": weight(4, 8, 1, 1, seed=2, scale=0.3), "k6": weight(4, 16, 1, 1, seed=2, scale=0.3), "two": np.array([1, 1, 2, 2], np.float32),
    "zero": np.zeros(1, np.int64), "four": np.array([4], np.int64), "axis": np.array([2], np.int64), "once": np.arange(8)[::-1].copy(),
    "twice": np.array([1, 1, 2, 1], np.int64), "shape": np.array([0, 8, 4, 16], np.int64), "last": np.array([3], np.int64),
    "wide": np.array([1, 1, 8, 8], np.int64), "ramp": np.linspace(0.5, 1, 8, dtype=np.float32),
}  # fmt: skip

TAKEN = {
    "Add": (TWO + "m = Add(a, b)", "QLinearAdd"),
    "Mul": (TWO + "g = Sigmoid(b) m = Mul(a, g)", "QLinearMul"),
    "Concat": (TWO + "m = Concat<axis=1>(a, b)", "QLinearConcat"),
    "Where": (TWO + "m = Where(c, a, b)", "QLinearWhere"),
    "MatMul": (TWO + "m = MatMul(a, b)", "QLinearMatMul"),
    "Sigmoid": ("m = Sigmoid(a)", "QLinearSigmoid"),
    "LeakyRelu": ("m = LeakyRelu(a)", "QLinearLeakyRelu"),
    "Softmax": ("m = Softmax<axis=1>(a)", "QLinearSoftmax"),
    "AveragePool": ("m = AveragePool<kernel_shape=[2,2]>(a)", "QLinearAveragePool"),
    "GlobalAveragePool": ("m = GlobalAveragePool(a)", "QLinearGlobalAveragePool"),
    "MaxPool": ("m = MaxPool<kernel_shape=[2,2]>(a)", "NhwcMaxPool"),
    "MaxPool, then Relu": ("p = MaxPool<kernel_shape=[2,2]>(a) m = Relu(p)", "NhwcMaxPool"),
    "Resize": ('m = Resize<mode="nearest">(a, , two)', "Resize"),
    "Slice": ("m = Slice(a, zero, four, axis)", "Slice"),
    "Gather": ("m = Gather<axis=2>(a, once)", "Gather"),
    "Split": ("s, t = Split<axis=2, num_outputs=2>(a) m = Add(s, t)", "Split"),
    "Tile": ("m = Tile(a, twice)", "Tile"),
    "Reshape": ("m = Reshape(a, shape)", "Reshape"),
    "Transpose": ("m = Transpose<perm=[0,1,3,2]>(a)", "Transpose"),
    "ReduceMax": ("m = ReduceMax(a, last)", "ReduceMax"),
}
LEFT = {
    "Resize": ('m = Resize<mode="linear">(a, , two)', "Resize (1)"),
    "Tanh": ("m = Tanh(a)", "Tanh (1)"),
    "Gelu": ("e = Erf(a) m = Mul(a, e)", "Erf (1), Mul (1)"),
    "Constant": ("m = Mul(a, ramp)", "Mul (1)"),  # along the width: it goes into no kernel
}


def _feed(seed: int, count: int = 8) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {
        "x": rng.standard_normal((count, 3, 8, 8)).astype(np.float32),
        "c": rng.random((count, 8, 8, 8)) < 0.5,
    }


def _compiled(quantize: Compile, between: str) -> tuple[onnx.ModelProto, CompiledModel]:
    last = LAST.replace("k3", "k6") if "Concat" in between else LAST
    model = make_model(f"{SIGNATURE} {{ {FIRST}{between}{last} }}", CONSTANTS)
    compiled = quantize(model, "w8a8-static", calibration=[_feed(seed) for seed in range(3)])
    assert relative_error(run(model, _feed(9))["y"], run(compiled.path, _feed(9))["y"]) < STATIC
    return model, compiled


def _optimized(model: Path, folder: Path) -> onnx.GraphProto:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    return onnx.load(folder / "optimized.onnx").graph


def _readers(graph: onnx.GraphProto) -> Counter[str]:
    return Counter(name for node in graph.node for name in node.input)


@pytest.mark.parametrize("name", TAKEN)
def test_integers_throughout(quantize: Compile, tmp_path: Path, name: str) -> None:
    between, operator = TAKEN[name]
    _, compiled = _compiled(quantize, between)
    graph = _optimized(compiled.path, tmp_path)
    operators = Counter(node.op_type for node in graph.node)
    assert operators[operator] >= 1
    makers = {output: node.op_type for node in graph.node for output in node.output}
    # Neither does it read what was made floats of, nor is what it makes rounded.
    for node in graph.node:
        if node.op_type == operator:
            assert not {makers.get(source) for source in node.input} & {"DequantizeLinear"}
    assert operators["DequantizeLinear"] == 1 and operators["QuantizeLinear"] == 1  # of y and x
    assert not [line for line in compiled.report.warnings if "computed in float" in line]


@pytest.mark.parametrize("name", LEFT)
def test_what_has_no_integer_kernel_is_told(quantize: Compile, name: str) -> None:
    between, listed = LEFT[name]
    _, compiled = _compiled(quantize, between)
    (said,) = [line for line in compiled.report.warnings if "computed in float between integers" in line]
    assert said.endswith(listed) and compiled.report.running == {"QLinearConv": 2}


@pytest.mark.parametrize("name", [*TAKEN, *LEFT])
def test_no_pair_is_left_that_nothing_uses(quantize: Compile, name: str) -> None:
    _, compiled = _compiled(quantize, (TAKEN | LEFT)[name][0])
    graph = onnx.load(compiled.path).graph
    readers = _readers(graph) + Counter(output.name for output in graph.output)
    for node in graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            assert readers[node.output[0]], node.name


def test_a_transposed_convolution_stays_float_and_says_why(quantize: Compile) -> None:
    body = "a = Conv<pads=[1,1,1,1]>(x, k1, b1) y = ConvTranspose(a, k)"
    constants = {name: CONSTANTS[name] for name in ("k1", "b1")} | {"k": weight(8, 4, 2, 2)}
    model = make_model(f"g (float[B,3,8,8] x) => (float[B,4,H,W] y) {{ {body} }}", constants)
    compiled = quantize(model, "w8a8-static", calibration=[{"x": _feed(0)["x"]}])
    (left,) = compiled.report.skipped
    assert left.op == "ConvTranspose" and "no integer kernel for one" in left.reason
