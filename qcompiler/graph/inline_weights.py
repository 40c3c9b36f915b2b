"""Parses a model file without reading its weights: large tensors inside the protobuf become external ones.

A model below 2 GB usually holds its weights inline, and a protobuf parser copies all of them into memory.
Here the wire format is walked through a memory map; each large ``raw_data`` is left out of what the parser
sees and replaced by its place in the file, as if it were external data.
"""

import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from qcompiler.errors import InputError

THIS_FILE = "<this file>"
"""Stands for the model file itself in the ``location`` of a tensor that was inline."""

_LARGE = 4096  # bytes: a page; smaller tensors are parsed as they are

# where tensors are: message -> field number -> message (onnx.proto)
_CHILDREN: dict[str, dict[int, str]] = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor"},
    "function": {7: "node"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph"},
}
_RAW_DATA = 9  # TensorProto.raw_data


class _TruncatedError(Exception):
    """A field goes on past the end of what holds it."""


class _Field(NamedTuple):
    number: int
    wire_type: int
    start: int  # of its tag
    value: int  # of its content
    end: int


def parse(path: Path) -> onnx.ModelProto:
    """The model's protobuf, its large inline tensors turned into external ones at ``THIS_FILE``.

    Raises:
        InputError: the file cannot be read, is empty or truncated, or is not an ONNX model.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size == 0:
                raise InputError(f"{path}: empty file; an ONNX model is needed")
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give a readable .onnx file") from error
    return _parse(memoryview(mapped), path)  # closed by the last view of it


def _parse(data: memoryview, path: Path) -> onnx.ModelProto:
    if bytes(data[:24]).startswith(b"version https://git-lfs"):
        raise InputError(f"{path}: a Git LFS pointer, not the model; run `git lfs pull` first")
    proto = onnx.ModelProto()
    try:
        slim = b"".join(_slim(data, 0, len(data), "model"))
        proto.ParseFromString(slim)
    except _TruncatedError as error:
        looks_right = data[0] == 0x08  # ir_version, the first field that every exporter writes
        what = "truncated: it ends within a field" if looks_right else "not an ONNX file"
        raise InputError(f"{path}: {what}; export or download it again") from error
    except DecodeError as error:
        raise InputError(f"{path}: not an ONNX file; export or download it again") from error
    if not proto.HasField("graph"):
        raise InputError(f"{path}: not an ONNX model: it holds no graph; export or download it again")
    return proto


def _slim(data: memoryview, start: int, end: int, message: str) -> list[bytes | memoryview]:
    """The pieces of the message at ``start``..``end``, without the bytes of its large tensors."""
    pieces: list[bytes | memoryview] = []
    children = _CHILDREN[message]
    copied = start
    for field in _fields(data, start, end):
        child = children.get(field.number)
        if child is None or field.wire_type != 2 or field.end - field.value < _LARGE:
            continue
        inner = _slim_tensor(data, field) if child == "tensor" else _slim(data, field.value, field.end, child)
        if len(inner) == 1:
            continue  # nothing was left out
        length = sum(len(piece) for piece in inner)
        pieces += [data[copied : field.start], _varint(field.number << 3 | 2), _varint(length), *inner]
        copied = field.end
    pieces.append(data[copied:end])
    return pieces


def _slim_tensor(data: memoryview, tensor: _Field) -> list[bytes | memoryview]:
    pieces: list[bytes | memoryview] = []
    places: list[bytes] = []
    copied = tensor.value
    for field in _fields(data, tensor.value, tensor.end):
        if field.number == _RAW_DATA and field.wire_type == 2 and field.end - field.value >= _LARGE:
            entries = {"location": THIS_FILE, "offset": field.value, "length": field.end - field.value}
            place = onnx.TensorProto(data_location=onnx.TensorProto.EXTERNAL)
            for key, value in entries.items():
                place.external_data.add(key=key, value=str(value))
            pieces.append(data[copied : field.start])
            places.append(place.SerializeToString(deterministic=True))
            copied = field.end
    # Last, for the last value of a field holds: a tensor that was external once may say outright that it is not.
    return [*pieces, data[copied : tensor.end], *places]


def _fields(data: memoryview, start: int, end: int) -> Iterator[_Field]:
    """The fields of the message at ``start``..``end``.

    Raises:
        _TruncatedError: a field goes on past ``end``, or is none.
    """
    position = start
    while position < end:
        tag, value = _read_varint(data, position, end)
        wire_type = tag & 7
        if wire_type == 0:
            _, stop = _read_varint(data, value, end)
        elif wire_type == 1:
            stop = value + 8
        elif wire_type == 2:
            length, value = _read_varint(data, value, end)
            stop = value + length
        elif wire_type == 5:
            stop = value + 4
        else:
            raise _TruncatedError
        if stop > end:
            raise _TruncatedError
        yield _Field(tag >> 3, wire_type, position, value, stop)
        position = stop


def _read_varint(data: memoryview, position: int, end: int) -> tuple[int, int]:
    result = shift = 0
    while position < end and shift < 64:
        byte = data[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result, position
        shift += 7
    raise _TruncatedError


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
