"""turn_weight: R_n^T (W diag(fold)) R_k, however W is stored, in its own type, and in blocks as in one piece."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from qcompiler.graph import turn_weight as module
from qcompiler.graph.turn_weight import WeightTurn, bias_of, turn_weight
from qcompiler.graph.weight_store import WeightStore
from qcompiler.graph.weights import Weight
from qcompiler.quant.rotation import make_rotation
from tests.small_models import Array, relative_error

N, K = 24, 48
ROWS, COLUMNS, HEADS = make_rotation(N, 1), make_rotation(K, 2), make_rotation(8, 3)
FOLD = np.random.default_rng(5).uniform(0.5, 2, K).astype(np.float32)
VALUES = np.random.default_rng(4).standard_normal((N, K))
TURNS = [
    WeightTurn(),
    WeightTurn(columns=COLUMNS),
    WeightTurn(FOLD, COLUMNS),
    WeightTurn(rows=ROWS),
    WeightTurn(FOLD, COLUMNS, ROWS),
    WeightTurn(FOLD, HEADS, HEADS),
]


def _weight(transposed: bool, dtype: ir.DataType = ir.DataType.FLOAT) -> Weight:
    stored = (VALUES.T if transposed else VALUES).astype(dtype.numpy())
    tensor = ir.Tensor(np.ascontiguousarray(stored), dtype=dtype, name="w")
    source = ir.Value(name="w", type=ir.TensorType(dtype), shape=ir.Shape(stored.shape), const_value=tensor)
    return Weight("w", source, (stored.shape[0], stored.shape[1]), transposed, dtype, [])


def _expected(turn: WeightTurn) -> Array:
    """By dense matrices, float64; a rotation smaller than a side repeats along it."""
    turned = VALUES * (1 if turn.fold is None else turn.fold)
    if turn.columns is not None:
        turned = turned @ np.kron(np.eye(K // turn.columns.size), turn.columns.matrix())
    if turn.rows is not None:
        turned = np.kron(np.eye(N // turn.rows.size), turn.rows.matrix()).T @ turned
    return turned


@pytest.mark.parametrize("block", [100, 1 << 22])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("turn", TURNS)
def test_as_dense_matrices_say(
    turn: WeightTurn, transposed: bool, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BLOCK", block)
    tensor = turn_weight(_weight(transposed), turn, WeightStore(tmp_path))
    found = tensor.numpy().T if transposed else tensor.numpy()
    assert (
        relative_error(_expected(turn), found) <= 1e-5
    )  # sums of at most 48 float32 products, three times over


@pytest.mark.parametrize("dtype", [ir.DataType.FLOAT16, ir.DataType.BFLOAT16])
def test_the_type_stays(dtype: ir.DataType, tmp_path: Path) -> None:
    tensor = turn_weight(_weight(True, dtype), TURNS[4], WeightStore(tmp_path))
    assert tensor.dtype == dtype
    bits = 11 if dtype == ir.DataType.FLOAT16 else 8
    assert relative_error(_expected(TURNS[4]), tensor.numpy().T) <= 2.0 ** (1 - bits)  # two roundings


@pytest.mark.parametrize("transposed", [False, True])
def test_bias_of_an_offset(transposed: bool) -> None:
    offset = np.random.default_rng(6).standard_normal(K).astype(np.float32)
    expected = VALUES @ offset @ ROWS.matrix()
    assert relative_error(expected, bias_of(_weight(transposed), offset, ROWS)) <= 1e-5
