"""Tensors whose bytes stay in a file: one memory map a file, shared by all of its tensors.

``onnx_ir.ExternalTensor`` maps the file once a tensor, and each map holds a file descriptor (a model of a few
thousand weights runs out of them); it keeps unpacked 4-bit copies in anonymous memory; and it cannot let go
while a view of it lives. ``MappedTensor`` is one, so it serializes as one, but reads through a shared map and
caches nothing.
"""

import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.errors import InputError

Bytes = npt.NDArray[np.uint8]


class MappedFile:
    """A file that is mapped when first read, and mapped anew when it has grown since."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._map: mmap.mmap | None = None

    def view(self, offset: int, length: int) -> Bytes:
        """Read-only view of ``length`` bytes at ``offset``; it keeps its map alive, and costs clean pages.

        Raises:
            InputError: the file is gone, or shorter than it was.
        """
        if length == 0:
            return np.empty(0, np.uint8)
        if self._map is None or len(self._map) < offset + length:
            self._map = self._mapped(offset + length)
        return np.frombuffer(self._map, np.uint8, length, offset)

    def _mapped(self, needed: int) -> mmap.mmap:
        try:
            with self.path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size < needed:
                    raise InputError(
                        f"{self.path}: {size} bytes, {needed} expected; it changed after it was opened"
                    )
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise InputError(
                f"{self.path}: cannot be read ({error.strerror}); put it back and run again"
            ) from error


class MappedTensor(ir.ExternalTensor):
    """An ``ExternalTensor`` over a ``MappedFile``; whoever makes one has checked its place and its length."""

    __slots__ = ("_file",)

    def __init__(
        self,
        file: MappedFile,
        offset: int,
        dtype: ir.DataType,
        shape: ir.Shape,
        name: str,
        *,
        doc_string: str | None = None,
        metadata_props: dict[str, str] | None = None,
    ) -> None:
        count = int(np.prod(shape.numpy(), dtype=np.int64))
        super().__init__(
            location=file.path.name,
            offset=offset,
            length=(count * dtype.bitwidth + 7) // 8,
            dtype=dtype,
            shape=shape,
            name=name,
            doc_string=doc_string,
            metadata_props=metadata_props,
            base_dir=file.path.parent,
        )
        self._file = file

    @property
    def file(self) -> MappedFile:
        """The file that the tensor reads from."""
        return self._file

    def packed(self) -> Bytes:
        """The stored bytes, a read-only uint8 [nbytes] view of the file."""
        return self._file.view(self.offset or 0, self.nbytes)

    def numpy(self) -> npt.NDArray[Any]:
        """The values: a view of the file, or for 2- and 4-bit types a fresh unpacked copy."""
        packed = self.packed()
        if self.dtype.bitwidth < 8:
            return ir.PackedTensor(packed, self.dtype, shape=self.shape).numpy()
        stored = np.dtype(self.dtype.numpy()).newbyteorder("<")
        return packed.view(stored).reshape(self.shape.numpy())

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return np.array(self.numpy(), dtype=dtype, copy=copy)

    def tobytes(self) -> bytes:
        """A copy of the stored bytes."""
        return self.packed().tobytes()

    def release(self) -> None:
        """Nothing to do: the map is shared, and the system drops its clean pages when it needs memory."""

    def _check_path_containment(self) -> None:
        """Checked when the tensor was made; onnx_ir's own check would also refuse hard-linked files."""
