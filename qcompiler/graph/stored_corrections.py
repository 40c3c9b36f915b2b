"""What stands beside the codes of a weight, in the spill file, laid out as the products that read it want it."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from qcompiler.graph.mapped_tensor import MappedTensor
from qcompiler.graph.stored_quantized import SCALE_NAMES, SCALE_TYPES
from qcompiler.graph.weight_store import WeightStore
from qcompiler.quant.low_rank import LowRank
from qcompiler.quant.outlier_columns import OutlierColumns
from qcompiler.quant.outliers import Outliers, column_type
from qcompiler.quant.tensor import CorrectedTensor


@dataclass(frozen=True, slots=True, eq=False)
class StoredLowRank:
    """A ``LowRank`` whose factors are in the spill file.

    Attributes:
        down: B^T [K, r], what the activations are multiplied with first.
        up: A^T [r, N].
    """

    down: MappedTensor
    up: MappedTensor

    @property
    def rank(self) -> int:
        """r."""
        rank, _ = self.up.shape.numpy()
        return rank

    @property
    def n(self) -> int:
        """N."""
        _, n = self.up.shape.numpy()
        return n

    def low_rank(self) -> LowRank:
        """The part in memory."""
        left, right = (np.ascontiguousarray(t.numpy().astype(np.float32).T) for t in (self.up, self.down))
        return LowRank(left, right, SCALE_NAMES[self.up.dtype])

    def record(self) -> dict[str, Any]:
        """What ``_restore_low_rank`` needs; plain JSON."""
        return {
            "dtype": SCALE_NAMES[self.up.dtype],
            "shape": [self.n, self.down.shape.numpy()[0], self.rank],
            "down": self.down.offset,
            "up": self.up.offset,
        }


@dataclass(frozen=True, slots=True, eq=False)
class StoredOutliers:
    """``Outliers`` in the spill file, as SparseMatMul reads them.

    Attributes:
        values: [E]; columns: uint16 or int32 [E]; offsets: int32 [N + 1].
    """

    values: MappedTensor
    columns: MappedTensor
    offsets: MappedTensor
    k: int

    def outliers(self) -> Outliers:
        """The part in memory."""
        values, columns = self.values.numpy().astype(np.float32), self.columns.numpy().astype(np.int32)
        return Outliers(values, columns, self.offsets.numpy().copy(), self.k, SCALE_NAMES[self.values.dtype])

    def record(self) -> dict[str, Any]:
        """What ``_restore_outliers`` needs; plain JSON."""
        (count,), (offsets,) = self.values.shape.numpy(), self.offsets.shape.numpy()
        return {
            "dtype": SCALE_NAMES[self.values.dtype],
            "shape": [offsets - 1, self.k, count],
            "values": self.values.offset,
            "columns": self.columns.offset,
            "offsets": self.offsets.offset,
        }


@dataclass(frozen=True, slots=True, eq=False)
class StoredColumns:
    """``OutlierColumns`` in the spill file.

    Attributes:
        values: [C, N]: what the picked channels are multiplied with.
        places: int64 [C].
    """

    values: MappedTensor
    places: MappedTensor
    k: int

    def columns(self) -> OutlierColumns:
        """The part in memory."""
        values = np.ascontiguousarray(self.values.numpy().astype(np.float32).T)
        return OutlierColumns(values, self.places.numpy().copy(), self.k, SCALE_NAMES[self.values.dtype])

    def record(self) -> dict[str, Any]:
        """What ``_restore_columns`` needs; plain JSON."""
        count, n = self.values.shape.numpy()
        return {
            "dtype": SCALE_NAMES[self.values.dtype],
            "shape": [n, self.k, count],
            "values": self.values.offset,
            "places": self.places.offset,
        }


@dataclass(frozen=True, slots=True, eq=False)
class StoredCorrections:
    """All that stands beside one weight."""

    low_rank: StoredLowRank | None
    outliers: StoredOutliers | None
    columns: StoredColumns | None = None

    def record(self) -> dict[str, Any]:
        """What ``restore_corrections`` needs to find it again in the same spill file; plain JSON."""
        parts = {"low_rank": self.low_rank, "outliers": self.outliers, "columns": self.columns}
        return {name: None if part is None else part.record() for name, part in parts.items()}


def store_corrections(store: WeightStore, corrected: CorrectedTensor, name: str) -> StoredCorrections:
    """Appends what stands beside a weight to the spill file.

    Raises:
        ResourceError: the disk is full.
    """
    low_rank, outliers, columns = corrected.low_rank, corrected.outliers, corrected.columns
    return StoredCorrections(
        None if low_rank is None else _store_low_rank(store, low_rank, name),
        None if outliers is None else _store_outliers(store, outliers, name),
        None if columns is None else _store_columns(store, columns, name),
    )


def restore_corrections(store: WeightStore, record: dict[str, Any], name: str) -> StoredCorrections:
    """The same from what ``StoredCorrections.record`` gave, in the spill file of the same bytes.

    Raises:
        ValueError: the file ends before it.
    """
    low_rank, outliers, columns = (record[part] for part in ("low_rank", "outliers", "columns"))
    return StoredCorrections(
        None if low_rank is None else _restore_low_rank(store, low_rank, name),
        None if outliers is None else _restore_outliers(store, outliers, name),
        None if columns is None else _restore_columns(store, columns, name),
    )


def _store_low_rank(store: WeightStore, part: LowRank, name: str) -> StoredLowRank:
    dtype = SCALE_TYPES[part.dtype]
    down, up = (np.ascontiguousarray(factor.T.astype(dtype.numpy())) for factor in (part.right, part.left))
    return StoredLowRank(
        store.add(down, dtype, down.shape, f"{name}.down"), store.add(up, dtype, up.shape, f"{name}.up")
    )


def _restore_low_rank(store: WeightStore, record: dict[str, Any], name: str) -> StoredLowRank:
    dtype = SCALE_TYPES[record["dtype"]]
    n, k, rank = record["shape"]
    return StoredLowRank(
        store.at(record["down"], dtype, (k, rank), f"{name}.down"),
        store.at(record["up"], dtype, (rank, n), f"{name}.up"),
    )


def _store_outliers(store: WeightStore, part: Outliers, name: str) -> StoredOutliers:
    dtype = SCALE_TYPES[part.dtype]
    columns = part.columns.astype(column_type(part.k))
    return StoredOutliers(
        store.add(part.values.astype(dtype.numpy()), dtype, part.values.shape, f"{name}.outliers"),
        store.add(columns, ir.DataType.from_numpy(columns.dtype), columns.shape, f"{name}.columns"),
        store.add(part.offsets, ir.DataType.INT32, part.offsets.shape, f"{name}.offsets"),
        part.k,
    )


def _restore_outliers(store: WeightStore, record: dict[str, Any], name: str) -> StoredOutliers:
    n, k, count = record["shape"]
    columns = ir.DataType.from_numpy(np.dtype(column_type(k)))
    return StoredOutliers(
        store.at(record["values"], SCALE_TYPES[record["dtype"]], (count,), f"{name}.outliers"),
        store.at(record["columns"], columns, (count,), f"{name}.columns"),
        store.at(record["offsets"], ir.DataType.INT32, (n + 1,), f"{name}.offsets"),
        k,
    )


def _store_columns(store: WeightStore, part: OutlierColumns, name: str) -> StoredColumns:
    dtype = SCALE_TYPES[part.dtype]
    values = np.ascontiguousarray(part.values.T.astype(dtype.numpy()))
    return StoredColumns(
        store.add(values, dtype, values.shape, f"{name}.outlier_columns"),
        store.add(part.places, ir.DataType.INT64, part.places.shape, f"{name}.outlier_channels"),
        part.k,
    )


def _restore_columns(store: WeightStore, record: dict[str, Any], name: str) -> StoredColumns:
    n, k, count = record["shape"]
    return StoredColumns(
        store.at(record["values"], SCALE_TYPES[record["dtype"]], (count, n), f"{name}.outlier_columns"),
        store.at(record["places"], ir.DataType.INT64, (count,), f"{name}.outlier_channels"),
        k,
    )
