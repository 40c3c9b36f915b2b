"""What stands beside the codes of a weight, in the spill file, laid out as the products that read it want it."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from qcompiler.graph.mapped_tensor import MappedTensor
from qcompiler.graph.stored_quantized import SCALE_NAMES, SCALE_TYPES
from qcompiler.graph.weight_store import WeightStore
from qcompiler.quant.corrections import LowRank
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
class StoredCorrections:
    """All that stands beside one weight."""

    low_rank: StoredLowRank | None

    def record(self) -> dict[str, Any]:
        """What ``restore_corrections`` needs to find it again in the same spill file; plain JSON."""
        return {"low_rank": None if self.low_rank is None else self.low_rank.record()}


def store_corrections(store: WeightStore, corrected: CorrectedTensor, name: str) -> StoredCorrections:
    """Appends what stands beside a weight to the spill file.

    Raises:
        ResourceError: the disk is full.
    """
    return StoredCorrections(
        None if corrected.low_rank is None else _store_low_rank(store, corrected.low_rank, name)
    )


def restore_corrections(store: WeightStore, record: dict[str, Any], name: str) -> StoredCorrections:
    """The same from what ``StoredCorrections.record`` gave, in the spill file of the same bytes.

    Raises:
        ValueError: the file ends before it.
    """
    low_rank = record["low_rank"]
    return StoredCorrections(None if low_rank is None else _restore_low_rank(store, low_rank, name))


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
