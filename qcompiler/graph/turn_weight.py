"""Rewrite a stored weight in another basis of its input or output channels: W becomes R_n^T (W diag(fold)) R_k, in the type it has.

One weight at a time, computed in float32 and appended to the spill file; nothing of it stays in memory. Where only the stored rows are
turned that goes block by block; where what lies across them is turned too, the whole weight is held in float32 meanwhile.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from qcompiler.graph.mapped_tensor import MappedTensor
from qcompiler.graph.weight_store import WeightStore
from qcompiler.graph.weights import Weight
from qcompiler.quant.rotation import Rotation

Floats = npt.NDArray[np.float32]

BLOCK = 1 << 22  # numbers at work at a time: 16 MB, and as much again inside a rotation


@dataclass
class WeightTurn:
    """What becomes of W [N, K].

    Attributes:
        fold: float32 [K], multiplies the input channels before they are turned; or None.
        columns: rotation of the K input channels, in blocks where it is smaller; or None.
        rows: the same of the N output channels.
    """

    fold: Floats | None = None
    columns: Rotation | None = None
    rows: Rotation | None = None


def turn_weight(weight: Weight, turn: WeightTurn, store: WeightStore) -> MappedTensor:
    """The weight's numbers in the new basis, in the store; shape and type as they are."""
    tensor = weight.source.const_value
    assert tensor is not None
    stored = tensor.numpy().reshape(weight.stored_shape)
    across, along = (turn.columns, turn.rows) if weight.transposed else (turn.rows, turn.columns)
    fold = None if turn.fold is None else turn.fold[:, None] if weight.transposed else turn.fold[None, :]
    blocks = (
        _rows_turned(stored, fold, along) if across is None else _both_turned(stored, fold, across, along)
    )
    dtype = tensor.dtype
    return store.add(
        (block.astype(dtype.numpy()) for block in blocks), dtype, tensor.shape.numpy(), f"{tensor.name}"
    )


def _rows_turned(stored: npt.NDArray[Any], fold: Floats | None, along: Rotation | None) -> Iterator[Floats]:
    """Blocks of rows, each row turned."""
    rows = max(1, BLOCK // max(1, stored.shape[1]))
    for start in range(0, len(stored), rows):
        block = stored[start : start + rows].astype(np.float32)
        if fold is not None:
            block *= fold[start : start + rows] if fold.shape[1] == 1 else fold
        yield block if along is None else along.apply(block)


def _both_turned(
    stored: npt.NDArray[Any], fold: Floats | None, across: Rotation, along: Rotation | None
) -> Iterator[Floats]:
    """Columns turned in blocks, then the rows of the whole."""
    whole = stored.astype(np.float32)
    if fold is not None:
        whole *= fold
    columns = max(1, BLOCK // max(1, len(whole)))
    for start in range(0, whole.shape[1], columns):
        block = whole[:, start : start + columns]
        block[:] = across.apply(np.ascontiguousarray(block.T)).T
    yield from _rows_turned(whole, None, along)


def bias_of(weight: Weight, offset: Floats, rows: Rotation | None) -> Floats:
    """float32 [N]: what an offset [K] of the input adds to the output, in the basis that the output will have."""
    values = weight.array()
    n = weight.shape[0]
    bias = np.empty(n, np.float32)
    step = max(1, BLOCK // max(1, weight.shape[1]))
    for start in range(0, n, step):
        bias[start : start + step] = values[start : start + step].astype(np.float32) @ offset
    return bias if rows is None else rows.apply(bias)
