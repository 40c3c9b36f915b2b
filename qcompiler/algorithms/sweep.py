"""Goes over a weight once: read in blocks of rows, worked on in chunks of them, by several threads."""

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from qcompiler.algorithms.arrays import Device, chunk_size, map_in_threads, place, row_blocks
from qcompiler.quant.affine import Array

Work: TypeAlias = Callable[[Array, "slice[int, int, Any]"], None]
"""Called with a chunk, float32 [n, K] on the device, and which rows of the weight it is."""


def sweep_rows(weight: npt.NDArray[Any], work: Work, device: Device, unit: int = 1) -> None:
    """``work`` on chunks of the rows of a weight [N, K], each of a whole number of ``unit`` rows but the last."""

    def one_chunk(rows: "slice[int, int, Any]") -> None:
        work(place(block[rows], device), slice(read.start + rows.start, read.start + rows.stop))

    for read in row_blocks(weight, unit=unit):
        # One sweep over a transposed, mapped file, not one for each chunk.
        block = np.ascontiguousarray(weight[read])
        map_in_threads(one_chunk, list(row_blocks(block, chunk_size(device), unit)), device)
