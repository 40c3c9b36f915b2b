"""Weights in the kernels' own order: the same bits as row after row, used where they are, and sizes that lie are refused."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from qcompiler.errors import InputError
from qcompiler.graph import model_file, own_dynamic_matmul
from qcompiler.graph.activation import ALPHA, KINDS
from qcompiler.graph.own_matmul_nbits import LEVEL, OP, THREE, with_activation
from qcompiler.passes.lay_out_for_kernels import LayOutForKernels
from qcompiler.runtime import create_session
from tests.gathered_table import GatheredTable
from tests.nbits_product import Array, Product
from tests.small_models import make_model

K = 100


def _outputs(model: ir.Model, folder: Path, feeds: dict[str, Array]) -> list[Array]:
    path = model_file.save(model, folder)
    found: list[Array] = create_session(path).run(None, feeds)
    return found


def _check_alike(model: onnx.ModelProto, folder: Path, feeds: dict[str, Array]) -> ir.Model:
    """The model with its weights laid out, which has the same outputs to the bit."""
    rows = ir.serde.deserialize_model(model)
    rows.functions.clear()
    expected = _outputs(rows, folder / "rows", feeds)
    lines = ir.serde.deserialize_model(model)
    lines.functions.clear()
    entry = LayOutForKernels()
    assert entry(lines).modified and not entry.left
    for one, other in zip(expected, _outputs(lines, folder / "lines", feeds), strict=True):
        np.testing.assert_array_equal(one, other)
    return lines


def _activations(m: int, k: int = K) -> Array:
    return np.random.default_rng(m).standard_normal((m, k)).astype(np.float32)


@pytest.mark.parametrize("m", [1, 13])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_products(bits: int, symmetric: bool, m: int, tmp_path: Path) -> None:
    model = Product(bits=bits, symmetric=symmetric, biased=True).model([None, K])
    _check_alike(model, tmp_path, {"x": _activations(m)})


@pytest.mark.parametrize("block_size", [16, 48, 128, 256])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (17, 300), (200, 256)])
@pytest.mark.parametrize("bits", [3, 4])
def test_blocks(bits: int, n: int, k: int, block_size: int, tmp_path: Path) -> None:
    model = Product(n, k, bits, block_size).model([None, k])
    _check_alike(model, tmp_path, {"x": _activations(5, k)})


def test_scales_of_float16_become_float32(tmp_path: Path) -> None:
    model = Product(scale_type=np.float16).model([None, K])
    lines = _check_alike(model, tmp_path, {"x": _activations(3)})
    assert lines.graph.initializers["scales"].dtype == ir.DataType.FLOAT


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_float_activations(bits: int, tmp_path: Path) -> None:
    model = Product(bits=bits, attributes={LEVEL: 1}).model([None, K])
    _check_alike(model, tmp_path, {"x": _activations(13)})


ALONE = [own_dynamic_matmul.OP, *(with_activation(kind, base) for base in (OP, THREE) for kind in KINDS)]


@pytest.mark.parametrize("m", [1, 13])
@pytest.mark.parametrize("attributes", [{}, {LEVEL: 1}], ids=["int8", "float32"])
@pytest.mark.parametrize("op", ALONE)
def test_other_operators_of_one_product(op: str, attributes: dict[str, int], m: int, tmp_path: Path) -> None:
    product = Product(bits=3 if op.startswith(THREE) else 4, biased=True, attributes=attributes)
    model = product.model([None, K])
    (node,) = model.graph.node
    node.op_type = op
    if op.endswith("QuickGelu"):
        node.attribute.append(helper.make_attribute(ALPHA, 1.702))
    _check_alike(model, tmp_path, {"x": _activations(m)})


JOINED = {
    "MatMulNBitsPair": ("y_0, y_1", ""),
    "MatMulNBitsTriple": ("y_0, y_1, y_2", ""),
    "MatMulNBitsSwiGlu": ("y_0", ""),
    "MatMulNBitsAdd": ("y_0", ", r"),
    "MatMul3BitsPair": ("y_0, y_1", ""),
    "MatMul3BitsTriple": ("y_0, y_1, y_2", ""),
    "MatMul3BitsSwiGlu": ("y_0", ""),
    "MatMul3BitsAdd": ("y_0", ", r"),
}


def _joined(op: str, n: int, symmetric: tuple[bool, ...], level: int) -> onnx.ModelProto:
    """A node of one product for each of ``symmetric``; all have N columns but the last of a triple, which has fewer."""
    outputs, residual = JOINED[op]
    bits = 3 if "3Bits" in op else 4
    columns = [n if index < 2 else n - 7 for index in range(len(symmetric))]
    inputs, weights = [], {}
    for index, (rows, alone) in enumerate(zip(columns, symmetric, strict=True)):
        product = Product(rows, bits=bits, symmetric=alone, biased=index == 0)
        weights |= {f"{name}_{index}": array for name, array in product.constants.items()}
        inputs += [f"{name}_{index}" if name in product.constants else "" for name in ("codes", "scales", "zero_points", "bias")]  # fmt: skip
    names = ["N"] if len(symmetric) == 1 else [f"N_{index}" for index in range(len(symmetric))]
    sizes = ", ".join(f"{name} = {rows}" for name, rows in zip(names, columns, strict=True))
    given = f"float[M,{K}] x" + (f", float[M,{n}] r" if residual else "")
    return make_model(
        f"g ({given}) => ({', '.join(f'float[M,P_{i}] {y}' for i, y in enumerate(outputs.split(', ')))}) {{"
        f"{outputs} = ai.qcompiler.{op} <K = {K}, {sizes}, bits = {bits}, block_size = 32, {LEVEL} = {level}>"
        f" (x, {', '.join(inputs)}{residual}) }}",
        weights,
        domains={"ai.qcompiler": 1},
    )


@pytest.mark.parametrize("m", [1, 13])
@pytest.mark.parametrize("level", [4, 1])
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("op", JOINED)
def test_what_is_joined(op: str, mixed: bool, level: int, m: int, tmp_path: Path) -> None:
    count = 3 if "Triple" in op else 1 if "Add" in op else 2
    symmetric = tuple(mixed and index == 1 for index in range(count))
    feeds = {"x": _activations(m)}
    if "Add" in op:
        feeds["r"] = _activations(m, 40)
    _check_alike(_joined(op, 40, symmetric, level), tmp_path, feeds)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("block_size", [32, 256])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_gathered_rows(bits: int, block_size: int, symmetric: bool, tmp_path: Path) -> None:
    table = GatheredTable(k=300, bits=bits, block_size=block_size, symmetric=symmetric)
    _check_alike(table.model([None]), tmp_path, {"indices": np.array([0, 49, -1, 16, 15, 31, -50])})


def _refused(attributes: dict[str, int] | None = None, **constants: Array) -> onnx.ModelProto:
    made = Product().laid_out()
    changed = replace(
        made, constants={**made.constants, **constants}, attributes={**made.attributes, **(attributes or {})}
    ).model()
    del changed.functions[:]
    return changed


REFUSED: list[tuple[Callable[[], onnx.ModelProto], str]] = [
    (lambda: _refused({"layout": 2}), "attribute layout is 2; 1 and 0 are possible"),
    (lambda: _refused({"layout": -1}), "attribute layout is -1"),
    (lambda: _refused({"layout": 0}), "codes has 3072 elements; the attributes make it 2560"),
    (lambda: _refused({"N": 49}), "codes has 3072 elements; the attributes make it 4096"),
    (lambda: _refused({"K": 300}), "codes has"),
    (lambda: _refused({"K": 1 << 31, "N": 1 << 31}), "codes has"),
    (lambda: _refused({"bits": 3}), "codes has"),
    (lambda: _refused({"block_size": 16}), "codes has"),
    (lambda: _refused(codes=np.zeros(0, np.uint8)), "codes has 0 elements"),
    (lambda: _refused(scales=np.ones((40, 4), np.float32)), "scales has 160 elements; the attributes make it 192"),
    (lambda: _refused(scales=np.ones((3, 4, 16), np.float16)), "scales are not float32"),
    (lambda: _refused(zero_points=np.zeros((3, 4, 8), np.uint8)), "zero_points has 96 elements"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "said"), REFUSED, ids=[said for _, said in REFUSED])
def test_a_bad_node_is_refused(make: Callable[[], onnx.ModelProto], said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said):
        _outputs(ir.serde.deserialize_model(make()), tmp_path, {})


def test_what_fills_up_may_be_anything(tmp_path: Path) -> None:
    expected = Product(17, 70, block_size=32).laid_out()
    noisy = {name: array.copy() for name, array in expected.constants.items()}
    noisy["codes"].reshape(2, 3, 4, 16, 4)[1, :, :, 1:] = 255  # rows from 17 on
    noisy["codes"].reshape(2, 3, 4, 16, 4)[:, 2, 1:] = 255  # k from 72 on
    noisy["scales"][1, :, 1:] = np.nan
    noisy["zero_points"][1, :, 1:] = 255
    outputs = []
    for made in (expected, replace(expected, constants=noisy)):
        model = ir.serde.deserialize_model(made.model([None, 70]))
        outputs += _outputs(model, tmp_path / str(len(outputs)), {"x": _activations(5, 70)})
    np.testing.assert_array_equal(*outputs)
