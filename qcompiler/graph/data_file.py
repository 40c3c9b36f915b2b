"""The data file beside a saved model: which tensors go there, where, and how they are written."""

import os
import sys
from collections.abc import Callable, Hashable
from typing import BinaryIO, TypeAlias

import numpy as np
import onnx_ir as ir

from qcompiler.errors import InputError
from qcompiler.graph.external_data import TensorSlot
from qcompiler.graph.streamed_tensor import StreamedTensor
from qcompiler.graph.weight_store import ALIGNMENT

Progress: TypeAlias = Callable[[int, int], None]
"""Called with (bytes done, bytes in all)."""

EXTERNAL_FROM = 1024
"""Bytes from which a tensor goes to the data file; ORT's shape inference needs to see small ones."""

_INLINE_LIMIT = (1 << 31) - (1 << 26)  # protobuf's 2 GB, less 64 MB for the nodes


class DataFile:
    """Where each tensor goes: offsets in the data file, in the order of the graph; what is shared has one.

    Attributes:
        external: the tensors in the data file, with their offsets.
        inline: the tensors that stay in the protobuf: small ones, strings, attributes that kernels read.
        nbytes: of the data file.
        inline_nbytes: of the inline tensors.

    Raises:
        InputError: the inline tensors exceed what a protobuf can hold.
    """

    def __init__(self, slots: list[TensorSlot]) -> None:
        self.external: list[tuple[TensorSlot, int]] = []
        self.inline: list[TensorSlot] = []
        self._unique: list[tuple[ir.TensorProtocol, int]] = []
        self.nbytes = 0
        self.inline_nbytes = 0
        offsets: dict[Hashable, int] = {}
        for slot in slots:
            tensor = slot.tensor
            if slot.inlined or tensor.dtype == ir.DataType.STRING or tensor.nbytes < EXTERNAL_FROM:
                self.inline.append(slot)
                self.inline_nbytes += tensor.nbytes
                continue
            key = _identity(tensor)
            if key not in offsets:
                offsets[key] = -(-self.nbytes // ALIGNMENT) * ALIGNMENT
                self._unique.append((tensor, offsets[key]))
                self.nbytes = offsets[key] + tensor.nbytes
            self.external.append((slot, offsets[key]))
        if self.inline_nbytes > _INLINE_LIMIT:
            largest = max(self.inline, key=lambda slot: slot.tensor.nbytes)
            raise InputError(
                f"{largest.where}: {self.inline_nbytes / 1e9:.1f} GB must stay inside the model file, "
                "which holds 2 GB; make initializers of such tensors"
            )

    def write(self, file: BinaryIO, progress: Progress | None) -> None:
        """Writes the whole data file, one tensor after the other."""
        for tensor, offset in self._unique:
            file.seek(offset)  # the gap reads as zeros
            if isinstance(tensor, (ir.ExternalTensor, StreamedTensor)):
                tensor.tofile(file)
            else:
                file.write(_tensor_bytes(tensor))
            if progress is not None:
                progress(offset + tensor.nbytes, self.nbytes)


def _identity(tensor: ir.TensorProtocol) -> Hashable:
    if isinstance(tensor, ir.ExternalTensor):
        return os.path.realpath(tensor.path), tensor.offset or 0, tensor.nbytes
    return id(tensor)


def _tensor_bytes(tensor: ir.TensorProtocol) -> memoryview | bytes:
    """The tensor's bytes, without a copy where its array already holds them."""
    if isinstance(tensor, ir.Tensor) and sys.byteorder == "little" and tensor.dtype.bitwidth >= 8:
        array = tensor.numpy()
        if array.flags.c_contiguous and array.dtype.isnative:
            return array.reshape(-1).view(np.uint8).data
    return tensor.tobytes()


def in_memory(tensor: ir.ExternalTensor) -> ir.TensorProtocol:
    """A copy of an external tensor that is to be saved inline."""
    packed = np.frombuffer(tensor.tobytes(), np.uint8)
    shape = ir.Shape(tensor.shape.numpy())
    copy: ir.TensorProtocol
    if tensor.dtype.bitwidth < 8:
        copy = ir.PackedTensor(packed, tensor.dtype, shape=shape, name=tensor.name)
    else:
        stored = np.dtype(tensor.dtype.numpy()).newbyteorder("<")
        copy = ir.Tensor(
            packed.view(stored).reshape(shape.numpy()), tensor.dtype, shape=shape, name=tensor.name
        )
    copy.doc_string = tensor.doc_string
    copy.metadata_props.update(tensor.metadata_props)
    return copy
