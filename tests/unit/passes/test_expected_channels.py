"""Expected means behind BatchNormalizations: as drawn numbers have them, and what is not known says why."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from qcompiler.graph.norm_statistics import norm_statistics
from qcompiler.passes.expected_channels import ExpectedChannels, Moments
from qcompiler.passes.fold_batch_norm import FoldBatchNorm
from qcompiler.passes.fold_factors import FoldFactors
from tests.small_models import Array, make_model, run, weight

C, SIDE = 4, 6
SIGNATURE = f"g (float[B,{C},{SIDE},{SIDE}] x, float[B,{C},{SIDE},{SIDE}] z)"
NORM = "n = BatchNormalization(x, gamma, beta, mean, var)"
# Five standard errors of means of 10,000 x 36 normal numbers with deviations of up to 2.
FEW = 0.017


def _constants() -> dict[str, Array]:
    rng = np.random.default_rng(0)
    return {
        "gamma": np.array([0.5, -1.5, 2, 1], np.float32), "beta": np.array([-1, 0.3, 1, 4], np.float32),
        "mean": np.array([1, 0, -2, 0.5], np.float32), "var": np.array([4, 1, 0.25, 9], np.float32),
        "each": rng.standard_normal((1, C, 1, 1)).astype(np.float32), "two": np.array(2, np.float32),
        "three": np.array(3, np.float32), "zero": np.array(0, np.float32), "axes": np.array([2, 3], np.int64),
        "rows": np.array([2], np.int64), "k": weight(C, C, 1, 1),
    }  # fmt: skip


def _drawn(count: int = 10_000) -> Array:
    """What the BatchNormalization takes: normal numbers with the mean and variance that it says."""
    parts = _constants()
    unit = np.random.default_rng(1).standard_normal((count, C, SIDE, SIDE))
    made: Array = unit * np.sqrt(parts["var"]).reshape(C, 1, 1) + parts["mean"].reshape(C, 1, 1)
    return made.astype(np.float32)


def _found(body: str, result: str) -> Moments | str:
    written = make_model(f"{SIGNATURE} => ({result}) {{ {body} }}", _constants())
    model = ir.from_proto(onnx.shape_inference.infer_shapes(written))
    return ExpectedChannels().of(model.graph.outputs[0])


@pytest.mark.parametrize(
    "body",
    [
        NORM.replace("n =", "y ="),
        f"{NORM} y = Relu(n)",
        f"{NORM} y = Clip(n, zero, three)",
        f"{NORM} r = Relu(n) a = Mul(each, r) y = Add(a, two)",
        f"{NORM} m = BatchNormalization(z, gamma, beta, mean, var) r = Relu(m) s = Add(n, r) y = Relu(s)",
        f"{NORM} r = Relu(n) y = AveragePool<kernel_shape=[2,2]>(r)",
        f"{NORM} r = Relu(n) y = Concat<axis=1>(n, r)",
    ],
    ids=["norm", "Relu", "Clip", "constants", "a sum, clipped", "a mean", "Concat"],
)
def test_means_are_those_of_drawn_numbers(body: str) -> None:
    found = _found(body, "float[B,N,H,W] y")
    assert isinstance(found, Moments)
    model = make_model(f"{SIGNATURE} => (float[B,N,H,W] y) {{ {body} }}", _constants())
    x = _drawn()
    y = run(model, {"x": x, "z": x[::-1].copy()})["y"]
    # a sum of a normal and a clipped one is not normal: what is taken for it is off by a few hundredths
    allowed = 0.05 if "m = Batch" in body else FEW
    np.testing.assert_allclose(found.mean, y.mean((0, 2, 3), dtype=np.float64), atol=allowed)


def test_flattened_channels_repeat() -> None:
    found = _found(f"{NORM} r = Relu(n) y = Flatten(r)", f"float[B,{C * SIDE * SIDE}] y")
    before = _found(f"{NORM} y = Relu(n)", "float[B,N,H,W] y")
    assert isinstance(found, Moments) and isinstance(before, Moments)
    assert found.mean.tolist() == before.mean.repeat(SIDE * SIDE).tolist()


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("y = Relu(x)", "x is no result of a BatchNormalization"),
        (
            f"{NORM} y = Sigmoid(n)",
            "what y (Sigmoid) makes has no known mean: no BatchNormalization stands behind it",
        ),
        (
            f"{NORM} c = Conv(n, k) y = Relu(c)",
            "what c (Conv) makes has no known mean: no BatchNormalization stands behind it",
        ),
        (f"{NORM} y = Mul(n, z)", "the mean of what y (Mul) makes is not known"),
        (
            f"{NORM} y = MaxPool<kernel_shape=[2,2]>(n)",
            "what y (MaxPool) makes has no known mean: no BatchNormalization stands behind it",
        ),
        (f"{NORM} m = GlobalAveragePool(n) y = Relu(m)", "the mean of what y (Relu) makes is not known"),
        (
            f"{NORM} y = AveragePool<kernel_shape=[2,2], pads=[1,1,1,1], count_include_pad=1>(n)",
            "the mean of what y (AveragePool) makes is not known",
        ),
        (f"{NORM} y = Concat<axis=2>(n, n)", "the mean of what y (Concat) makes is not known"),
    ],
)
def test_what_is_not_known_says_why(body: str, reason: str) -> None:
    assert _found(body, "float[B,N,H,W] y") == reason


def test_statistics_stay_when_norms_and_factors_are_folded() -> None:
    body = "c = Conv(x, k) n = BatchNormalization(c, gamma, beta, mean, var) m = Mul(n, each) y = Add(m, two)"
    model = ir.from_proto(make_model(f"{SIGNATURE} => (float[B,N,H,W] y) {{ {body} }}", _constants()))
    FoldBatchNorm()(model)
    FoldFactors()(model)
    assert [node.op_type for node in model.graph] == ["Conv"]
    found, parts = norm_statistics(model.graph.outputs[0]), _constants()
    assert found is not None
    each = parts["each"].reshape(-1).astype(np.float64)
    np.testing.assert_allclose(found.mean, parts["beta"] * each + 2, rtol=1e-12)
    np.testing.assert_allclose(found.deviation, np.abs(parts["gamma"] * each), rtol=1e-12)
