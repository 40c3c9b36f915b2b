"""Calibration data that leave ranges without meaning: each is told, or refused with the tensor's name."""

import warnings

import numpy as np
import onnx
import pytest

from qcompiler.api import CompiledModel
from qcompiler.errors import CalibrationError
from tests.compiled_models import Compile
from tests.small_models import Array, make_model, relative_error, run, weight

# Of two layers in 8 bits, 1/255 of a tensor's range each.
STATIC = 0.05
BODY = "c = Conv<pads=[1,1,1,1]>(x, k1, b1) r = Relu(c) y = Conv(r, k2)"
X = np.random.default_rng(0).standard_normal((4, 3, 8, 8)).astype(np.float32)


def _model(body: str = BODY, inputs: str = "float[B,3,8,8] x", **changes: Array) -> onnx.ModelProto:
    constants = {
        "k1": weight(8, 3, 3, 3, scale=0.3), "b1": weight(8, seed=1), "k2": weight(8, 8, 3, 3, seed=2, scale=0.1),
    } | changes  # fmt: skip
    return make_model(
        f"g ({inputs}) => (float[N,8,H,W] y) {{ {body} }}", {n: c for n, c in constants.items() if n in body}
    )


def _still(compiled: CompiledModel) -> list[str]:
    return [line for line in compiled.report.warnings if "calibration saw nothing but" in line]


@pytest.mark.parametrize("number", [0.0, 1.0, -3.5])
def test_one_number_alone_is_told(quantize: Compile, number: float) -> None:
    constant = np.full_like(X, number)
    compiled = quantize(_model(), "w8a8-static", calibration=[{"x": constant}])
    (said,) = _still(compiled)
    assert said.startswith(f"x: calibration saw nothing but {number:g} there") and "(tensors:)" in said
    assert (
        relative_error(run(_model(), {"x": constant})["y"], run(compiled.path, {"x": constant})["y"]) < STATIC
    )


@pytest.mark.parametrize("method", ["average", "percentile", "entropy", "mse"])
@pytest.mark.parametrize("number", [0.0, 1.0])
def test_every_way_to_find_ranges_takes_a_constant(quantize: Compile, method: str, number: float) -> None:
    constant = np.full_like(X, number)
    compiled = quantize(
        _model(), "w8a8-static", calibration=[{"x": constant}], settings=[f"calib.ranges={method}"]
    )
    assert (
        relative_error(run(_model(), {"x": constant})["y"], run(compiled.path, {"x": constant})["y"])
        < 2 * STATIC
    )


def test_a_relu_that_never_opens_is_named(quantize: Compile) -> None:
    dead = np.full(8, -100, np.float32)
    compiled = quantize(_model(b1=dead), "w8a8-static", calibration=[{"x": X}])
    (said,) = _still(compiled)
    assert said.startswith("r: calibration saw nothing but 0 there (and 1 more: y)")
    assert not run(compiled.path, {"x": X})["y"].any()


def test_a_range_that_is_given_needs_no_such_line(quantize: Compile) -> None:
    settings = ["tensors={x: {range: [-3, 3]}}"]
    compiled = quantize(_model(), "w8a8-static", calibration=[{"x": np.zeros_like(X)}], settings=settings)
    assert _still(compiled) == []


@pytest.mark.parametrize("scale", [1e-30, 1e-42, 1e37])
def test_ranges_at_the_ends_of_float32(quantize: Compile, scale: float) -> None:
    x = (X * np.float64(scale)).astype(np.float32)
    rounded = ["algorithm=rtn", "head.algorithm=rtn"]  # squares of such numbers are beyond float32
    compiled = quantize(_model(), "w8a8-static", calibration=[{"x": x}], settings=rounded)
    assert relative_error(run(_model(), {"x": x})["y"], run(compiled.path, {"x": x})["y"]) < STATIC


@pytest.mark.parametrize("made", ["e = Log(x)", "z = Sub(x, x) e = Div(x, z)"])
def test_nan_and_infinity_inside_are_refused(quantize: Compile, made: str) -> None:
    with pytest.raises(
        CalibrationError, match="^e: NaN or infinity in the activations; check the calibration data"
    ):
        quantize(_model(f"{made} c = Conv(e, k1) y = Conv(c, k2)"), "w8a8-static", calibration=[{"x": X}])


GATHERED = "c = Conv(x, k1) g = Gather(c, i) y = Conv(g, k2)"
INPUTS = "float[B,3,8,8] x, int64[I] i"


def test_what_no_feed_reaches_is_named(quantize: Compile) -> None:
    feed = {"x": X, "i": np.zeros(0, np.int64)}
    with pytest.raises(
        CalibrationError, match=r"^g: calibration data never reached it, .*\(and y\); give data that does"
    ):
        quantize(_model(GATHERED, INPUTS), "w8a8-static", calibration=[feed])


def test_a_feed_that_reaches_nothing_counts_for_nothing(quantize: Compile) -> None:
    feeds = [{"x": X, "i": np.array([1, 2])}, {"x": X, "i": np.zeros(0, np.int64)}]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with_empty = quantize(_model(GATHERED, INPUTS), "w8a8-static", calibration=feeds)
    without = quantize(_model(GATHERED, INPUTS), "w8a8-static", calibration=feeds[:1])
    assert with_empty.path.read_bytes() == without.path.read_bytes()
    after = run(with_empty.path, feeds[0])["y"]
    assert relative_error(run(_model(GATHERED, INPUTS), feeds[0])["y"], after) < STATIC
