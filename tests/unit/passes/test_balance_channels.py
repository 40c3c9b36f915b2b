"""BalanceChannels: the same function with channels that are alike, and what stays."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from qcompiler.calibration.channel_sizes import observe_channel_sizes
from qcompiler.passes.balance_channels import BalanceChannels
from tests.small_models import Array, apply_pass, assert_equal_outputs, make_model, run, weight

# float32 sums of 27 products, with factors that are no powers of 2.
ROUNDING = 1e-5
SIGNATURE = "g (float[B,3,8,8] x) => (float[B,N,H,W] y)"
FIRST = "c = Conv<pads=[1,1,1,1]>(x, k, b)"
DEPTHWISE = "y = Conv<group=4>({}, d)"


def _x() -> Array:
    return np.random.default_rng(1).standard_normal((2, 3, 8, 8)).astype(np.float32)


def _constants() -> dict[str, Array]:
    wide = np.array([0.01, 1, 30, 3], np.float32).reshape(4, 1, 1, 1)
    return {
        "k": weight(4, 3, 3, 3, scale=0.3) * wide, "b": weight(4, seed=1), "d": weight(4, 1, 3, 3, seed=2),
        "e": weight(6, 4, 3, 3, seed=3), "half": np.array(0.5, np.float32),
        "each": weight(1, 4, 1, 1, seed=4) + 2, "axes": np.array([1], np.int64),
    }  # fmt: skip


class _Balance(ir.passes.InPlacePass):
    """The pass over all convolutions of a graph."""

    def __init__(self, *fixed: str) -> None:
        super().__init__()
        self._fixed = fixed
        self.reasons: list[str] = []

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        convolutions = [node for node in model.graph if node.op_type == "Conv"]
        done = BalanceChannels(
            lambda: convolutions,
            lambda model, values: observe_channel_sizes(model, values, [{"x": _x()}]),
            self._fixed.__contains__,
        )
        result = done.call(model)
        self.reasons = done.reasons
        return result


def _apply(body: str) -> tuple[onnx.ModelProto, ir.Model, bool]:
    model = make_model(f"{SIGNATURE} {{ {body} }}", _constants())
    return model, *apply_pass(_Balance(), model)


def _spread(model: onnx.ModelProto | ir.Model, value: str) -> float:
    """The widest channel over the median one."""
    graph = ir.from_proto(model) if isinstance(model, onnx.ModelProto) else model
    wanted = next(out for node in graph.graph for out in node.outputs if out.name == value)
    sizes = observe_channel_sizes(graph, [wanted], [{"x": _x()}])[value]
    return float(sizes.max() / np.median(sizes))


@pytest.mark.parametrize(
    "between, value",
    [
        ("", "c"),
        ("r = Relu(c)", "r"),
        ("r = Relu(c) m = MaxPool<kernel_shape=[2,2]>(r)", "m"),
        ("s = Sigmoid(c) m = Mul(s, each)", "m"),
        ("s = Mul(half, c) m = Add(s, each)", "m"),
    ],
    ids=["direct", "Relu", "pool", "Mul", "Add"],
)
def test_channels_become_alike_and_the_function_stays(between: str, value: str) -> None:
    before, after, modified = _apply(f"{FIRST} {between} {DEPTHWISE.format(value)}")
    assert modified
    assert_equal_outputs(run(before, {"x": _x()}, optimize=False), run(after, {"x": _x()}), ROUNDING)
    assert _spread(after, value) == pytest.approx(1, abs=1e-3)


def test_a_kernel_with_one_scale_for_its_inputs_takes_half() -> None:
    before, after, modified = _apply(f"{FIRST} r = Relu(c) y = Conv(r, e)")
    assert modified
    assert_equal_outputs(run(before, {"x": _x()}, optimize=False), run(after, {"x": _x()}), ROUNDING)
    assert 1.2 < _spread(after, "r") < _spread(before, "r") / 2


def test_outputs_that_a_mul_reads_become_alike() -> None:
    before, after, modified = _apply(f"{FIRST} m = Mul(c, half) y = Sigmoid(m)")
    assert modified and _spread(before, "c") > 2
    assert_equal_outputs(run(before, {"x": _x()}, optimize=False), run(after, {"x": _x()}), ROUNDING)
    assert _spread(after, "c") == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (f"{FIRST} r = Relu(c) z = {DEPTHWISE[4:].format('r')} t = ReduceMean(r, axes) y = Add(z, t)", "r is read 2 times"),
        (f"{FIRST} r = Sigmoid(c) {DEPTHWISE.format('r')}", "r (Sigmoid) hands no factors on"),
        (f"{FIRST} r = Mul(c, c) {DEPTHWISE.format('r')}", "r (Mul) has no constant of one number a channel"),
        (f"{FIRST} t = Mul(c, each) z = {DEPTHWISE[4:].format('c')} y = Add(z, t)", "c is read 2 times"),
        ("c = Conv<pads=[1,1,1,1]>(x, one) r = Add(c, each) y = Conv(r, e)", "c (Conv) makes one channel, which an Add spreads"),
        (f"{FIRST} r = Relu(c) p = Conv(r, e) q = Conv(c, e) y = Add(p, q)", "its kernel is computed, or others read it too"),
        (f"{FIRST} y = Conv<group=2>(c, two)", "its groups have several channels each"),
        ("c = Conv<pads=[1,1,1,1]>(x, nothing, b) y = Conv(c, e)", "the channels of c are alike, or all 0"),
    ],
    ids=["another reader", "not homogeneous", "no constant", "a Mul beside", "one channel", "a shared kernel", "groups", "alike"],
)  # fmt: skip
def test_others_stay_and_say_why(body: str, reason: str) -> None:
    more = {
        "one": weight(1, 3, 3, 3, seed=5), "two": weight(6, 2, 3, 3, seed=6), "nothing": np.zeros((4, 3, 3, 3), np.float32),
        "b": np.ones(4, np.float32),
    }  # fmt: skip
    model = make_model(f"{SIGNATURE} {{ {body} }}", {**_constants(), **more})
    done = _Balance()
    assert not apply_pass(done, model)[1]
    assert any(line.endswith(f"not balanced: {reason}") for line in done.reasons), done.reasons


@pytest.mark.parametrize("fixed", ["c", "r"])
def test_tensors_whose_range_is_said_stay(fixed: str) -> None:
    model = make_model(f"{SIGNATURE} {{ {FIRST} r = Relu(c) {DEPTHWISE.format('r')} }}", _constants())
    done = _Balance(fixed)
    assert not apply_pass(done, model)[1]
    assert done.reasons[-1] == f"y: not balanced: the recipe says what range {fixed} has"


def test_nothing_moves_through_a_mean() -> None:
    """It may shrink one channel far more than another, which has the same scale before it."""
    assert not _apply(f"{FIRST} m = AveragePool<kernel_shape=[2,2]>(c) {DEPTHWISE.format('m')}")[2]


def test_a_bias_that_the_caller_may_give_stays() -> None:
    signature = "g (float[B,3,8,8] x, float[4] b) => (float[B,N,H,W] y)"
    model = make_model(f"{signature} {{ {FIRST} {DEPTHWISE.format('c')} }}", _constants())
    assert not apply_pass(_Balance(), model)[1]
