"""Each operator of the executor against ONNX Runtime, on a table of forms: attributes, opsets, edge cases."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from qcompiler.calibration.executor import Executor
from tests.small_models import Array

pytest.importorskip("torch")

from qcompiler.calibration.torch_operators import OPERATORS

RTOL, ATOL = (
    2e-5,
    2e-5,
)  # sums of some ten float32 terms in another order, and two implementations of erf and exp

Case = tuple[str, dict[str, Any], list[Any], int, int]


def x(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def positive(*shape: int) -> Array:
    return np.abs(x(*shape)) + np.float32(0.1)


def whole(*values: int) -> Array:
    return np.array(values, np.int64)


def yes(*shape: int, seed: int = 0) -> Array:
    return x(*shape, seed=seed) > 0


def case(op: str, *inputs: Any, opset: int = 21, outputs: int = 1, **attributes: Any) -> Case:
    return op, attributes, list(inputs), opset, outputs


SCALAR = np.array(0.5, np.float32)
IMAGE, KERNEL = x(2, 4, 9, 8), x(6, 4, 3, 3, seed=1)

CASES: list[Case] = [
    *(
        case(op, x(3, 4))
        for op in (
            "Abs", "Atan", "Ceil", "Cos", "Erf", "Exp", "Floor", "HardSwish", "Neg", "Relu", "Round",
            "Sigmoid", "Sign", "Sin", "Softplus", "Softsign", "Tan", "Tanh", "Identity", "Elu", "Selu",
            "HardSigmoid", "LeakyRelu", "Gelu", "Softmax", "LogSoftmax", "IsNaN", "IsInf", "Dropout",
        )
    ),
    *(case(op, positive(3, 4)) for op in ("Log", "Sqrt", "Reciprocal")),
    *(case(op, np.clip(x(3, 4), -0.9, 0.9)) for op in ("Acos", "Asin")),
    case("Round", np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5], np.float32)),
    *(case(op, x(2, 3, 4), x(3, 1, seed=1)) for op in ("Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "Mean")),
    *(case(op, x(4), x(2, 4), x(1)) for op in ("Max", "Min", "Sum", "Mean")),
    *(case(op, whole(7, -7, 5), whole(2, 2, -3)) for op in ("Add", "Sub", "Mul", "Div", "Mod")),
    case("Mod", x(5), np.full(5, 0.7, np.float32), fmod=1),
    case("Pow", x(3, 4), np.array(2, np.float32)),
    case("Pow", positive(3, 4), np.array([0.5, 1.5, -1, 3], np.float32)),
    case("Pow", whole(1, 2, 3), np.array(3.0, np.float32)),
    case("Pow", positive(4), np.array([[2.0]], np.float32)),
    *(
        case(op, x(3, 4), x(4, seed=1))
        for op in ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
    ),
    case("Equal", whole(1, 2, 3), whole(1, 5, 3)),
    *(case(op, yes(3, 4), yes(4, seed=1)) for op in ("And", "Or", "Xor")),
    case("Not", yes(3)),
    case("Where", yes(3, 1), x(4), x(3, 4, seed=1)),
    case("Clip", x(3, 4), np.array(-0.3, np.float32), np.array(0.4, np.float32)),
    case("Clip", x(3, 4), None, np.array(0.4, np.float32)),
    case("Clip", x(3, 4), np.array(-0.3, np.float32)),
    case("Clip", x(3, 4), opset=10, min=-0.5, max=0.25),
    case("Gelu", x(3, 4), approximate="tanh"),
    case("Elu", x(5), alpha=0.3),
    case("Selu", x(5), alpha=1.1, gamma=1.3),
    case("HardSigmoid", x(5), alpha=0.3, beta=0.4),
    case("LeakyRelu", x(5), alpha=0.3),
    case("PRelu", x(2, 3, 4), x(3, 1, seed=1)),
    *(case("Cast", x(3, 4) * 3, to=to) for to in (TensorProto.INT64, TensorProto.BOOL, TensorProto.DOUBLE)),
    case("Cast", whole(0, 3, -2), to=TensorProto.FLOAT),
    case("Cast", yes(4), to=TensorProto.FLOAT),
    case("CastLike", x(3) * 3, whole(1)),
    # products
    case("MatMul", x(3, 4), x(4, 5, seed=1)),
    case("MatMul", x(2, 1, 3, 4), x(5, 4, 2, seed=1)),
    case("MatMul", x(4), x(4, 5, seed=1)),
    case("MatMul", x(2, 3, 4), x(4, seed=1)),
    case("Gemm", x(3, 4), x(4, 5, seed=1)),
    case("Gemm", x(4, 3), x(5, 4, seed=1), x(5, seed=2), transA=1, transB=1, alpha=0.5, beta=2.0),
    case("Gemm", x(3, 4), x(4, 5, seed=1), x(3, 1, seed=2)),
    case("Einsum", x(2, 3, 4), x(2, 4, 5, seed=1), equation="b i j , b j k -> b i k"),
    case("com.microsoft::FusedMatMul", x(2, 3, 4), x(2, 5, 4, seed=1), transB=1, alpha=0.25),
    case("Conv", IMAGE, KERNEL),
    case("Conv", IMAGE, KERNEL, x(6), pads=[1, 1, 1, 1], strides=[2, 1], kernel_shape=[3, 3]),
    case("Conv", IMAGE, KERNEL, pads=[0, 1, 2, 1], dilations=[2, 1]),
    case("Conv", IMAGE, KERNEL, auto_pad="SAME_UPPER", strides=[2, 2]),
    case("Conv", IMAGE, KERNEL, auto_pad="SAME_LOWER", strides=[2, 2]),
    case("Conv", IMAGE, KERNEL, auto_pad="VALID"),
    case("Conv", IMAGE, x(4, 1, 3, 3, seed=1), group=4),
    case("Conv", x(2, 4, 9), x(6, 4, 3, seed=1), pads=[1, 1]),
    case("Conv", x(1, 2, 5, 5, 5), x(3, 2, 3, 3, 3, seed=1)),
    *(
        case(op, IMAGE, kernel_shape=[3, 2], **more)
        for op in ("MaxPool", "AveragePool")
        for more in (
            {},
            {"strides": [2, 2], "pads": [1, 1, 1, 1]},
            {"strides": [2, 2], "pads": [0, 1, 1, 0]},
            {"strides": [2, 3], "ceil_mode": 1},
            {"strides": [2, 3], "ceil_mode": 1, "pads": [1, 1, 1, 1]},
            {"strides": [2, 2], "auto_pad": "SAME_UPPER"},
        )
    ),
    case("AveragePool", IMAGE, kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2], count_include_pad=1),
    case("AveragePool", IMAGE, kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[3, 3], ceil_mode=1, count_include_pad=1),
    case("MaxPool", IMAGE, kernel_shape=[2, 2], dilations=[2, 3]),
    case("MaxPool", x(2, 3, 9), kernel_shape=[4], strides=[3]),
    case("GlobalAveragePool", IMAGE),
    case("GlobalMaxPool", IMAGE),
    case("DequantizeLinear", np.arange(12, dtype=np.uint8).reshape(3, 4), SCALAR, np.array(5, np.uint8)),
    case("DequantizeLinear", np.arange(12, dtype=np.int8).reshape(3, 4), positive(4)),
    case("DequantizeLinear", np.arange(12, dtype=np.int8).reshape(3, 4), positive(3), np.arange(3, dtype=np.int8), axis=0),
    case("DequantizeLinear", np.arange(12, dtype=np.int8).reshape(3, 4), positive(3, 2), axis=-1, block_size=2),
    case("DequantizeLinear", np.arange(12, dtype=np.uint8).reshape(4, 3), positive(2, 3), np.ones((2, 3), np.uint8), axis=0, block_size=2),
    # reductions and normalizations
    *(
        case(op, positive(2, 3, 4), axes, opset=18, keepdims=keep)
        for op in (
            "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin",
            "ReduceProd", "ReduceSum", "ReduceSumSquare",
        )
        for keep in (0, 1)
        for axes in (whole(-1), whole(0, 2))
    ),
    case("ReduceMean", x(2, 3)),
    case("ReduceMean", x(2, 3), None, noop_with_empty_axes=1),
    case("ReduceMean", x(2, 3, 4), opset=17, axes=[1, -1], keepdims=0),
    case("ReduceSum", x(2, 3, 4), opset=11, axes=[1]),
    case("ReduceSum", whole(1, 2, 3)),
    case("ReduceMax", whole(1, 5, 3)),
    case("ArgMax", x(3, 4), axis=1, keepdims=0),
    case("ArgMin", x(3, 4), axis=-1),
    case("ArgMax", np.array([[1, 3, 3, 0]], np.float32), axis=1, select_last_index=1),
    case("Softmax", x(2, 3, 4), axis=1),
    case("Softmax", x(2, 3, 4), opset=12),
    case("LogSoftmax", x(2, 3, 4), opset=11, axis=2),
    case("LayerNormalization", x(2, 3, 4), x(4, seed=1), x(4, seed=2), epsilon=1e-3),
    case("LayerNormalization", x(2, 3, 4), x(3, 4, seed=1), axis=1),
    case("LayerNormalization", x(2, 3, 4), x(4, seed=1), x(4, seed=2), outputs=3),
    case("RMSNormalization", x(2, 3, 4), x(4, seed=1), opset=23, epsilon=1e-3),
    case("SimplifiedLayerNormalization", x(2, 3, 4), x(4, seed=1), epsilon=1e-3),
    case("com.microsoft::SkipLayerNormalization", x(2, 3, 4), x(2, 3, 4, seed=1), x(4, seed=2), x(4, seed=3), x(4, seed=4)),
    case("com.microsoft::SkipSimplifiedLayerNormalization", x(2, 3, 4), x(2, 3, 4, seed=1), x(4, seed=2), x(4, seed=3)),
    case("com.microsoft::SkipSimplifiedLayerNormalization", x(2, 3, 4), x(2, 3, 4, seed=1), x(4, seed=2), epsilon=1e-5),
    case("com.microsoft::Gelu", x(3, 4)),
    case("com.microsoft::BiasGelu", x(3, 4), x(4, seed=1)),
    case("com.microsoft::FastGelu", x(3, 4), x(4, seed=1)),
    case("com.microsoft::QuickGelu", x(3, 4), alpha=1.2),
    case("InstanceNormalization", IMAGE, x(4, seed=1), x(4, seed=2)),
    case("GroupNormalization", IMAGE, x(4, seed=1), x(4, seed=2), num_groups=2),
    case("GroupNormalization", IMAGE, x(2, seed=1), x(2, seed=2), num_groups=2, opset=18),
    case("BatchNormalization", IMAGE, x(4), x(4, seed=1), x(4, seed=2), positive(4)),
    # shapes
    case("Reshape", x(2, 3, 4), whole(0, -1)),
    case("Reshape", x(2, 0, 4), whole(0, 4, 2), allowzero=1),
    case("Flatten", x(2, 3, 4)),
    case("Flatten", x(2, 3, 4), axis=-1),
    case("Flatten", x(2, 3, 4), axis=0),
    case("Transpose", x(2, 3, 4)),
    case("Transpose", x(2, 3, 4), perm=[1, 2, 0]),
    case("Squeeze", x(1, 3, 1, 2)),
    case("Squeeze", x(1, 3, 1, 2), whole(-2)),
    case("Squeeze", x(1, 3, 1, 2), opset=11, axes=[0]),
    case("Unsqueeze", x(3, 2), whole(0, -1)),
    case("Unsqueeze", x(3, 2), opset=11, axes=[1]),
    case("Concat", x(2, 3), x(2, 1, seed=1), axis=-1),
    case("Split", x(6, 2), whole(1, 2, 3), outputs=3),
    case("Split", x(7, 2), outputs=3, num_outputs=3),
    case("Split", x(4, 6), opset=11, outputs=2, axis=1, split=[2, 4]),
    case("Slice", x(5, 6), whole(1, -3), whole(4, 100)),
    case("Slice", x(5, 6), whole(1), whole(-1), whole(1), whole(2)),
    case("Slice", x(5, 6), whole(-1), whole(-(1 << 62)), whole(0), whole(-2)),
    case("Slice", x(5, 6), whole(4, 5), whole(1, 2), whole(0, 1), whole(-1, -1)),
    case("Slice", x(5, 6), whole(4), whole(2), whole(0)),
    case("Slice", x(5, 6), opset=9, starts=[1], ends=[3], axes=[1]),
    case("Expand", x(3, 1), whole(2, 1, 4)),
    case("Expand", x(3, 4), whole(1)),
    case("Tile", x(2, 3), whole(2, 1)),
    case("Gather", x(4, 3), np.array([[0, -1], [2, 2]], np.int64)),
    case("Gather", x(4, 3, 2), np.array(-2, np.int64), axis=1),
    case("Gather", x(4, 3), np.array([2, 0], np.int32), axis=-1),
    case("GatherElements", x(3, 3), np.array([[0, -1, 1], [2, 2, 0]], np.int64), axis=0),
    case("Pad", x(2, 3), whole(1, 0, 2, 1), np.array(0.5, np.float32)),
    case("Pad", x(2, 3), whole(1, 2), None, whole(-1)),
    case("Pad", x(3, 4), whole(2, 1, 1, 3), mode="reflect"),
    case("Pad", x(3, 4), whole(2, 1, 1, 5), mode="edge"),
    case("Pad", x(3, 4), whole(-1, 0, 0, -2)),
    case("Pad", x(2, 3), opset=10, pads=[0, 1, 0, 1], value=0.25),
    case("Shape", x(2, 3, 4)),
    case("Shape", x(2, 3, 4), start=-2, end=3),
    case("Size", x(2, 3)),
    case("Range", np.array(1, np.int64), np.array(10, np.int64), np.array(3, np.int64)),
    case("Range", np.array(5, np.float32), np.array(1, np.float32), np.array(-1.5, np.float32)),
    case("ConstantOfShape", whole(2, 3)),
    case("ConstantOfShape", whole(2), value=numpy_helper.from_array(np.array([7], np.int64))),
    case("Trilu", x(3, 4)),
    case("Trilu", x(3, 4), np.array(-1, np.int64), upper=0),
    case("CumSum", x(3, 4), np.array(1, np.int64), exclusive=1, reverse=1),
    case("CumSum", x(3, 4), np.array(0, np.int64)),
    case("Constant", value_ints=[1, 2, 3]),
    case("Compress", x(3, 4), np.array([True, False, True]), axis=0),
    case("Compress", x(3, 4), np.array([False, True, True])),
    case("GatherND", x(3, 4, 2), np.array([[0, -1], [2, 1]], np.int64)),
    case("NonZero", np.array([[1, 0, 2], [0, 0, 3]], np.float32)),
    case("ScatterElements", x(3, 3), np.array([[0, -1, 1]], np.int64), x(1, 3, seed=1)),
    case("ScatterElements", x(3, 3), np.array([[1, 1, 1], [1, 0, -1]], np.int64).T, x(3, 2, seed=1), axis=1, reduction="add"),
    case("ScatterND", x(4, 3), np.array([[2], [-4]], np.int64), x(2, 3, seed=1)),
    case("ScatterND", x(4, 3), np.array([[1], [1]], np.int64), x(2, 3, seed=1), reduction="add"),
    case("TopK", x(3, 6), whole(2), outputs=2),
    case("TopK", x(3, 6), whole(2), outputs=2, axis=0, largest=0),
    case("Constant", value_float=0.5),
    case("Constant", value=numpy_helper.from_array(x(2, 2))),
]  # fmt: skip


def model_of(given: Case) -> onnx.ModelProto:
    key, attributes, inputs, opset, outputs = given
    domain, _, op = key.rpartition("::")
    names = ["" if array is None else f"x{index}" for index, array in enumerate(inputs)]
    made = [f"y{index}" for index in range(outputs)]
    node = helper.make_node(op, names, made, name="the_node", domain=domain, **attributes)
    infos = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in zip(names, inputs, strict=True)
        if array is not None
    ]
    graph = helper.make_graph(
        [node], "g", infos, [helper.make_empty_tensor_value_info(name) for name in made]
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


def run_executor(proto: onnx.ModelProto, feeds: Mapping[str, Array]) -> list[Array]:
    model = ir.from_proto(proto)
    executor = Executor(model, list(model.graph), model.graph.inputs, model.graph.outputs)
    made = executor({value: feeds[value.name or ""] for value in model.graph.inputs})
    return [made[value].numpy() for value in model.graph.outputs]


@pytest.mark.parametrize("given", CASES, ids=lambda given: f"{given[0]}-{given[3]}")
def test_an_operator_computes_what_onnx_runtime_does(given: Case) -> None:
    proto = model_of(given)
    feeds = {f"x{index}": array for index, array in enumerate(given[2]) if array is not None}
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    expected = session.run(None, feeds)
    made = run_executor(proto, feeds)
    for ours, theirs in zip(made, expected, strict=True):
        assert ours.dtype == theirs.dtype
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, rtol=RTOL, atol=ATOL)


def test_every_operator_of_the_table_is_tried() -> None:
    tried = {given[0] for given in CASES}
    # RMSNormalization in ONNX Runtime's own domain is the function of SimplifiedLayerNormalization.
    assert set(OPERATORS) - tried == {"com.microsoft::SimplifiedLayerNormalization"}
