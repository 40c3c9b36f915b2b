"""LowerToMatMulNBits: products of our middle form become kernels that compute the same; everything else stays."""

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from qcompiler.graph.quantized import ALGORITHM_KEY, REASON_KEY, SCHEME_KEY
from qcompiler.passes.lower_to_matmul_nbits import LowerToMatMulNBits
from tests.small_models import Array, apply_pass, assert_equal_outputs, make_model, op_types, run

# The same codes and scales summed in another order: float32 roundings of up to 64 terms.
ROUNDING = 1e-5
N, K = 24, 64
SCOPES = "pkg.torch.onnx.name_scopes"


def _side(k: int, block: int) -> int:
    return -(-k // block)


def _middle(
    readers: str,
    signature: str = f"float[M,{K}] x) => (float[M,{N}] y",
    *,
    nk: bool = False,
    k: int = K,
    block: int = 32,
    dtype: Any = np.uint8,
    ours: bool = True,
) -> onnx.ModelProto:
    """A DequantizeLinear of codes [K, N] (or [N, K]) with a scale and zero point a block, yielding ``d``."""
    rng = np.random.default_rng(0)
    largest = 15 if dtype == ml_dtypes.uint4 else 255
    turn = (lambda array: array) if nk else np.transpose
    constants = {
        "codes": turn(rng.integers(0, largest + 1, (N, k))).astype(dtype),
        "s": turn(rng.uniform(0.01, 0.1, (N, _side(k, block)))).astype(np.float32),
        "z": turn(rng.integers(0, largest + 1, (N, _side(k, block)))).astype(dtype),
    }
    text = f"[w] d = DequantizeLinear<axis={1 if nk else 0}, block_size={block}>(codes, s, z)"
    model = make_model(f"g ({signature}) {{ {text} {readers} }}", constants)
    if ours:
        _note(model.graph.node[0], SCHEME_KEY, "any")
        _note(model.graph.node[0], ALGORITHM_KEY, "rtn")
        _note(model.graph.node[0], REASON_KEY, "recipe")
    return model


def _note(node: onnx.NodeProto, key: str, value: str) -> None:
    entry = node.metadata_props.add()
    entry.key, entry.value = key, value


def _x(*shape: int) -> Array:
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


def _check(model: onnx.ModelProto, **feed: Array) -> ir.Model:
    transform = LowerToMatMulNBits(0)
    after, modified = apply_pass(transform, model)
    assert modified
    assert not apply_pass(transform, after)[1], "a second run finds nothing"
    assert_equal_outputs(run(model, feed, optimize=False), run(after, feed), ROUNDING)
    return after


def _nodes(model: ir.Model, op_type: str) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == op_type]


@pytest.mark.parametrize("dtype", [np.uint8, ml_dtypes.uint4])
@pytest.mark.parametrize("block", [16, 64])
@pytest.mark.parametrize("nk", [False, True])
def test_a_product_is_one_node(nk: bool, block: int, dtype: Any) -> None:
    readers = "t = Transpose<perm=[1,0]>(d) [fc] y = MatMul(x, t)" if nk else "[fc] y = MatMul(x, d)"
    after = _check(_middle(readers, nk=nk, block=block, dtype=dtype), x=_x(3, K))
    assert op_types(after) == ["MatMulNBits"]
    attributes = {name: attribute.value for name, attribute in after.graph[0].attributes.items()}
    bits = 8 if dtype == np.uint8 else 4
    assert attributes == {"K": K, "N": N, "bits": bits, "block_size": block, "accuracy_level": 0}
    assert set(after.graph.initializers) == {"d.weight", "d.scales", "d.zero_points"}


@pytest.mark.parametrize("is_output", [True, False])
def test_names_and_notes_stay(is_output: bool) -> None:
    readers = "[fc] y = MatMul(x, d)" if is_output else "[fc] h = MatMul(x, d) y = Relu(h)"
    model = _middle(readers)
    _note(model.graph.node[1], SCOPES, "['', 'fc']")
    after = _check(model, x=_x(3, K))
    (node,) = _nodes(after, "MatMulNBits")
    assert node.name == "fc"
    assert node.outputs[0].name == ("y" if is_output else "h")
    assert dict(node.metadata_props) == {
        SCOPES: "['', 'fc']",
        SCHEME_KEY: "any",
        ALGORITHM_KEY: "rtn",
        REASON_KEY: "recipe",
    }


def test_the_accuracy_level_and_what_must_run_are_said() -> None:
    transform = LowerToMatMulNBits(4)
    after, _ = apply_pass(transform, _middle("[one] h = MatMul(x, d) [two] y = Relu(h)"))
    assert after.graph[0].attributes.get_int("accuracy_level") == 4
    (lowered,) = transform.lowered
    assert (lowered.name, lowered.op_type, lowered.packed) == ("one", "MatMulNBits", "d.weight")


def test_two_products_share_their_bytes() -> None:
    after = _check(
        _middle(
            "p = MatMul(x, d) q = MatMul(r, d) y = Add(p, q)",
            f"float[M,{K}] x, float[M,{K}] r) => (float[M,{N}] y",
        ),
        x=_x(3, K),
        r=_x(3, K) + 1,
    )
    first, second = _nodes(after, "MatMulNBits")
    assert first.inputs[1] is second.inputs[1]


IDS = np.array([[0, 5, N - 1]])


@pytest.mark.parametrize(("k", "block"), [(64, 32), (40, 32), (100, 16)])
def test_rows_of_a_table_are_gathered(k: int, block: int) -> None:
    signature = f"int64[B,S] i) => (float[B,S,{k}] y"
    after = _check(_middle("y = Gather(d, i)", signature, nk=True, k=k, block=block), i=IDS)
    expected = ["GatherBlockQuantized"] if k % block == 0 else ["GatherBlockQuantized", "Slice"]
    assert op_types(after) == expected, "a short last block's padding is cut off"


def test_a_table_tied_to_a_head_holds_its_bytes_once() -> None:
    readers = "e = Gather(d, i) t = Transpose<perm=[1,0]>(d) y = MatMul(e, t)"
    after = _check(_middle(readers, f"int64[B,S] i) => (float[B,S,{N}] y", nk=True), i=IDS)
    assert op_types(after) == ["Reshape", "GatherBlockQuantized", "MatMulNBits"]
    whole = [v for v in after.graph.initializers.values() if v.const_value and v.const_value.size >= N * K]
    assert [value.name for value in whole] == ["d.weight"]


@pytest.mark.parametrize("scales", [(N,), ()])
def test_a_scale_of_a_whole_row_or_weight_is_repeated_for_each_block(scales: tuple[int, ...]) -> None:
    model = make_model(
        f"g (float[M,{K}] x) => (float[M,{N}] y) {{ d = DequantizeLinear<axis=1>(codes, s) y = MatMul(x, d) }}",
        {
            "codes": np.random.default_rng(0).integers(-128, 128, (K, N)).astype(np.int8),
            "s": np.random.default_rng(1).uniform(0.01, 0.1, scales).astype(np.float32),
        },
    )
    _note(model.graph.node[0], SCHEME_KEY, "any")
    after = _check(model, x=_x(3, K))
    assert list(after.graph.initializers["d.scales"].shape or ()) == [N, 1]


@pytest.mark.parametrize(("readers", "signature", "ours"), [
    ("y = MatMul(x, d)", f"float[M,{K}] x) => (float[M,{N}] y", False),  # another tool's weight
    ("y = MatMul(d, x)", f"float[{N},M] x) => (float[{K},M] y", True),  # the weight on the left
    ("y = Add(d, x)", f"float[{K},{N}] x) => (float[{K},{N}] y", True),  # no product
    ("y = Gather<axis=1>(d, x)", f"int64[S] x) => (float[{K},S] y", True),  # columns
])  # fmt: skip
def test_near_misses(readers: str, signature: str, ours: bool) -> None:
    model = _middle(readers, signature, ours=ours)
    before = op_types(model)
    after, modified = apply_pass(LowerToMatMulNBits(0), model)
    assert not modified
    assert op_types(after) == before
    assert "com.microsoft" not in after.graph.opset_imports
    assert set(after.graph.initializers) == {"codes", "s", "z"}, "what nothing reads is not made"


def test_another_reader_keeps_the_float_weight() -> None:
    after = _check(
        _middle("p = MatMul(x, d) n = Abs(d) q = MatMul(x, n) y = Add(p, q)"),
        x=_x(3, K),
    )
    assert sorted(op_types(after)) == ["Abs", "Add", "DequantizeLinear", "MatMul", "MatMulNBits"]
