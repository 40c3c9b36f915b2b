"""LowerToMatMulBnb4: products of a codebook's middle form become one node that computes the same; everything else stays."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from qcompiler.algorithms import find
from qcompiler.graph import model_file
from qcompiler.graph.codebook_form import emit_codebook
from qcompiler.graph.quantized import ALGORITHM_KEY, SCHEME_KEY, register_constants
from qcompiler.graph.weight_store import WeightStore
from qcompiler.pass_manager import check_model
from qcompiler.passes.lower_to_matmul_bnb4 import LowerToMatMulBnb4, stays_plain
from qcompiler.quant.codebook import CodebookTensor
from qcompiler.quant.scheme import Granularity, QuantScheme
from tests.small_models import Array, assert_equal_outputs, make_model, op_types, run, weight

# The same weights summed in another order: float32 roundings of up to 64 terms; with float16 the plain form's are rounded first.
ROUNDING = {"float32": 1e-5, "float16": 2e-3}
N = 24


@pytest.fixture
def store(tmp_path: Path) -> Iterator[WeightStore]:
    with WeightStore(tmp_path / "work") as opened:
        yield opened


def _middle(
    readers: str, signature: str, tensor: CodebookTensor, store: WeightStore, layout: Any = "kn", kind: str = "float32"
) -> ir.Model:  # fmt: skip
    """The middle form of ``tensor``, which yields ``d`` to the readers."""
    side = "K,N" if layout == "kn" else "N,K"
    float_type = {"float32": "float", "float16": "float16"}[kind]
    sides = dict(zip("NK", tensor.shape, strict=True))
    shape = ",".join(str(sides[letter]) for letter in side.split(","))
    model = ir.from_proto(
        make_model(f"g ({signature}, {float_type}[{shape}] d) => ({float_type}[M,{N}] y) {{ {readers} }}")
    )
    given = model.graph.inputs.pop()
    out = {"float32": ir.DataType.FLOAT, "float16": ir.DataType.FLOAT16}[kind]
    nodes = emit_codebook(store, tensor, layout, "w", out)
    nodes[-1].metadata_props[ALGORITHM_KEY] = "mse"
    model.graph.insert_before(model.graph[0], nodes)
    for node in nodes:
        register_constants(model.graph, node)
    for user, index in tuple(given.uses()):
        user.replace_input_with(index, nodes[-1].outputs[0])
    return model


def _tensor(
    k: int, dtype: Any = "nf4", group: int = 32, double: bool = False, kind: Any = "float32"
) -> CodebookTensor:
    scheme = QuantScheme(4, True, Granularity.GROUP, group, kind, dtype, double)
    found = find("rtn").run(weight(N, k), None, scheme, None)
    assert isinstance(found, CodebookTensor)
    return found


def _x(*shape: int, dtype: Any = np.float32) -> Array:
    return np.random.default_rng(1).standard_normal(shape).astype(dtype)


def _applied(transform: LowerToMatMulBnb4, model: ir.Model) -> bool:
    modified = transform(model).modified
    check_model(model, "the pass")
    return modified


def _check(model: ir.Model, rounding: float = ROUNDING["float32"], **feed: Array) -> LowerToMatMulBnb4:
    before = run(model, feed, optimize=False)
    transform = LowerToMatMulBnb4()
    assert _applied(transform, model)
    assert not _applied(transform, model), "a second run finds nothing"
    for optimize in (False, True):
        assert_equal_outputs(before, run(model, feed, optimize), rounding)
    return transform


@pytest.mark.parametrize("dtype", ["nf4", "fp4"])
@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("k", [1, 7, 16, 17, 31, 32, 33, 48, 63, 64])
def test_a_product_is_one_node_whatever_k(k: int, double: bool, dtype: str, store: WeightStore) -> None:
    tensor = _tensor(k, dtype, double=double)
    model = _middle("[fc] y = MatMul(x, d)", f"float[M,{k}] x", tensor, store)
    transform = _check(model, x=_x(3, k))
    (node,) = [node for node in model.graph if node.op_type == "MatMulBnb4"]
    expected = _x(3, k) @ tensor.dequantize().T
    assert_equal_outputs({"y": expected}, run(model, {"x": _x(3, k)}), ROUNDING["float32"])
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    assert attributes == {"K": k, "N": N, "block_size": 32, "quant_type": int(dtype == "nf4")}
    assert (node.name, node.outputs[0].name) == ("fc", "y")
    assert dict(node.metadata_props) == {SCHEME_KEY: tensor.scheme.label, ALGORITHM_KEY: "mse"}
    assert [entry.name for entry in transform.lowered] == ["fc"]
    left = set(op_types(model)) - {"MatMulBnb4"}
    assert left == ({"Cast", "Mul", "Reshape", "Slice"} if double else set())


@pytest.mark.parametrize("group", [16, 64, 128, 256])
def test_every_block_size_of_the_kernel(group: int, store: WeightStore) -> None:
    _check(_middle("y = MatMul(x, d)", "float[M,40] x", _tensor(40, group=group), store), x=_x(3, 40))


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("k", [33, 64])
def test_float16(k: int, double: bool, store: WeightStore) -> None:
    tensor = _tensor(k, double=double, kind="float16")
    model = _middle("y = MatMul(x, d)", f"float16[M,{k}] x", tensor, store, kind="float16")
    _check(model, ROUNDING["float16"], x=_x(3, k, dtype=np.float16))


def test_two_products_share_their_bytes(store: WeightStore) -> None:
    readers = "p = MatMul(x, d) q = MatMul(r, d) y = Add(p, q)"
    model = _middle(readers, "float[M,40] x, float[M,40] r", _tensor(40), store)
    _check(model, x=_x(3, 40), r=_x(3, 40) + 1)
    assert op_types(model) == ["MatMulBnb4", "MatMulBnb4", "Add"]
    assert len(model.graph.initializers) == 2


@pytest.mark.parametrize("rank", [3, 4])
def test_leading_dimensions_stay(rank: int, store: WeightStore) -> None:
    shape = (2, 3, 5)[: rank - 1]
    sides = ",".join(map(str, shape))
    model = _middle(
        "h = MatMul(x, d) y = Reshape<allowzero=0>(h, s)",
        f"float[{sides},40] x, int64[2] s",
        _tensor(40),
        store,
    )
    _check(model, x=_x(*shape, 40), s=np.array([-1, N]))


def test_a_loaded_model_is_lowered_too(store: WeightStore, tmp_path: Path) -> None:
    model = _middle("y = MatMul(x, d)", "float[M,33] x", _tensor(33, double=True), store)
    loaded = model_file.load(model_file.save(model, tmp_path))
    _check(loaded, x=_x(3, 33))


def test_what_no_kernel_reads_stays(store: WeightStore) -> None:
    e2m1 = _middle("y = MatMul(x, d)", "float[M,32] x", _tensor(32, "e2m1"), store)
    assert not _applied(LowerToMatMulBnb4(), e2m1)
    small = _middle("y = MatMul(x, d)", "float[M,32] x", _tensor(32, group=8), store)
    assert not _applied(LowerToMatMulBnb4(), small)
    other = _middle(
        "h = MatMul(x, d) z = ReduceMax<keepdims=0>(d) y = Add(h, z)", "float[M,32] x", _tensor(32), store
    )
    assert not _applied(LowerToMatMulBnb4(), other)
    tied = _middle(
        "e = Gather(d, i) t = Transpose<perm=[1,0]>(d) y = MatMul(e, t)",
        "int64[M] i",
        _tensor(32),
        store,
        "nk",
    )
    assert not _applied(LowerToMatMulBnb4(), tied)


def test_why_a_weight_stays_plain() -> None:
    assert stays_plain("nf4", False) is None and stays_plain("fp4", False) is None
    assert "e2m1: MatMulBnb4 knows nf4 and fp4 alone" in (stays_plain("e2m1", False) or "")
    assert "nf4: no kernel looks up rows" in (stays_plain("nf4", True) or "")
