"""compile() on small models: what runs afterwards, that it computes the same, and what is said when it cannot."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest

from qcompiler.api import CompiledModel, Options, compile, dry_run
from qcompiler.errors import InputError, PromiseError, SchemeError
from qcompiler.graph import model_file
from qcompiler.recipe import Recipe
from tests.small_models import (
    Array,
    Feed,
    assert_equal_outputs,
    constant_node,
    make_model,
    op_types,
    relative_error,
    run,
    save_model,
    weight,
)

# Rounding to 8 bits moves a weight by at most max|w| / 256 of its group, 0.4 % of a normal weight's spread; int8 activations of
# accuracy_level 4 add as much.
EIGHT_BIT = 0.02
# 4 bits: max|w| / 16, about 10 % of the spread.
FOUR_BIT = 0.2
# float32 roundings; the codes are turned into the same numbers by other code.
ROUNDING = 1e-5
SETTINGS_8 = ("bits=8", "head.algorithm=rtn", "embedding.algorithm=rtn")

Compile = Callable[..., CompiledModel]


@pytest.fixture
def quantize(tmp_path: Path) -> Compile:
    """Compiles into a fresh folder, round to nearest at 8 bits unless told otherwise, every pass verified."""

    def run_it(model: onnx.ModelProto | Path, recipe: Any = "w8a16-rtn", **options: Any) -> CompiledModel:
        path = model if isinstance(model, Path) else save_model(model, tmp_path)
        options.setdefault("options", Options(verify_each=True))
        options.setdefault("output", tmp_path / f"out{len(list(tmp_path.iterdir()))}")
        return compile(path, recipe, **options)

    return run_it


def _x(*shape: int, dtype: Any = np.float32) -> Array:
    return np.random.default_rng(1).standard_normal(shape).astype(dtype)


def _loaded(compiled: CompiledModel) -> onnx.ModelProto:
    return onnx.load(compiled.path)


def _count(compiled: CompiledModel, op: str) -> int:
    def count(graph: onnx.GraphProto) -> int:
        bodies = [a.g for n in graph.node for a in n.attribute if a.HasField("g")]
        return sum(n.op_type == op for n in graph.node) + sum(map(count, bodies))

    return count(_loaded(compiled).graph)


MLP = "g (float[M,64] x) => (float[M,32] y) { h = MatMul(x, w1) r = Relu(h) y = MatMul(r, w2) }"


def _mlp() -> onnx.ModelProto:
    return make_model(MLP, {"w1": weight(64, 96), "w2": weight(96, 32, seed=1)})


def _check(model: onnx.ModelProto, feed: Feed, compiled: CompiledModel, tolerance: float) -> None:
    assert_equal_outputs(run(model, feed, optimize=False), run(compiled.path, feed), tolerance)


def _fields(packed: Array, bits: int) -> Array:
    """Numbers of ``bits`` in bytes [N, bytes], the lowest first."""
    shifts = np.arange(8 // bits, dtype=np.uint8) * bits
    return (packed[:, :, None] >> shifts & (1 << bits) - 1).reshape(len(packed), -1).astype(np.int32)


def _stored(compiled: CompiledModel, op: str, k: int) -> tuple[Array, Array]:
    """The weight [N, K] of the only node of this operator, and the steps [N, K] between its codes, by NumPy alone."""
    model = _loaded(compiled)
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


def _check_rounding(original: Array, stored: Array, steps: Array, symmetric: bool) -> None:
    """Each weight is within half a step; a symmetric range holds one step less above 0, and a zero point is rounded too."""
    assert np.abs(original - stored).max() > 0
    assert (np.abs(original - stored) <= steps * (1.0 + ROUNDING)).all()
    inside = np.abs(original - stored) <= steps * (0.5 + ROUNDING)
    assert inside.mean() >= (0.9 if symmetric else 0.8)


# ---- ways to hold a weight ----


def _constant_weight() -> onnx.ModelProto:
    model = make_model("g (float[M,64] x) => (float[M,32] y) { y = MatMul(x, w) }", {"w": weight(64, 32)})
    del model.graph.initializer[:]
    model.graph.node.insert(0, constant_node("w", weight(64, 32)))
    return model


WEIGHTS = {
    "initializer": lambda: make_model(
        "g (float[M,64] x) => (float[M,32] y) { y = MatMul(x, w) }", {"w": weight(64, 32)}
    ),
    "constant": _constant_weight,
    "transpose": lambda: make_model(
        "g (float[M,64] x) => (float[M,32] y) { t = Transpose<perm=[1,0]>(w) y = MatMul(x, t) }",
        {"w": weight(32, 64, scale=0.1)},
    ),
    "identity": lambda: make_model(
        "g (float[M,64] x) => (float[M,32] y) { i = Identity(w) y = MatMul(x, i) }", {"w": weight(64, 32)}
    ),
    "cast": lambda: make_model(
        "g (float[M,64] x) => (float[M,32] y) { c = Cast<to=1>(w) y = MatMul(x, c) }",
        {"w": weight(64, 32, dtype=np.float16)},
    ),
    "reshape": lambda: make_model(
        "g (float[M,64] x) => (float[M,32] y) { s = Constant<value_ints=[64,-1]>() r = Reshape(w, s) y = MatMul(x, r) }",
        {"w": weight(2048, scale=0.1)},
    ),
    "cast of transpose": lambda: make_model(
        "g (float[M,64] x) => (float[M,32] y) { t = Transpose(w) c = Cast<to=1>(t) y = MatMul(x, c) }",
        {"w": weight(32, 64, dtype=np.float16, scale=0.1)},
    ),
    "gemm": lambda: make_model(
        "g (float[M,64] x) => (float[M,32] y) { y = Gemm<alpha=0.5, beta=2.0>(x, w, c) }",
        {"w": weight(64, 32), "c": weight(32)},
    ),
    "gemm transB": lambda: make_model(
        "g (float[M,64] x) => (float[M,32] y) { y = Gemm<transB=1>(x, w, c) }",
        {"w": weight(32, 64, scale=0.1), "c": weight(1, 32)},
    ),
    "also an input": lambda: make_model(
        "g (float[M,64] x, float[64,32] w) => (float[M,32] y) { y = MatMul(x, w) }", {"w": weight(64, 32)}
    ),
}


@pytest.mark.parametrize("kind", WEIGHTS)
def test_a_weight_is_found_however_it_is_held(kind: str, quantize: Compile) -> None:
    model = WEIGHTS[kind]()
    compiled = quantize(model)
    assert compiled.report.running == {"MatMulNBits": 1}
    _check(model, {"x": _x(5, 64)}, compiled, EIGHT_BIT)
    assert "w" not in {i.name for i in _loaded(compiled).graph.initializer}


@pytest.mark.parametrize("recipe", ["w8a16-rtn", "w4a16-awq"])
def test_initializers_that_a_caller_may_override_stay_inputs(recipe: str, quantize: Compile) -> None:
    model = make_model(
        "g (float[M,64] x, float[64,96] w1, float[96] b) => (float[M,32] y)"
        " { h = MatMul(x, w1) i = Add(h, b) r = Relu(i) y = MatMul(r, w2) }",
        {"w1": weight(64, 96), "b": weight(96), "w2": weight(96, 32, seed=1)},
    )
    compiled = quantize(model, recipe)
    assert [value.name for value in _loaded(compiled).graph.input] == ["x", "b"]
    tolerance = EIGHT_BIT if recipe == "w8a16-rtn" else FOUR_BIT
    for feed in ({"x": _x(5, 64)}, {"x": _x(5, 64), "b": np.ones(96, np.float32)}):
        _check(model, feed, compiled, tolerance)


def test_bias_is_fused_into_the_product(quantize: Compile) -> None:
    model = make_model(
        "g (float[M,64] x) => (float[M,32] y) { h = MatMul(x, w) y = Add(b, h) }",
        {"w": weight(64, 32), "b": weight(32)},
    )
    compiled = quantize(model)
    assert op_types(_loaded(compiled)) == ["MatMulNBits"]
    _check(model, {"x": _x(5, 64)}, compiled, EIGHT_BIT)


def test_gemm_with_all_its_attributes(quantize: Compile) -> None:
    model = make_model(
        "g (float[64,M] x, float[M,32] c) => (float[M,32] y) { y = Gemm<transA=1, transB=1, alpha=0.5, beta=3.0>(x, w, c) }",
        {"w": weight(32, 64, scale=0.1)},
    )
    compiled = quantize(model)
    assert _count(compiled, "Gemm") == 0
    _check(model, {"x": _x(64, 5), "c": _x(5, 32)}, compiled, EIGHT_BIT)


# ---- float types ----


@pytest.mark.parametrize("recipe", ["w8a16-rtn", "w4a16-rtn"])
def test_float16_keeps_its_types(quantize: Compile, recipe: str) -> None:
    model = make_model(
        "g (float16[M,64] x) => (float16[M,32] y) { h = MatMul(x, w1) r = Relu(h) y = MatMul(r, w2) }",
        {"w1": weight(64, 96, dtype=np.float16), "w2": weight(96, 32, seed=1, dtype=np.float16)},
    )
    compiled = quantize(model, recipe)
    assert compiled.report.running == {"MatMulNBits": 2}
    _check(
        model, {"x": _x(5, 64, dtype=np.float16)}, compiled, EIGHT_BIT if recipe == "w8a16-rtn" else FOUR_BIT
    )


def _bfloat16_run(path: Path | onnx.ModelProto, feed: dict[str, Array]) -> Array:
    """The output y as float32."""
    import onnxruntime as ort

    source = str(path) if isinstance(path, Path) else path.SerializeToString()
    session = ort.InferenceSession(source, providers=["CPUExecutionProvider"])
    values = {
        name: ort.OrtValue.ortvalue_from_numpy_with_onnx_type(
            array.view(np.uint16), onnx.TensorProto.BFLOAT16
        )
        for name, array in feed.items()
    }
    output = session.run_with_ort_values(["y"], values)[0]
    assert output.element_type() == onnx.TensorProto.BFLOAT16
    import torch

    return torch.from_dlpack(output._ortvalue.to_dlpack()).view(torch.bfloat16).float().numpy()


@pytest.mark.parametrize("recipe", ["w8a16-rtn", "w4a16-awq"])
def test_bfloat16_keeps_its_types(quantize: Compile, recipe: str) -> None:
    bfloat16 = ml_dtypes.bfloat16
    w1, w2 = weight(64, 96, dtype=bfloat16), weight(96, 32, seed=1, dtype=bfloat16)
    model = make_model(
        "g (bfloat16[M,64] x) => (bfloat16[M,32] y) { h = MatMul(x, w1) r = Relu(h) y = MatMul(r, w2) }",
        {"w1": w1, "w2": w2},
    )
    x = _x(5, 64, dtype=bfloat16)
    compiled = quantize(model, recipe)
    assert compiled.report.running == {"MatMulNBits": 2}
    expected = np.maximum(x.astype(np.float32) @ w1.astype(np.float32), 0) @ w2.astype(np.float32)
    got = _bfloat16_run(compiled.path, {"x": x})
    assert relative_error(expected, got) <= (EIGHT_BIT if recipe == "w8a16-rtn" else FOUR_BIT)


# ---- one weight, many uses ----


def test_a_weight_used_twice_is_stored_once(quantize: Compile) -> None:
    model = make_model(
        "g (float[M,64] x) => (float[M,64] y) { h = MatMul(x, w) r = Relu(h) y = MatMul(r, w) }",
        {"w": weight(64, 64)},
    )
    compiled = quantize(model)
    assert len(compiled.report.layers) == 1
    assert compiled.report.running == {"MatMulNBits": 2}
    packed = {node.input[1] for node in _loaded(compiled).graph.node if node.op_type == "MatMulNBits"}
    assert len(packed) == 1
    _check(model, {"x": _x(5, 64)}, compiled, EIGHT_BIT)


def _tied(k: int = 64, vocabulary: int = 80) -> onnx.ModelProto:
    """Embedding -> one linear -> head with the embedding's own matrix."""
    return make_model(
        f"g (int64[B,S] input_ids) => (float[B,S,{vocabulary}] logits) {{"
        "e = Gather(table, input_ids) h = MatMul(e, w) a = Add(e, h) t = Transpose<perm=[1,0]>(table) logits = MatMul(a, t) }",
        {"table": weight(vocabulary, k, scale=1.0), "w": weight(k, k, seed=1)},
    )


@pytest.mark.parametrize("k", [64, 96, 100, 40, 17])
@pytest.mark.parametrize(
    ("bits", "symmetric"), [(8, True), (8, False), (4, True), (4, False), (2, True), (3, False)]
)
def test_tied_embedding_and_head_are_one_tensor(
    quantize: Compile, k: int, bits: int, symmetric: bool
) -> None:
    model = _tied(k)
    settings = [f"head.bits={bits}", f"head.symmetric={str(symmetric).lower()}", "head.algorithm=rtn"]
    compiled = quantize(model, settings=settings)
    assert compiled.report.running == {"MatMulNBits": 2, "GatherBlockQuantized": 1}
    tied = next(layer for layer in compiled.report.layers if layer["role"] == "head")
    assert any("tied" in note for note in tied["notes"])
    stored = [i for i in _loaded(compiled).graph.initializer if i.data_type == onnx.TensorProto.UINT8]
    large = [
        i
        for i in stored
        if np.prod(i.dims) >= 80 * k * bits // 8 // 2 and i.dims[0] == 80 and "zero" not in i.name
    ]
    assert len(large) == 1, [(i.name, list(i.dims)) for i in stored]
    table, steps = _stored(compiled, "GatherBlockQuantized", k)
    original = weight(80, k, scale=1.0)
    _check_rounding(original, table, steps, symmetric)
    linear = weight(k, k, seed=1)  # 8 bits
    embedded = table[:6]
    expected = (embedded @ linear + embedded) @ table.T
    got = run(compiled.path, {"input_ids": np.arange(6, dtype=np.int64)[None]})["logits"][0]
    assert relative_error(expected, got) <= EIGHT_BIT


def test_tied_weight_takes_its_bytes_once_in_the_file(quantize: Compile) -> None:
    model = _tied(256, 512)
    compiled = quantize(model, settings=["head=float"])
    with_float_head = compiled.path.stat().st_size + compiled.path.with_name("model.onnx.data").stat().st_size
    compiled = quantize(model)
    total = compiled.path.stat().st_size + compiled.path.with_name("model.onnx.data").stat().st_size
    quantized = 512 * 256 + 512 * 8 * 4 + 256 * 256 + 256 * 8 * 4  # codes and scales of groups of 32
    assert total < quantized + 8192  # graph and alignment; a second copy would be 131072 bytes
    assert with_float_head > 512 * 256 * 4


# ---- control flow and functions ----

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


@pytest.mark.parametrize("recipe", ["w8a16-rtn", "w4a16-awq"])
@pytest.mark.parametrize("kind", BODIES)
def test_weights_inside_control_flow(kind: str, recipe: str, quantize: Compile) -> None:
    model = make_model(BODIES[kind], {"v": weight(64, 64), "w": weight(64, 64, seed=1)})
    compiled = quantize(model, recipe)
    assert len(compiled.report.layers) == 2
    products = {"if": 3, "loop": 2, "scan": 2, "nested": 2}[kind]
    assert compiled.report.running == {"MatMulNBits": products}
    # One after another: two products, in the loop's three rounds six; independent errors add in squares.
    one = 0.015 if recipe == "w8a16-rtn" else 0.12
    tolerance = one * np.sqrt(6 if kind == "loop" else 2)
    for c in (True, False):
        _check(model, {"x": _x(5, 64), "c": np.array(c)}, compiled, tolerance)


def test_weights_held_by_the_body_itself(quantize: Compile) -> None:
    model = make_model(
        """g (float[M,64] x, bool c) => (float[M,64] y) {
        y = If(c) <then_branch = t () => (float[M,64] z) { z = MatMul(x, w) }, else_branch = e () => (float[M,64] q) { q = MatMul(x, w) }> }""",
        {"w": weight(64, 64)},
    )
    node = model.graph.node[0]
    initializer = model.graph.initializer.pop()
    for number, attribute in enumerate(node.attribute):
        copy = attribute.g.initializer.add()
        copy.CopyFrom(onnx.numpy_helper.from_array(weight(64, 64, seed=number), initializer.name))
    compiled = quantize(model)
    assert compiled.report.running == {"MatMulNBits": 2}
    assert len(compiled.report.layers) == 2
    for c in (True, False):
        _check(model, {"x": _x(5, 64), "c": np.array(c)}, compiled, EIGHT_BIT)


def test_a_function_called_twice_has_its_weight_quantized_once(quantize: Compile) -> None:
    model = _function_model()
    compiled = quantize(model)
    assert len(compiled.report.layers) == 1
    assert compiled.report.running == {"MatMulNBits": 2}
    _check(model, {"x": _x(5, 64)}, compiled, EIGHT_BIT)


def _function_model() -> onnx.ModelProto:
    helper = onnx.helper
    f = helper.make_function(
        "local", "f", ["x"], ["y"],
        [constant_node("w", weight(64, 64)), helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"])],
        [helper.make_opsetid("", 21)],
    )  # fmt: skip
    model = make_model("g (float[M,64] x) => (float[M,64] y) { y = Identity(x) }")
    del model.graph.node[:]
    model.graph.node.extend(
        [
            helper.make_node("f", ["x"], ["m"], domain="local"),
            helper.make_node("f", ["m"], ["y"], domain="local"),
        ]
    )
    model.functions.append(f)
    model.opset_import.append(helper.make_opsetid("local", 1))
    onnx.checker.check_model(model)
    return model


# ---- opsets ----


@pytest.mark.parametrize("opset", [11, 13, 17, 18, 20])
def test_older_opsets_are_raised(opset: int, quantize: Compile) -> None:
    model = make_model(
        "g (float[M,64] x) => (float[M,32] y) { h = MatMul(x, w1) u = ReduceMean<axes=[1], keepdims=1>(h) d = Sub(h, u)"
        " s = Softmax<axis=1>(d) y = Gemm<transB=1>(s, w2, b) }"
        if opset < 18
        else "g (float[M,64] x) => (float[M,32] y) { h = MatMul(x, w1) s = Softmax<axis=1>(h) y = Gemm<transB=1>(s, w2, b) }",
        {"w1": weight(64, 96), "w2": weight(32, 96, seed=1), "b": weight(32)},
        opset=opset, ir_version=4 if opset == 11 else 8,
    )  # fmt: skip
    compiled = quantize(model)
    after = _loaded(compiled)
    assert {entry.domain: entry.version for entry in after.opset_import}[""] >= 21
    assert compiled.report.running == {"MatMulNBits": 2}
    _check(model, {"x": _x(5, 64)}, compiled, EIGHT_BIT)


# ---- schemes ----


@pytest.mark.parametrize("fallback", ["adjust", "pad"])
@pytest.mark.parametrize("k", [96, 100, 40, 17])
def test_groups_that_do_not_divide_k(k: int, fallback: str, quantize: Compile) -> None:
    model = make_model(
        f"g (float[M,{k}] x) => (float[M,32] z) {{ y = MatMul(x, w) z = Relu(y) }}", {"w": weight(k, 32)}
    )
    compiled = quantize(model, settings=["group_size=64", f"group_fallback={fallback}"])
    (layer,) = compiled.report.layers
    assert any(f"does not divide K={k}" in note for note in layer["notes"])
    expected = {96: 32, 100: 64, 40: 64, 17: 64}[k] if fallback == "adjust" else 64
    (node,) = [n for n in _loaded(compiled).graph.node if n.op_type == "MatMulNBits"]
    assert onnx.helper.get_node_attr_value(node, "block_size") == expected
    _check(model, {"x": _x(5, k)}, compiled, EIGHT_BIT)


def test_group_fallback_error_names_the_weight(quantize: Compile) -> None:
    model = make_model(
        "g (float[M,96] x) => (float[M,32] z) { y = MatMul(x, w) z = Relu(y) }", {"w": weight(96, 32)}
    )
    with pytest.raises(SchemeError, match=r"w: K=96 is not a multiple of group_size=64"):
        quantize(model, settings=["group_size=64", "group_fallback=error"])


@pytest.mark.parametrize("group", [16, 32, 64, 128, 256, "channel", "tensor"])
@pytest.mark.parametrize(("bits", "symmetric"), [(1, False), *itertools.product((2, 3, 4, 8), (True, False))])
def test_every_scheme(bits: int, group: int | str, symmetric: bool, quantize: Compile) -> None:
    model = make_model(
        "g (float[M,256] x) => (float[M,32] z) { y = MatMul(x, w) z = Relu(y) }", {"w": weight(256, 32)}
    )
    rows = [f"symmetric={str(symmetric).lower()}", f"bits={bits}", f"group_size={group}"]
    compiled = quantize(model, "w4a16-rtn", settings=rows)
    assert compiled.report.running == {"MatMulNBits": 1}
    stored, steps = _stored(compiled, "MatMulNBits", 256)
    _check_rounding(weight(256, 32).T, stored, steps, symmetric)
    x = _x(5, 256)
    # what differs is the kernel's rounding of activations to int8 (accuracy_level 4)
    assert relative_error(np.maximum(x @ stored.T, 0), run(compiled.path, {"x": x})["z"]) <= EIGHT_BIT


def _outliers(*shape: int, seed: int) -> Array:
    """Activations whose channels have sizes orders of magnitude apart: where weighing errors by the input pays."""
    sizes = np.exp(3 * np.random.default_rng(0).standard_normal(shape[-1]))
    return (np.random.default_rng(seed).standard_normal(shape) * sizes).astype(np.float32)


def test_algorithms_beat_rounding_where_channels_differ(quantize: Compile) -> None:
    model = _mlp()
    held_out = {"x": _outliers(64, 64, seed=2)}
    expected = run(model, held_out, optimize=False)["y"]
    error: dict[str, float] = {}
    for algorithm in ("rtn", "mse", "[awq, rtn]", "[awq, mse]"):
        settings = [
            f"algorithm={algorithm}",
            "head.bits=4",
            f"head.algorithm={algorithm}",
            "accuracy_level=0",
        ]
        compiled = quantize(
            model, "w4a16-rtn", settings=settings, calibration=[{"x": _outliers(64, 64, seed=1)}]
        )
        assert compiled.report.running == {"MatMulNBits": 2}
        error[algorithm] = relative_error(expected, run(compiled.path, held_out)["y"])
    assert error["rtn"] <= FOUR_BIT
    # With these seeds 0.65, 0.81 and 0.92; an algorithm that does nothing gives 1.
    assert error["mse"] <= 0.8 * error["rtn"]
    assert error["[awq, rtn]"] <= 0.9 * error["rtn"]
    assert error["[awq, mse]"] <= 0.97 * error["mse"]


def user_quantizer(values: Any, statistics: Any, scheme: Any, options: Any) -> Any:
    """Named in a recipe by the test below: every weight 0.5."""
    from qcompiler.quant.tensor import AffineTensor

    n, k = values.shape
    codes = np.full((n, k), scheme.midpoint + 1, np.uint8)
    return AffineTensor(scheme, codes, np.full(scheme.scale_shape(n, k), 0.5, np.float32), None)


def test_a_users_own_algorithm(quantize: Compile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    model = make_model(
        "g (float[M,64] x) => (float[M,32] z) { y = MatMul(x, w) z = Neg(y) }", {"w": weight(64, 32)}
    )
    compiled = quantize(model, settings=[f"algorithm={Path(__file__).stem}:user_quantizer"])
    x = _x(5, 64)
    expected = np.broadcast_to(x.sum(axis=1, keepdims=True) * 0.5, (5, 32))
    assert relative_error(-expected, run(compiled.path, {"x": x})["z"]) <= EIGHT_BIT


def test_float_head_and_embedding(quantize: Compile) -> None:
    compiled = quantize(_tied(), settings=["head=float"])
    assert [layer["name"] for layer in compiled.report.layers] == ["w"]
    untied = make_model(
        "g (int64[B,S] input_ids) => (float[B,S,64] z) { e = Gather(table, input_ids) h = MatMul(e, w) z = Relu(h) }",
        {"table": weight(80, 64, scale=1.0), "w": weight(64, 64, seed=1)},
    )
    compiled = quantize(untied, settings=["embedding=float"])
    assert [layer["name"] for layer in compiled.report.layers] == ["w"]
    assert any(
        skip["name"] == "table" and "float in recipe" in skip["reason"] for skip in compiled.report.skipped
    )


def test_a_rule_leaves_a_weight_alone(quantize: Compile) -> None:
    recipe = Recipe.from_text(
        "bits: 8\nrules: [{match: w1, quantize: false, reason: too small}]\nhead: {algorithm: rtn}", "t", "t"
    )
    compiled = quantize(_mlp(), recipe)
    assert [layer["name"] for layer in compiled.report.layers] == ["w2"]
    assert any(skip["name"] == "w1" and "too small" in skip["reason"] for skip in compiled.report.skipped)
    assert _count(compiled, "MatMul") == 1


# ---- refusals ----


def test_nothing_to_quantize(quantize: Compile) -> None:
    model = make_model("g (float[M,64] x) => (float[M,64] y) { y = Relu(x) }")
    with pytest.raises(InputError, match="nothing to quantize: the model has no MatMul"):
        quantize(model)
    products = make_model("g (float[M,64] x, float[64,8] z) => (float[M,8] y) { y = MatMul(x, z) }")
    with pytest.raises(InputError, match="both factors are activations"):
        quantize(products)


@pytest.mark.parametrize("recipe", ["w4a16-rtn", "w4a16-awq"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_weight_that_is_not_finite(bad: float, recipe: str, quantize: Compile, tmp_path: Path) -> None:
    broken = weight(64, 96)
    broken[3, 4] = bad
    model = make_model(MLP, {"w1": broken, "w2": weight(96, 32)})
    with pytest.raises(SchemeError, match=r"^w1: "):
        quantize(model, recipe, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.work").exists()


@pytest.mark.parametrize("recipe", ["w4a16-rtn", "w8a16-rtn", "w4a16-awq"])
def test_a_compiled_model_has_nothing_left(recipe: str, quantize: Compile) -> None:
    compiled = quantize(_tied(), recipe)
    with pytest.raises(InputError, match=r"nothing to quantize.*already quantized") as caught:
        quantize(compiled.path, recipe)
    assert caught.value.exit_status == 2


def test_the_output_is_refused_where_it_exists(quantize: Compile, tmp_path: Path) -> None:
    from qcompiler.errors import ResourceError

    quantize(_mlp(), output=tmp_path / "out")
    with pytest.raises(ResourceError, match="exists"):
        quantize(_mlp(), output=tmp_path / "out")
    quantize(_mlp(), output=tmp_path / "out", options=Options(force=True))


def test_a_lost_product_breaks_the_promise(quantize: Compile, monkeypatch: pytest.MonkeyPatch) -> None:
    from qcompiler.targets import ort as target

    real = target._optimized_nodes
    monkeypatch.setattr(
        target, "_optimized_nodes", lambda path: [n for n in real(path) if n.name != "second"]
    )
    model = make_model("g (float[M,64] x) => (float[M,64] y) { [first] h = MatMul(x, v) [second] y = MatMul(h, w) }",
                       {"v": weight(64, 64), "w": weight(64, 64, seed=1)})  # fmt: skip
    with pytest.raises(PromiseError, match=r"^second: should run as MatMulNBits"):
        quantize(model)


# ---- what stays ----


def _contents(folder: Path) -> dict[str, bytes]:
    names = ("model.onnx", "model.onnx.data", "recipe.yaml", "manifest.json")
    return {name: (folder / name).read_bytes() for name in names if (folder / name).exists()}


@pytest.mark.parametrize("recipe", ["w4a16-rtn", "w4a16-awq"])
def test_the_same_run_gives_the_same_bytes(recipe: str, quantize: Compile, tmp_path: Path) -> None:
    path = save_model(_tied(), tmp_path)
    settings = ["calib.samples=2", "calib.length=16"]
    first = quantize(path, recipe, settings=settings)
    second = quantize(path, recipe, settings=settings)
    assert _contents(first.folder) == _contents(second.folder)
    assert {"model.onnx", "recipe.yaml", "manifest.json"} <= set(_contents(first.folder))
    manifest = json.loads((first.folder / "manifest.json").read_text())
    assert manifest["output"] == model_file.sha256_of(first.path)


def test_the_input_is_not_written_to(quantize: Compile, tmp_path: Path) -> None:
    path = save_model(_mlp(), tmp_path)
    before = path.read_bytes()
    quantize(path, "w4a16-awq")
    assert path.read_bytes() == before


def test_names_types_and_metadata_stay(quantize: Compile) -> None:
    model = make_model(
        "g (float[batch,64] x) => (float[batch,96] h, float[batch,32] y) { h = MatMul(x, w1) r = Relu(h) y = Gemm(r, w2, b) }",
        {"w1": weight(64, 96), "w2": weight(96, 32, seed=1), "b": weight(32)},
    )
    entry = model.metadata_props.add()
    entry.key, entry.value = "author", "someone"
    model.doc_string, model.producer_name = "words", "exporter"
    names = ["first", "between", "second"]
    for name, node in zip(names, model.graph.node, strict=True):
        node.name = name
        note = node.metadata_props.add()
        note.key, note.value = "pkg.torch.onnx.name_scopes", f"['', '{name}', 'call']"
    compiled = quantize(model)
    after = _loaded(compiled)
    assert [(node.op_type, node.name) for node in after.graph.node] == [
        ("MatMulNBits", "first"),
        ("Relu", "between"),
        ("MatMulNBits", "second"),
    ]
    for name, node in zip(names, after.graph.node, strict=True):
        notes = {note.key: note.value for note in node.metadata_props}
        assert notes["pkg.torch.onnx.name_scopes"] == f"['', '{name}', 'call']"
    assert list(after.graph.input) == list(model.graph.input)
    assert list(after.graph.output) == list(model.graph.output)
    assert {e.key: e.value for e in after.metadata_props}["author"] == "someone"
    assert (after.doc_string, after.producer_name) == ("words", "exporter")
    _check(model, {"x": _x(3, 64)}, compiled, EIGHT_BIT)


@pytest.mark.parametrize("opset", [11, 17, 21])
def test_products_declare_their_outputs(opset: int, quantize: Compile) -> None:
    model = make_model(
        "g (float[M,64] x) => (float[M,32] z) { h = MatMul(x, w1) r = Relu(h) y = Gemm(r, w2, b) z = Relu(y) }",
        {"w1": weight(64, 96), "w2": weight(96, 32, seed=1), "b": weight(32)}, opset=opset, ir_version=7,
    )  # fmt: skip
    after = _loaded(quantize(model))
    declared = {
        v.name: [d.dim_value or d.dim_param for d in v.type.tensor_type.shape.dim]
        for v in after.graph.value_info
    }
    outputs = [n.output[0] for n in after.graph.node if n.op_type == "MatMulNBits"]
    assert [declared[name] for name in outputs] == [["M", 96], ["M", 32]]


def test_a_plan_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = save_model(_mlp(), tmp_path)
    made = dry_run(path, "w4a16-awq").plan
    assert [planned.weight.name for planned in made.quantized] == ["w1", "w2"]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["normalize", "quantize_weights"])
def test_stopping_after_a_pass_leaves_a_valid_model(name: str, quantize: Compile) -> None:
    model = _mlp()
    compiled = quantize(model, options=Options(stop_after=name))
    assert ("DequantizeLinear" in op_types(_loaded(compiled))) == (name == "quantize_weights")
    _check(model, {"x": _x(5, 64)}, compiled, EIGHT_BIT)


# ---- graphs that ONNX Runtime's optimizer changes ----


def test_nodes_without_names_and_with_equal_names(quantize: Compile) -> None:
    model = make_model(
        "g (float[M,64] x) => (float[M,64] y) { [n] h = MatMul(x, v) [n] r = MatMul(h, w) y = MatMul(r, u) }",
        {"v": weight(64, 64), "w": weight(64, 64, seed=1), "u": weight(64, 64, seed=2)},
    )
    compiled = quantize(model)
    assert compiled.report.running == {"MatMulNBits": 3}


def test_a_product_that_nothing_reads(quantize: Compile) -> None:
    model = make_model(
        "g (float[M,64] x) => (float[M,64] y) { dead = MatMul(x, v) y = MatMul(x, w) }",
        {"v": weight(64, 64), "w": weight(64, 64, seed=1)},
    )
    compiled = quantize(model)
    assert compiled.report.running == {"MatMulNBits": 1}


def test_a_product_of_a_constant(quantize: Compile) -> None:
    model = make_model(
        "g (float[M,64] x) => (float[M,64] y) { c = MatMul(table, v) d = Add(x, c) y = MatMul(d, w) }",
        {"table": weight(1, 64), "v": weight(64, 64), "w": weight(64, 64, seed=1)},
    )
    compiled = quantize(model)
    _check(model, {"x": _x(5, 64)}, compiled, EIGHT_BIT)


def test_the_same_product_twice(quantize: Compile) -> None:
    model = make_model(
        "g (float[M,64] x) => (float[M,64] y) { a = MatMul(x, w) r = Relu(a) b = MatMul(x, w) y = Add(r, b) }",
        {"w": weight(64, 64)},
    )
    compiled = quantize(model)
    _check(model, {"x": _x(5, 64)}, compiled, EIGHT_BIT)


def test_a_branch_on_a_constant(quantize: Compile) -> None:
    model = make_model(
        """g (float[M,64] x) => (float[M,64] y) {
        c = Cast<to=9>(flag)
        y = If(c) <then_branch = t () => (float[M,64] z) { z = MatMul(x, v) }, else_branch = e () => (float[M,64] q) { q = Neg(x) }> }""",
        {"v": weight(64, 64), "flag": np.array(1, np.int64)},
    )
    compiled = quantize(model)
    _check(model, {"x": _x(5, 64)}, compiled, EIGHT_BIT)


@pytest.mark.parametrize("shape", [(1, 32), (1, 1, 32), (1,), (5, 1)])
def test_biases_of_other_shapes(shape: tuple[int, ...], quantize: Compile) -> None:
    model = make_model(
        "g (float[5,64] x) => (float[A,B,C] q) { h = MatMul(x, w) y = Add(h, b) q = Relu(y) }".replace(
            "[A,B,C]", "[1,5,32]" if len(shape) == 3 else "[5,32]"
        ),
        {"w": weight(64, 32), "b": weight(*shape)},
    )
    compiled = quantize(model)
    assert compiled.report.running == {"MatMulNBits": 1}
    _check(model, {"x": _x(5, 64)}, compiled, EIGHT_BIT)
