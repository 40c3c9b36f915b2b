"""Models that are compiled in many tests, what their outputs may differ by, and what is read back of a compiled one."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx

from qcompiler.api import CompiledModel
from tests.small_models import Array, Feed, assert_equal_outputs, make_model, run, weight

# Rounding to 8 bits moves a weight by at most max|w| / 256 of its group, 0.4 % of a normal weight's spread; int8 activations of
# accuracy_level 4 add as much.
EIGHT_BIT = 0.02
# 4 bits: max|w| / 16, about 10 % of the spread.
FOUR_BIT = 0.2
# float32 roundings; the codes are turned into the same numbers by other code.
ROUNDING = 1e-5

Compile = Callable[..., CompiledModel]


def normal(*shape: int, dtype: Any = np.float32) -> Array:
    """Normal numbers from a seed."""
    return np.random.default_rng(1).standard_normal(shape).astype(dtype)


def loaded_model(compiled: CompiledModel) -> onnx.ModelProto:
    """The compiled model, its external data too."""
    return onnx.load(compiled.path)


def count_of(compiled: CompiledModel, op: str) -> int:
    """How many nodes of this operator a compiled model has, control-flow bodies included."""

    def count(graph: onnx.GraphProto) -> int:
        bodies = [a.g for n in graph.node for a in n.attribute if a.HasField("g")]
        return sum(n.op_type == op for n in graph.node) + sum(map(count, bodies))

    return count(loaded_model(compiled).graph)


MLP = "g (float[M,64] x) => (float[M,32] y) { h = MatMul(x, w1) r = Relu(h) y = MatMul(r, w2) }"


def two_layers() -> onnx.ModelProto:
    """Two linears; the second is the head."""
    return make_model(MLP, {"w1": weight(64, 96), "w2": weight(96, 32, seed=1)})


def check_outputs(model: onnx.ModelProto, feed: Feed, compiled: CompiledModel, tolerance: float) -> None:
    """The compiled model computes what the float one does, but for ``tolerance`` of the norm."""
    assert_equal_outputs(run(model, feed, optimize=False), run(compiled.path, feed), tolerance)


def tied_decoder(k: int = 64, vocabulary: int = 80) -> onnx.ModelProto:
    """Embedding -> one linear -> head with the embedding's own matrix."""
    return make_model(
        f"g (int64[B,S] input_ids) => (float[B,S,{vocabulary}] logits) {{"
        "e = Gather(table, input_ids) h = MatMul(e, w) a = Add(e, h) t = Transpose<perm=[1,0]>(table) logits = MatMul(a, t) }",
        {"table": weight(vocabulary, k, scale=1.0), "w": weight(k, k, seed=1)},
    )


BODIES = {
    "if": """g (float[M,64] x, bool c) => (float[M,64] y) {
        h = MatMul(x, w)
        y = If(c) <then_branch = t () => (float[M,64] z) { z = MatMul(h, v) },
                   else_branch = e () => (float[M,64] q) { q = MatMul(h, w) }>
    }""",
    "loop": """g (float[M,64] x, bool c) => (float[M,64] y) {
        n = Constant<value_int=3>()
        y = Loop(n, c, x) <body = b (int64 i, bool k, float[M,64] s) => (bool k2, float[M,64] s2) {
            k2 = Identity(k)  m = MatMul(s, v) r = Relu(m) s2 = MatMul(r, w) }>
    }""",
    "scan": """g (float[M,64] x, bool c) => (float[M,64] y) {
        z = Constant<value_float=0.0>()
        a = Scan<num_scan_inputs=1, body = b (float[64] s) => (float[64] o) { o = MatMul(s, v) }>(x)
        y = MatMul(a, w)
    }""",
    "nested": """g (float[M,64] x, bool c) => (float[M,64] y) {
        n = Constant<value_int=2>()
        y = Loop(n, c, x) <body = b (int64 i, bool k, float[M,64] s) => (bool k2, float[M,64] s2) {
            k2 = Identity(k)
            s2 = If(k) <then_branch = t () => (float[M,64] z) { z = MatMul(s, v) },
                        else_branch = e () => (float[M,64] q) { q = Gemm<transB=1>(s, w) }> }>
    }""",
}


def _fields(packed: Array, bits: int) -> Array:
    """Numbers of ``bits`` in bytes [N, bytes], the lowest first."""
    shifts = np.arange(8 // bits, dtype=np.uint8) * bits
    return (packed[:, :, None] >> shifts & (1 << bits) - 1).reshape(len(packed), -1).astype(np.int32)


def stored_weight(compiled: CompiledModel, op: str, k: int) -> tuple[Array, Array]:
    """The weight [N, K] of the only node of this operator, and the steps [N, K] between its codes, by NumPy alone."""
    model = loaded_model(compiled)
    (node,) = [node for node in model.graph.node if node.op_type == op]
    arrays = {i.name: onnx.numpy_helper.to_array(i, str(compiled.folder)) for i in model.graph.initializer}
    reshaped = {
        n.output[0]: arrays[n.input[0]]
        for n in model.graph.node
        if n.op_type == "Reshape" and n.input[0] in arrays
    }
    packed = (arrays | reshaped)[node.input[1 if op == "MatMulNBits" else 0]]
    n = len(packed)
    bits, block = (onnx.helper.get_node_attr_value(node, name) for name in ("bits", "block_size"))
    scales = arrays[node.input[2]].reshape(n, -1)
    points = np.full(scales.shape, 1 << (bits - 1))
    if len(node.input) > 3 and node.input[3]:
        points = _fields(arrays[node.input[3]].reshape(n, -1), bits)[:, : scales.shape[1]]
    steps, middle = (np.repeat(each, block, axis=1)[:, :k] for each in (scales, points))
    return (_fields(packed.reshape(n, -1), bits)[:, :k] - middle) * steps, steps


def check_rounding(original: Array, stored: Array, steps: Array, symmetric: bool) -> None:
    """Each weight is within half a step; a symmetric range holds one step less opposite its extreme, and a zero point is rounded too."""
    steps = np.abs(steps)  # symmetric ones have a sign
    assert np.abs(original - stored).max() > 0
    assert (np.abs(original - stored) <= steps * (1.0 + ROUNDING)).all()
    inside = np.abs(original - stored) <= steps * (0.5 + ROUNDING)
    assert inside.mean() >= (0.9 if symmetric else 0.8)
