"""The spill file: finished weights are appended to it and read back through a memory map.

A pass that rewrites every weight of a model so holds one weight in memory, whatever the model's size.
"""

import os
import zlib
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.graph.disk import writing
from qcompiler.graph.mapped_tensor import MappedFile, MappedTensor

ALIGNMENT = 64  # bytes: a cache line, and the widest vector load
_CHUNK = 1 << 26  # bytes that a checksum reads at a time

Data = npt.NDArray[Any] | bytes | bytearray | memoryview


class WeightStore:
    """An append-only file of tensors in ``folder``; what was added can be read at once, and after ``close``.

    An existing file is continued (its tensors stay where they are: a resumed run finds them with ``at``)
    unless ``fresh``.
    """

    def __init__(self, folder: Path, name: str = "weights.bin", *, fresh: bool = True) -> None:
        """Opens the file.

        Raises:
            ResourceError: the folder cannot be made or written.
        """
        self.path = Path(folder).absolute() / name
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = self.path.open(
                "wb" if fresh else "r+b" if self.path.exists() else "xb", buffering=0
            )
            self._writer.seek(0, 2)
            self._end = self._writer.tell()
        self._file = MappedFile(self.path)

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return self._end

    def add(
        self, data: Data | Iterable[Data], dtype: ir.DataType, shape: Iterable[int], name: str
    ) -> MappedTensor:
        """Appends one tensor, at a 64-byte aligned offset.

        Args:
            data: the tensor's bytes as ONNX stores them (little endian, row-major, 2- and 4-bit types
                packed): an array of ``dtype``, uint8 or bytes, or the chunks of one in order, each written
                before the next is asked for.
            dtype: of the tensor.
            shape: of the tensor.
            name: of the tensor.

        Returns:
            A tensor that reads from the file; nothing of ``data`` stays in memory.

        Raises:
            ResourceError: the disk is full; the file is as it was before.
            ValueError: the bytes do not fill the shape.
        """
        start = -(-self._end // ALIGNMENT) * ALIGNMENT
        tensor = MappedTensor(self._file, start, dtype, ir.Shape(tuple(shape)), name)
        if isinstance(data, (np.ndarray, bytes, bytearray, memoryview)):
            data = (data,)
        written = 0
        try:
            self._append(bytes(start - self._end))
            for chunk in data:
                written += self._append(_as_bytes(chunk))
            if written != tensor.nbytes:
                raise ValueError(
                    f"{name}: {written} bytes for {dtype.name}{tensor.shape}, {tensor.nbytes} needed"
                )
        except BaseException:
            self._writer.truncate(self._end)
            self._writer.seek(self._end)
            raise
        self._end = start + written
        return tensor

    def at(self, offset: int, dtype: ir.DataType, shape: Iterable[int], name: str) -> MappedTensor:
        """The tensor that an earlier ``add`` left at ``offset``.

        Raises:
            ValueError: the file ends before it.
        """
        tensor = MappedTensor(self._file, offset, dtype, ir.Shape(tuple(shape)), name)
        if offset + tensor.nbytes > self._end:
            raise ValueError(f"{name}: {self.path} ends at {self._end}, before {offset + tensor.nbytes}")
        return tensor

    def crc32(self, start: int, end: int) -> int:
        """Of the bytes from ``start`` to ``end``.

        Raises:
            ValueError: the file ends before.
        """
        if end > self._end:
            raise ValueError(f"{self.path}: ends at {self._end}, before {end}")
        found = 0
        for offset in range(start, end, _CHUNK):
            found = zlib.crc32(self._file.view(offset, min(_CHUNK, end - offset)).data, found)
        return found

    def cut(self, end: int) -> None:
        """Forgets what was added after the first ``end`` bytes."""
        with writing(self.path):
            self._writer.truncate(end)
            self._writer.seek(end)
        self._end = end

    def sync(self) -> None:
        """Returns when everything that was added is on the disk."""
        with writing(self.path):
            os.fsync(self._writer.fileno())

    def close(self) -> None:
        """Ends writing; the file and its tensors stay."""
        self._writer.close()

    def __enter__(self) -> "WeightStore":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _append(self, data: bytes | memoryview) -> int:
        rest = memoryview(data)
        with writing(self.path):
            while rest:  # an unbuffered write may stop short, at 2 GiB at the latest
                rest = rest[self._writer.write(rest) :]
        return len(data)


def _as_bytes(chunk: Data) -> memoryview:
    if isinstance(chunk, np.ndarray):
        # ml_dtypes arrays have no buffer protocol; their uint8 view has
        return np.ascontiguousarray(chunk).reshape(-1).view(np.uint8).data
    return memoryview(chunk).cast("B")
