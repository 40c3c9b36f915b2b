"""Convolutions and linears with static ranges, from a recipe to ONNX Runtime's integer kernels."""

import numpy as np
import onnx
import onnxruntime
import pytest

from qcompiler.errors import CalibrationError, SchemeError
from tests.compiled_models import Compile, count_of
from tests.small_models import Array, make_model, relative_error, run, weight

# Steps of 1/255 of a tensor's range: 1 % of a normal tensor's spread each, for three layers.
STATIC = 0.05
IMAGES = "float[B,3,8,8] x"
BODY = (
    "c = Conv<pads=[1,1,1,1]>(x, k1, b1) r = Relu(c) d = Conv<pads=[1,1,1,1], group=8>(r, k2) "
    "n = BatchNormalization(d, gamma, beta, mean, var) s = Add(n, r) p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(s) "
    "f = Flatten(p) h = MatMul(f, w) o = Add(h, b2) y = Relu(o)"
)


def _model() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    constants = {
        "k1": weight(8, 3, 3, 3, scale=0.3), "b1": weight(8, seed=1), "k2": weight(8, 1, 3, 3, seed=2, scale=0.4),
        "gamma": rng.uniform(0.5, 2, 8).astype(np.float32), "beta": weight(8, seed=3), "mean": weight(8, seed=4),
        "var": rng.uniform(0.5, 2, 8).astype(np.float32), "w": weight(128, 10, seed=5), "b2": weight(10, seed=6),
    }  # fmt: skip
    return make_model(f"g ({IMAGES}) => (float[B,10] y) {{ {BODY} }}", constants)


def _images(count: int, seed: int) -> Array:
    return np.random.default_rng(seed).standard_normal((count, 3, 8, 8)).astype(np.float32)


def test_everything_between_runs_in_integers(quantize: Compile) -> None:
    model, x = _model(), _images(16, 9)
    compiled = quantize(model, "w8a8-static", calibration=[{"x": _images(8, seed)} for seed in range(4)])
    assert compiled.report.running == {"QLinearConv": 2, "MatMulIntegerToFloat": 1}
    assert count_of(compiled, "BatchNormalization") == 0 and count_of(compiled, "MatMulIntegerToFloat") == 1
    assert relative_error(run(model, {"x": x})["y"], run(compiled.path, {"x": x})["y"]) < STATIC


def test_a_channel_of_nearly_nothing_has_room_for_its_bias(quantize: Compile) -> None:
    model, x = _model(), _images(16, 9)
    kernel = next(tensor for tensor in model.graph.initializer if tensor.name == "k1")
    values = onnx.numpy_helper.to_array(kernel).copy()
    values[2], values[5] = 1e-12, 0
    kernel.CopyFrom(onnx.numpy_helper.from_array(values, "k1"))
    compiled = quantize(model, "w8a8-static", calibration=[{"x": _images(8, 0)}])
    assert compiled.report.running["QLinearConv"] == 2
    assert relative_error(run(model, {"x": x})["y"], run(compiled.path, {"x": x})["y"]) < STATIC


def test_biases_are_corrected_for_what_even_areas_lose(quantize: Compile) -> None:
    model = _model()
    even = np.full((4, 3, 8, 8), 0.37, np.float32) + 0.01 * _images(4, 1)
    errors = [
        relative_error(
            run(model, {"x": even})["y"],
            run(
                quantize(
                    model,
                    "w8a8-static",
                    calibration=[{"x": even}, {"x": _images(2, 2)}],
                    settings=["algorithm=rtn", f"calib.correct_biases={corrected}"],
                ).path,
                {"x": even},
            )["y"],
        )
        for corrected in ("measured", "none")
    ]
    assert errors[0] < errors[1]


def test_the_bias_of_a_convolution_that_makes_an_output_is_corrected(quantize: Compile) -> None:
    constants = {"k1": weight(8, 3, 3, 3, scale=0.3), "b1": weight(8, seed=1)}
    body = "y = Conv<pads=[1,1,1,1]>(x, k1, b1)"
    model = make_model(f"g ({IMAGES}) => (float[B,8,8,8] y) {{ {body} }}", constants)
    even = np.full((4, 3, 8, 8), 0.37, np.float32) + 0.01 * _images(4, 1)
    feeds = [{"x": even}, {"x": _images(2, 2)}]

    def biases(settings: list[str]) -> Array:
        compiled = quantize(model, "w8a8-static", calibration=feeds, settings=settings)
        tensors = onnx.load(compiled.path).graph.initializer
        (codes,) = [t for t in tensors if t.data_type == onnx.TensorProto.INT32]
        return onnx.numpy_helper.to_array(codes)

    assert (biases([]) != biases(["calib.correct_biases=none"])).any()


@pytest.mark.parametrize(
    "between",
    [
        "r = Relu(c) d = Conv<pads=[1,1,1,1]>(x, k2) m = Concat<axis=1>(r, d)",
        "zero = Constant<value_float=0.0>() one = Constant<value_float=1.0>() r = Clip(c, zero, one) "
        "d = Conv<pads=[1,1,1,1]>(x, k2) e = Relu(d) m = Concat<axis=1>(r, e)",
        "p = MaxPool<kernel_shape=[1,1]>(c) q = Relu(p) m = Concat<axis=1>(q, q)",
    ],
)
def test_a_relu_is_not_lost_to_a_scale_that_reaches_further(quantize: Compile, between: str) -> None:
    constants = {
        "k1": weight(8, 3, 3, 3, scale=0.3),
        "k2": weight(8, 3, 3, 3, seed=1, scale=0.6),
        "k3": weight(4, 16, 1, 1, seed=2, scale=0.3),
    }
    body = f"c = Conv<pads=[1,1,1,1]>(x, k1) {between} y = Conv(m, k3)"
    model, x = make_model(f"g ({IMAGES}) => (float[B,4,8,8] y) {{ {body} }}", constants), _images(16, 9)
    compiled = quantize(model, "w8a8-static", calibration=[{"x": _images(8, seed)} for seed in range(4)])
    assert relative_error(run(model, {"x": x})["y"], run(compiled.path, {"x": x})["y"]) < STATIC


def test_a_rule_keeps_a_convolution_float(quantize: Compile) -> None:
    settings = ["rules=[{match: {op: Conv, name: k2.*}, quantize: false}]"]
    compiled = quantize(_model(), "w8a8-static", calibration=[{"x": _images(8, 0)}], settings=settings)
    assert compiled.report.running["QLinearConv"] == 1


MLP = "h = MatMul(x, w1) r = Relu(h) y = MatMul(r, w2)"


@pytest.mark.parametrize(
    ("settings", "why"),
    [(["group_size=32"], "g32"), (["bits=4"], "no integer kernel")],
)
def test_a_matrix_that_no_integer_kernel_reads_keeps_float_activations(
    quantize: Compile, settings: list[str], why: str
) -> None:
    constants = {"w1": weight(64, 96), "w2": weight(96, 32, seed=1)}
    model = make_model(f"g (float[B,64] x) => (float[B,32] y) {{ {MLP} }}", constants)
    x = np.random.default_rng(9).standard_normal((32, 64)).astype(np.float32)
    compiled = quantize(model, "w8a8-static", calibration=[{"x": x}], settings=settings)
    assert compiled.report.running == {
        "MatMulNBits": 1,
        "MatMulIntegerToFloat": 1,
    }  # the head has a scale for each output
    (notes,) = [layer.notes for layer in compiled.report.layers if layer.name.startswith("w1")]
    assert any("activations stay float" in note and why in note for note in notes)
    error = 0.2 if "bits=4" in settings else STATIC  # of 4 bits: max|w| / 8, a tenth of the spread
    assert relative_error(run(model, {"x": x})["y"], run(compiled.path, {"x": x})["y"]) < error


@pytest.mark.parametrize(("recipe", "settings"), [("w8a8-static", []), ("w8a8-smoothquant", ["level=o2"])])
def test_float16_has_no_integer_kernels(quantize: Compile, recipe: str, settings: list[str]) -> None:
    constants = {"w1": weight(64, 96, dtype=np.float16), "w2": weight(96, 32, seed=1, dtype=np.float16)}
    model = make_model(f"g (float16[B,64] x) => (float16[B,32] y) {{ {MLP} }}", constants)
    x = np.random.default_rng(9).standard_normal((32, 64)).astype(np.float16)
    compiled = quantize(model, recipe, calibration=[{"x": x}], settings=settings)
    assert any("they are FLOAT16" in note for layer in compiled.report.layers for note in layer.notes)
    assert relative_error(run(model, {"x": x})["y"], run(compiled.path, {"x": x})["y"]) < STATIC


def test_groups_are_no_form_of_a_kernel(quantize: Compile) -> None:
    with pytest.raises(SchemeError, match="a convolution takes 8 bits, symmetric"):
        quantize(_model(), "w8a8-static", calibration=[{"x": _images(8, 0)}], settings=["group_size=32"])


def test_data_with_nan_are_refused(quantize: Compile) -> None:
    with pytest.raises(CalibrationError, match="NaN"):
        quantize(_model(), "w8a8-static", calibration=[{"x": np.full((1, 3, 8, 8), np.nan, np.float32)}])


def test_the_session_reads_integers_throughout(quantize: Compile, tmp_path: object) -> None:
    compiled = quantize(_model(), "w8a8-static", calibration=[{"x": _images(8, 0)}])
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = f"{tmp_path}/optimized.onnx"
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(compiled.path), options, providers=["CPUExecutionProvider"])
    nodes = onnx.load(f"{tmp_path}/optimized.onnx", load_external_data=False).graph.node
    assert not {"Conv", "FusedConv", "Add", "MatMul"} & {node.op_type for node in nodes}


def test_convolutions_that_share_a_kernel_share_its_room(quantize: Compile) -> None:
    kernel = weight(4, 3, 1, 1)
    kernel[1] = 1e-12
    biases = {"b1": np.zeros(4, np.float32), "b2": np.full(4, 3, np.float32)}
    body = "c = Conv(x, k, b1) d = Conv(x, k, b2) y = Concat<axis=1>(c, d)"
    model = make_model(f"g ({IMAGES}) => (float[B,8,8,8] y) {{ {body} }}", {"k": kernel, **biases})
    x = _images(4, 9)
    compiled = quantize(model, "w8a8-static", calibration=[{"x": _images(8, 0)}])
    assert relative_error(run(model, {"x": x})["y"], run(compiled.path, {"x": x})["y"]) < STATIC


def test_ranges_without_data_are_told(quantize: Compile) -> None:
    told = quantize(_model(), "w8a8-static").report.warnings
    assert any("invented inputs" in line and "--calib" in line for line in told)
    given = quantize(_model(), "w8a8-static", calibration=[{"x": _images(8, 0)}]).report.warnings
    assert not any("invented" in line for line in given)


def test_a_convolution_that_a_rule_leaves_float_is_float_in_what_runs(quantize: Compile) -> None:
    spread = np.exp(np.linspace(-3, 3, 8)).astype(np.float32).reshape(-1, 1, 1, 1)
    body = "c = Conv<pads=[1,1,1,1]>(x, k1, b1) r = Relu(c) d = Conv(r, k2, b2) s = Relu(d) y = Conv(s, k3)"
    constants = {
        "k1": weight(8, 3, 3, 3, scale=0.3), "b1": weight(8, seed=1), "k2": weight(8, 8, 3, 3, seed=2) * spread,
        "b2": weight(8, seed=3), "k3": weight(4, 8, 3, 3, seed=4),
    }  # fmt: skip
    model, feed = (
        make_model(f"g ({IMAGES}) => (float[B,4,4,4] y) {{ {body} }}", constants),
        {"x": _images(16, 9)},
    )
    rules = "rules=[{match: {name: k2}, quantize: false}]"
    compiled = quantize(model, "w8a8-static", calibration=[{"x": _images(8, 0)}], settings=[rules])
    assert compiled.report.running == {"QLinearConv": 2}
    whole, plain = run(compiled.path, feed)["y"], run(compiled.path, feed, optimize=False)["y"]
    # One step of the last rounding apart at most; with its weights in 8 bits and one scale 30 times as much.
    assert relative_error(plain, whole) < 0.002
