"""Executor: every segment of real models against ONNX Runtime, gradients, replaced weights, refusals."""

from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from models import digits_cnn, minilm, tiny_lm
from models.built_model import BuiltModel
from qcompiler.calibration.collector import Collector
from qcompiler.calibration.executor import Executor
from qcompiler.calibration.feeds import input_specs
from qcompiler.calibration.fill import complete_feed
from qcompiler.calibration.sampling import random_feeds
from qcompiler.errors import CalibrationError
from qcompiler.graph import model_file
from qcompiler.graph.census import take_census
from qcompiler.graph.extract import Piece
from qcompiler.passes.normalize import Normalize
from qcompiler.passes.raise_opset import RaiseOpset
from tests.small_models import Array, make_model, weight

torch = pytest.importorskip("torch")


def _feed(model: ir.Model) -> dict[str, Array]:
    """One sample: a sequence of 24 tokens, or random numbers."""
    specs = input_specs(model)
    if any(spec.name == "input_ids" for spec in specs):
        ids = np.random.default_rng(0).integers(0, 100, (1, 24))
        return dict(complete_feed({"input_ids": ids}, specs))
    return dict(next(random_feeds(specs, 1, seed=0)))


@pytest.mark.parametrize(
    "build", [tiny_lm.build, digits_cnn.build, minilm.build], ids=["tiny_lm", "digits_cnn", "minilm"]
)
def test_every_segment_computes_what_onnx_runtime_does(
    build: Callable[[], BuiltModel], tmp_path: Path
) -> None:
    model = model_file.load(build().path)
    Normalize()(model)
    RaiseOpset(21)(model)
    anchors = [use.top_level for found in take_census(model).weights for use in found.uses]
    collector = Collector(model, anchors, [_feed(model)], tmp_path, 1 << 30)
    for segment in collector.segments:
        sample = dict(collector.sample(0))
        nodes = collector.nodes_of(segment)
        expected = Piece(model, nodes, segment.inputs, segment.outputs).run(sample)
        made = Executor(model, nodes, segment.inputs, segment.outputs)(sample)
        for value in segment.outputs:
            size = np.abs(expected[value]).max() if expected[value].size else 0
            # float32 sums of up to 1,536 terms in another order: about sqrt(1536) epsilons of the largest number
            np.testing.assert_allclose(
                made[value].numpy(),
                expected[value],
                rtol=1e-4,
                atol=1e-5 * max(size, 1),
                err_msg=str(value.name),
            )
        collector.advance(segment)


BLOCK = """g (float[M,6] x) => (float[M,6] y) {
    two = Constant<value_float = 2.0>()
    axes = Constant<value_ints = [-1]>()
    square = Pow(x, two)  mean = ReduceMean(square, axes)  root = Sqrt(mean)  inverse = Reciprocal(root)  n = Mul(x, inverse)
    a = MatMul(n, u)  gate = Sigmoid(a)  b = Mul(a, gate)  p = Softmax(b)
    t = Transpose<perm = [1, 0]>(p)  s = MatMul(p, t)  c = MatMul(s, b)  e = MatMul(c, v)  y = Add(e, x)
}"""


def _block() -> tuple[ir.Model, ir.Value, ir.Value]:
    model = ir.from_proto(make_model(BLOCK, {"u": weight(6, 8), "v": weight(8, 6, seed=1)}))
    return model, model.graph.initializers["u"], model.graph.initializers["v"]


def test_gradients_of_inputs_and_weights_are_those_of_finite_differences() -> None:
    model, u, v = _block()
    x = model.graph.inputs[0]
    run = Executor(model, list(model.graph), [x], model.graph.outputs, replaced=[u, v])

    def function(*tensors: "torch.Tensor") -> "torch.Tensor":
        return run({x: tensors[0]}, {u: tensors[1], v: tensors[2]})[model.graph.outputs[0]]

    torch.manual_seed(0)
    tensors = [
        torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((3, 6), (6, 8), (8, 6))
    ]
    assert torch.autograd.gradcheck(function, tensors)


def test_a_replaced_weight_is_used_and_its_own_is_not_read() -> None:
    model, u, v = _block()
    x = model.graph.inputs[0]
    u.const_value = None  # reading it would fail
    run = Executor(model, list(model.graph), [x], model.graph.outputs, replaced=[u, v])
    rows = weight(3, 6, seed=2)
    made = run({x: rows}, {u: torch.zeros(6, 8), v: torch.from_numpy(weight(8, 6, seed=1))})
    np.testing.assert_array_equal(made[model.graph.outputs[0]].numpy(), rows)  # all but the skip is 0


def test_constants_are_computed_once() -> None:
    proto = make_model(
        "g (float[M,4] x) => (float[M,4] y) { t = Transpose<perm = [1, 0]>(w) s = Mul(t, t) y = MatMul(x, s) }",
        {"w": weight(4, 4)},
    )
    model = ir.from_proto(proto)
    run = Executor(model, list(model.graph), model.graph.inputs, model.graph.outputs)
    rows = weight(2, 4, seed=1)
    expected = rows @ np.square(weight(4, 4).T)
    for _ in range(2):
        made = run({model.graph.inputs[0]: rows})[model.graph.outputs[0]]
        np.testing.assert_allclose(made.numpy(), expected, rtol=1e-5, atol=1e-6)  # 4 float32 terms
        model.graph.initializers["w"].const_value = None


def test_sixteen_bit_floats_are_computed_in_float32() -> None:
    proto = make_model(
        "g (float16[M,4] x) => (float16[M,4] y) { y = MatMul(x, w) }", {"w": weight(4, 4, dtype=np.float16)}
    )
    model = ir.from_proto(proto)
    run = Executor(model, list(model.graph), model.graph.inputs, model.graph.outputs)
    made = run({model.graph.inputs[0]: weight(2, 4, dtype=np.float16)})[model.graph.outputs[0]]
    assert made.dtype == torch.float32


def test_a_missing_operator_is_refused_by_name() -> None:
    proto = make_model("g (float[M,4] x) => (float[M,4] y) { y = Hardmax(x) }")
    proto.graph.node[0].name = "choose"
    model = ir.from_proto(proto)
    with pytest.raises(
        CalibrationError, match=r"choose \(Hardmax\): the operator Hardmax.*without autoround"
    ):
        Executor(model, list(model.graph), model.graph.inputs, model.graph.outputs)


def test_a_form_that_is_not_written_is_refused_with_its_node() -> None:
    proto = make_model(
        "g (float[1,1,4,4] x) => (float[1,1,3,3] y) { y, i = MaxPool<kernel_shape = [2, 2]>(x) }"
    )
    model = ir.from_proto(proto)
    run = Executor(model, list(model.graph), model.graph.inputs, model.graph.outputs)
    with pytest.raises(CalibrationError, match="MaxPool.*Indices"):
        run({model.graph.inputs[0]: weight(1, 1, 4, 4)})


def test_numbers_that_torch_has_not_are_refused_with_their_name() -> None:
    text = "g (float[2,4] x) => (float[2,4] y) { f = Cast<to=1>(few) y = Mul(x, f) }"
    model = ir.from_proto(make_model(text, {"few": np.array([1, 2, 3, 4], ml_dtypes.uint4)}))
    executor = Executor(model, list(model.graph), model.graph.inputs, model.graph.outputs)
    with pytest.raises(
        CalibrationError, match="few: torch computes nothing with numbers stored as uint4; give"
    ):
        executor({model.graph.inputs[0]: np.ones((2, 4), np.float32)})


def test_the_mask_of_a_dropout_is_given_to_its_readers() -> None:
    text = "g (float[2,4] x) => (float[2,4] y) { a, kept = Dropout(x) m = Cast<to=1>(kept) y = Mul(a, m) }"
    model = ir.from_proto(make_model(text, {}))
    x = np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)
    executor = Executor(model, list(model.graph), model.graph.inputs, model.graph.outputs)
    np.testing.assert_array_equal(executor({model.graph.inputs[0]: x})[model.graph.outputs[0]].numpy(), x)


def test_an_output_that_is_not_computed_is_refused_where_it_is_read() -> None:
    text = (
        "g (float[2,4] x, float[4] s) => (float[2,4] y)"
        " { a, mean, inverse = com.microsoft.SkipLayerNormalization(x, x, s) y = Mul(a, inverse) }"
    )
    model = ir.from_proto(make_model(text, domains={"com.microsoft": 1}))
    executor = Executor(model, list(model.graph), model.graph.inputs, model.graph.outputs)
    feeds = dict(zip(model.graph.inputs, (np.ones((2, 4), np.float32), np.ones(4, np.float32)), strict=True))
    with pytest.raises(
        CalibrationError, match=r"SkipLayerNormalization\): output 2 cannot be differentiated"
    ):
        executor(feeds)


def test_control_flow_is_refused() -> None:
    proto = make_model(
        """g (bool c, float[4] x) => (float[4] y) {
            y = If (c) <then_branch = t () => (float[4] a) { a = Neg(x) }, else_branch = e () => (float[4] b) { b = Abs(x) }>
        }"""
    )
    model = ir.from_proto(proto)
    with pytest.raises(CalibrationError, match="control flow"):
        Executor(model, list(model.graph), model.graph.inputs, model.graph.outputs)
