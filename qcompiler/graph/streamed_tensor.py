"""A tensor that makes its bytes a piece at a time, when it is saved or read; nothing stays in memory."""

from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

Bytes = npt.NDArray[np.uint8]


class StreamedTensor(ir.LazyTensor):
    """A tensor of ``dtype`` and ``shape`` whose bytes, as ONNX stores them, come from ``pieces()``."""

    __slots__ = ("_pieces",)

    def __init__(
        self,
        pieces: Callable[[], Iterator[Bytes]],
        dtype: ir.DataType,
        shape: ir.Shape,
        *,
        name: str | None = None,
    ) -> None:
        super().__init__(self._whole, dtype, shape, name=name)
        self._pieces = pieces

    def pieces(self) -> Iterator[Bytes]:
        """The stored bytes in order, uint8 [.] each."""
        return self._pieces()

    def tofile(self, file: BinaryIO) -> None:
        """Writes the bytes, one piece after the other."""
        for piece in self.pieces():
            file.write(np.ascontiguousarray(piece).data)

    def _whole(self) -> ir.TensorProtocol:
        packed = np.empty(self.nbytes, np.uint8)
        filled = 0
        for piece in self.pieces():
            packed[filled : filled + piece.size] = piece
            filled += piece.size
        if self.dtype.bitwidth < 8:
            return ir.PackedTensor(packed, self.dtype, shape=self.shape)
        values: npt.NDArray[Any] = packed.view(np.dtype(self.dtype.numpy()).newbyteorder("<"))
        return ir.Tensor(values.reshape(self.shape.numpy()), self.dtype, shape=self.shape)
