"""UseOwnKernels: which products our operator takes over, and that nothing else changes."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from qcompiler.graph.operator_body import OUR_DOMAIN
from qcompiler.passes.use_own_kernels import UseOwnKernels
from tests.small_models import Array, apply_pass, assert_equal_outputs, make_model, op_types, run, weight

SIZES = "K=32, N=16, bits=8, block_size=32"
ROUNDING = 1e-6


def _model(
    body: str, *, inputs: str = "float[M,32] x", outputs: str = "float[M,16] y", **weights: Array
) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    constants = {
        "b": rng.integers(0, 256, (16, 1, 32)).astype(np.uint8), "s": np.full((16, 1), 0.01, np.float32), "c": weight(16, seed=1),
        **weights,
    }  # fmt: skip
    return make_model(f"g ({inputs}) => ({outputs}) {{ {body} }}", constants, domains={"com.microsoft": 1})


def _product(inputs: str = "x, b, s", level: int = 4, sizes: str = SIZES) -> str:
    return f"y = com.microsoft.MatMulNBits<{sizes}, accuracy_level={level}>({inputs})"


def _x() -> Array:
    return np.random.default_rng(1).standard_normal((3, 32)).astype(np.float32)


POINTS = {"z": np.full((16, 1), 99, np.uint8)}


@pytest.mark.parametrize(
    ("inputs", "count"), [("x, b, s", 3), ("x, b, s, z", 4), ("x, b, s, , , c", 5), ("x, b, s, z, , c", 5)]
)
def test_it_takes_over_the_node_on_the_same_bytes(inputs: str, count: int) -> None:
    model = _model(_product(inputs), **POINTS)
    after, modified = apply_pass(UseOwnKernels(), model)
    assert modified
    (node,) = after.graph
    assert (node.domain, node.op_type, len(node.inputs)) == (OUR_DOMAIN, "MatMulNBits", count)
    assert node.inputs[1] is after.graph.initializers["b"]
    assert (OUR_DOMAIN, "MatMulNBits", "") in after.functions
    assert_equal_outputs(
        run(model, {"x": _x()}), run(after, {"x": _x()}), ROUNDING
    )  # no library of ours: the body runs
    assert not apply_pass(UseOwnKernels(), after)[1]


@pytest.mark.parametrize(("level", "ours"), [(4, 4), (1, 1), (0, 1), (None, 1)])
def test_the_level_goes_along_and_one_left_to_the_kernel_is_float32(level: int | None, ours: int) -> None:
    model = _model(
        _product().replace(", accuracy_level=4", "" if level is None else f", accuracy_level={level}")
    )
    after, _ = apply_pass(UseOwnKernels(), model)
    (node,) = after.graph
    assert node.attributes.get_int("accuracy_level") == ours
    assert_equal_outputs(run(model, {"x": _x()}), run(after, {"x": _x()}), ROUNDING)


def test_name_and_notes_stay() -> None:
    model = ir.serde.deserialize_model(_model(_product()))
    model.graph[0].name = "head"
    model.graph[0].metadata_props["qcompiler.algorithm"] = "rtn"
    entry = UseOwnKernels()
    after, _ = apply_pass(entry, model)
    assert after.graph[0].name == "head" and after.graph[0].metadata_props["qcompiler.algorithm"] == "rtn"
    (lowered,) = entry.lowered
    assert (lowered.name, lowered.operator, lowered.packed) == ("head", "ai.qcompiler::MatMulNBits", "b")


def test_a_tied_weight_is_read_without_its_reshape() -> None:
    codes = np.random.default_rng(0).integers(0, 256, (16, 32)).astype(np.uint8)
    body = f"r = Reshape(rows, shape) {_product('x, r, s')} e = Gather(rows, i)"
    constants = {"rows": codes, "shape": np.array([16, 1, 32]), "i": np.array([3])}
    model = _model(body, outputs="float[M,16] y, uint8[1,32] e", **constants)
    after, _ = apply_pass(UseOwnKernels(), model)
    assert sorted(op_types(after)) == ["Gather", "MatMulNBits"]
    assert "shape" not in after.graph.initializers
    assert_equal_outputs(run(model, {"x": _x()}), run(after, {"x": _x()}), ROUNDING)


def test_bits_that_the_stock_node_leaves_out_are_written() -> None:
    codes = np.random.default_rng(0).integers(0, 256, (16, 1, 16)).astype(np.uint8)
    model = _model(_product(sizes="K=32, N=16, block_size=32"), b=codes)
    after, _ = apply_pass(UseOwnKernels(), model)
    assert after.graph[0].attributes.get_int("bits") == 4
    assert_equal_outputs(run(model, {"x": _x()}), run(after, {"x": _x()}), ROUNDING)


@pytest.mark.parametrize(
    ("body", "inputs", "constants", "reason"),
    [
        (_product(level=2), "float[M,32] x", {}, "accuracy_level 2: our kernels take activations in 8 bits or in float32"),
        (_product(level=3), "float[M,32] x", {}, "set accuracy_level: 4 or 1"),
        (_product("x, b, s, , g"), "float[M,32] x", {"g": np.zeros(32, np.int32)}, "g_idx"),
        (_product("x, b, s, z"), "float[M,32] x", {"z": np.zeros((16, 1), np.float32)}, "its zero points are floats"),
        (_product("x, b2, s"), "float[M,32] x, uint8[16,1,32] b2", {}, "its weight is not constant"),
        (_product("x, b, s2"), "float[M,32] x, float[16,1] s2", {}, "its weight is not constant"),
        (f"h = Cast<to=10>(x) t = Cast<to=10>(s) {_product('h, b, s16').replace('y =', 'p =')} y = Cast<to=1>(p)",
         "float[M,32] x", {"s16": np.full((16, 1), 0.01, np.float16)}, "our kernels take float32"),
        (_product("x, b, s2"), "float[M,32] x", {"s2": np.full(16, 0.01, np.float32)}, "its scales have shape [16]; reshape them to [N, G] = [16, 1]"),
        (f"r = com.microsoft.Reshape(b, one) {_product('x, r, s')}", "float[M,32] x", {"one": np.array([16, 1, 32])}, "its weight is not constant"),
        (_product(sizes=f"{SIZES}, weight_prepacked=0"), "float[M,32] x", {}, "it has the attribute weight_prepacked"),
        (_product(sizes="K=32, N=16, bits=5, block_size=32"), "float[M,32] x", {}, "5 bits: our operator of this name takes 2, 4 and 8"),
        (_product(sizes="K=32, N=16, bits=8"), "float[M,32] x", {}, "it has no attribute block_size"),
        (_product(sizes="K=32, N=16, bits=8, block_size=0"), "float[M,32] x", {}, "block_size 0: our kernels take multiples of 16"),
    ],
)  # fmt: skip
def test_what_stays_says_why(body: str, inputs: str, constants: dict[str, Array], reason: str) -> None:
    model = _model(body, inputs=inputs, **constants)
    entry = UseOwnKernels()
    after, modified = apply_pass(entry, model)
    assert not modified and not after.functions
    (line,) = entry.left
    assert reason in line and line.endswith("ONNX Runtime's own kernel runs it")


def test_branches_are_taken_over_too() -> None:
    body = (
        "y = If (c0) <"
        f"then_branch = t () => (float[M,16] yt) {{ {_product().replace('y =', 'yt =')} }},"
        "else_branch = e () => (float[M,16] ye) { z = Slice(x, zero, sixteen, one) ye = Neg(z) } >"
    )
    constants = {"zero": np.array([0]), "sixteen": np.array([16]), "one": np.array([1])}
    model = _model(body, inputs="bool c0, float[M,32] x", **constants)
    after, modified = apply_pass(UseOwnKernels(), model)
    assert modified
    for chosen in (True, False):
        feeds = {"c0": np.array(chosen), "x": _x()}
        assert_equal_outputs(run(model, feeds), run(after, feeds), ROUNDING)
