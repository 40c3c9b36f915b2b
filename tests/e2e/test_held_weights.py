"""compile() finds a weight however a model holds it, and stores it once however often it is used."""

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest

from tests.compiled_models import (
    BODIES,
    EIGHT_BIT,
    FOUR_BIT,
    Compile,
    check_outputs,
    check_rounding,
    count_of,
    loaded_model,
    normal,
    stored_weight,
    tied_decoder,
)
from tests.small_models import Array, constant_node, make_model, op_types, relative_error, run, weight


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
    check_outputs(model, {"x": normal(5, 64)}, compiled, EIGHT_BIT)
    assert "w" not in {i.name for i in loaded_model(compiled).graph.initializer}


@pytest.mark.parametrize("recipe", ["w8a16-rtn", "w4a16-awq"])
def test_initializers_that_a_caller_may_override_stay_inputs(recipe: str, quantize: Compile) -> None:
    model = make_model(
        "g (float[M,64] x, float[64,96] w1, float[96] b) => (float[M,32] y)"
        " { h = MatMul(x, w1) i = Add(h, b) r = Relu(i) y = MatMul(r, w2) }",
        {"w1": weight(64, 96), "b": weight(96), "w2": weight(96, 32, seed=1)},
    )
    compiled = quantize(model, recipe)
    assert [value.name for value in loaded_model(compiled).graph.input] == ["x", "b"]
    tolerance = EIGHT_BIT if recipe == "w8a16-rtn" else FOUR_BIT
    for feed in ({"x": normal(5, 64)}, {"x": normal(5, 64), "b": np.ones(96, np.float32)}):
        check_outputs(model, feed, compiled, tolerance)


def test_bias_is_fused_into_the_product(quantize: Compile) -> None:
    model = make_model(
        "g (float[M,64] x) => (float[M,32] y) { h = MatMul(x, w) y = Add(b, h) }",
        {"w": weight(64, 32), "b": weight(32)},
    )
    compiled = quantize(model)
    assert op_types(loaded_model(compiled)) == ["MatMulNBits"]
    check_outputs(model, {"x": normal(5, 64)}, compiled, EIGHT_BIT)


def test_gemm_with_all_its_attributes(quantize: Compile) -> None:
    model = make_model(
        "g (float[64,M] x, float[M,32] c) => (float[M,32] y) { y = Gemm<transA=1, transB=1, alpha=0.5, beta=3.0>(x, w, c) }",
        {"w": weight(32, 64, scale=0.1)},
    )
    compiled = quantize(model)
    assert count_of(compiled, "Gemm") == 0
    check_outputs(model, {"x": normal(64, 5), "c": normal(5, 32)}, compiled, EIGHT_BIT)


# ---- float types ----


@pytest.mark.parametrize("recipe", ["w8a16-rtn", "w4a16-rtn"])
def test_float16_keeps_its_types(quantize: Compile, recipe: str) -> None:
    model = make_model(
        "g (float16[M,64] x) => (float16[M,32] y) { h = MatMul(x, w1) r = Relu(h) y = MatMul(r, w2) }",
        {"w1": weight(64, 96, dtype=np.float16), "w2": weight(96, 32, seed=1, dtype=np.float16)},
    )
    compiled = quantize(model, recipe)
    assert compiled.report.running == {"MatMulNBits": 2}
    check_outputs(
        model,
        {"x": normal(5, 64, dtype=np.float16)},
        compiled,
        EIGHT_BIT if recipe == "w8a16-rtn" else FOUR_BIT,
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
    x = normal(5, 64, dtype=bfloat16)
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
    packed = {node.input[1] for node in loaded_model(compiled).graph.node if node.op_type == "MatMulNBits"}
    assert len(packed) == 1
    check_outputs(model, {"x": normal(5, 64)}, compiled, EIGHT_BIT)


@pytest.mark.parametrize("k", [64, 96, 100, 40, 17])
@pytest.mark.parametrize(
    ("bits", "symmetric"), [(8, True), (8, False), (4, True), (4, False), (2, True), (3, False)]
)
def test_tied_embedding_and_head_are_one_tensor(
    quantize: Compile, k: int, bits: int, symmetric: bool
) -> None:
    model = tied_decoder(k)
    settings = [f"head.bits={bits}", f"head.symmetric={str(symmetric).lower()}", "head.algorithm=rtn"]
    compiled = quantize(model, settings=settings)
    assert compiled.report.running == {"MatMulNBits": 2, "GatherBlockQuantized": 1}
    tied = next(layer for layer in compiled.report.layers if layer.role == "head")
    assert any("tied" in note for note in tied.notes)
    stored = [i for i in loaded_model(compiled).graph.initializer if i.data_type == onnx.TensorProto.UINT8]
    large = [
        i
        for i in stored
        if np.prod(i.dims) >= 80 * k * bits // 8 // 2 and i.dims[0] == 80 and "zero" not in i.name
    ]
    assert len(large) == 1, [(i.name, list(i.dims)) for i in stored]
    table, steps = stored_weight(compiled, "GatherBlockQuantized", k)
    original = weight(80, k, scale=1.0)
    check_rounding(original, table, steps, symmetric)
    linear = weight(k, k, seed=1)  # 8 bits
    embedded = table[:6]
    expected = (embedded @ linear + embedded) @ table.T
    got = run(compiled.path, {"input_ids": np.arange(6, dtype=np.int64)[None]})["logits"][0]
    assert relative_error(expected, got) <= EIGHT_BIT


def test_tied_weight_takes_its_bytes_once_in_the_file(quantize: Compile) -> None:
    model = tied_decoder(256, 512)
    compiled = quantize(model, settings=["head=float"])
    with_float_head = compiled.path.stat().st_size + compiled.path.with_name("model.onnx.data").stat().st_size
    compiled = quantize(model)
    total = compiled.path.stat().st_size + compiled.path.with_name("model.onnx.data").stat().st_size
    quantized = 512 * 256 + 512 * 8 * 4 + 256 * 256 + 256 * 8 * 4  # codes and scales of groups of 32
    assert total < quantized + 8192  # graph and alignment; a second copy would be 131072 bytes
    assert with_float_head > 512 * 256 * 4


# ---- control flow and functions ----


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
        check_outputs(model, {"x": normal(5, 64), "c": np.array(c)}, compiled, tolerance)


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
        check_outputs(model, {"x": normal(5, 64), "c": np.array(c)}, compiled, EIGHT_BIT)


def test_a_function_called_twice_has_its_weight_quantized_once(quantize: Compile) -> None:
    model = _function_model()
    compiled = quantize(model)
    assert len(compiled.report.layers) == 1
    assert compiled.report.running == {"MatMulNBits": 2}
    check_outputs(model, {"x": normal(5, 64)}, compiled, EIGHT_BIT)


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
