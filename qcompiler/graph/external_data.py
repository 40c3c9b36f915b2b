"""Binds the external tensors of a loaded model to their files, after checking every place a model may name.

Nothing is read but sizes. A model comes from anywhere, so its data must lie in its folder, links resolved: the one that was
named, or the one where the file is.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from qcompiler.errors import InputError
from qcompiler.graph.edits import all_graphs, all_nodes
from qcompiler.graph.inline_weights import THIS_FILE
from qcompiler.graph.mapped_tensor import MappedFile, MappedTensor


@dataclass(frozen=True, slots=True)
class TensorSlot:
    """A place in a model that holds a tensor: an initializer, or the attribute of a node.

    Attributes:
        inlined: the attribute of an operator other than Constant; kernels read those from the protobuf only.
    """

    tensor: ir.TensorProtocol
    put: Callable[[ir.TensorProtocol], None]
    where: str
    inlined: bool = False


def tensor_slots(model: ir.Model) -> Iterator[TensorSlot]:
    """Every tensor of the model, functions and subgraphs included, in the order of the graph."""
    for graph in all_graphs(model):
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield TensorSlot(
                    value.const_value, _initializer_setter(value), f"initializer {_shown(value.name)}"
                )
    for node in all_nodes(model):
        for attribute in tuple(node.attributes.values()):
            if attribute.is_ref():
                continue
            where = f"node {_shown(node.name)}, attribute {_shown(attribute.name)}"
            if attribute.type == ir.AttributeType.TENSOR:
                inlined = node.op_type != "Constant" or node.domain != ""
                yield TensorSlot(attribute.as_tensor(), _attribute_setter(node, attribute), where, inlined)
            elif attribute.type == ir.AttributeType.TENSORS:
                for index, tensor in enumerate(attribute.as_tensors()):
                    yield TensorSlot(tensor, _element_setter(node, attribute.name, index), where, True)


def bind(model: ir.Model, path: Path) -> None:
    """Replaces every ``ExternalTensor`` by a ``MappedTensor`` on its file.

    Raises:
        InputError: a file is missing, too short, not a plain file, or not inside the model's folder.
    """
    files: dict[str, _DataFile] = {}
    for slot in tensor_slots(model):
        tensor = slot.tensor
        if not isinstance(tensor, ir.ExternalTensor):
            continue
        location = str(tensor.location)  # bytes, if it was not UTF-8: such a file is missing
        if location not in files:
            files[location] = _find(location, path, slot.where)
        slot.put(_bound(tensor, files[location], path, slot.where))


@dataclass(frozen=True, slots=True)
class _DataFile:
    file: MappedFile
    size: int  # bytes


def _find(location: str, model_path: Path, where: str) -> _DataFile:
    if location == THIS_FILE:
        # a link to a model is followed: whoever named the model chose it
        place = model_path.resolve()
        return _DataFile(MappedFile(place), place.stat().st_size)
    said = f"{model_path}: {where}: external data {location!r}"
    if not location or os.path.isabs(location):  # noqa: PTH117  # a text from the model
        raise InputError(f"{said} is not a path relative to the model; export the model again")
    folder = Path(os.path.abspath(model_path)).parent  # noqa: PTH100  # links are resolved below
    place = Path(os.path.normpath(folder / location))
    if not place.is_relative_to(folder):
        raise InputError(f"{said} lies outside the model's folder; put both into one folder")
    try:
        real = place.resolve(strict=True)
        size = real.stat().st_size
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: a loop of links before Python 3.13
        raise InputError(f"{said} is missing; put it beside the model") from error
    # A cache links both from a folder of its own into the one where they are: that of the model's file serves too.
    if not any(real.is_relative_to(home) for home in (folder.resolve(), model_path.resolve().parent)):
        raise InputError(
            f"{said} is a link out of the model's folder, to {real}; put copies of both into one folder"
        )
    if not real.is_file():
        raise InputError(f"{said} is not a file; export the model again")
    if not os.access(real, os.R_OK):
        raise InputError(f"{said} cannot be read; change its permissions")
    return _DataFile(MappedFile(place), size)


def _bound(tensor: ir.ExternalTensor, data: _DataFile, model_path: Path, where: str) -> MappedTensor:
    said = f"{model_path}: {where}"
    if tensor.dtype in (ir.DataType.UNDEFINED, ir.DataType.STRING):
        raise InputError(
            f"{said}: external data cannot hold type {tensor.dtype.name}; export the model again"
        )
    offset = tensor.offset or 0
    if offset < 0 or (tensor.length is not None and tensor.length != tensor.nbytes):
        raise InputError(
            f"{said}: offset {offset} and length {tensor.length} do not fit "
            f"{tensor.dtype.name}{tensor.shape}, {tensor.nbytes} bytes; export the model again"
        )
    if offset + tensor.nbytes > data.size:
        raise InputError(
            f"{said}: {data.file.path.name} has {data.size} bytes, {offset + tensor.nbytes} needed; "
            + (
                "it is a Git LFS pointer: run `git lfs pull`"
                if _is_lfs_pointer(data)
                else "copy or download it again"
            )
        )
    return MappedTensor(
        data.file,
        offset,
        tensor.dtype,
        tensor.shape,
        tensor.name or "",
        doc_string=tensor.doc_string,
        metadata_props=dict(tensor.metadata_props),
    )


def _shown(name: str | None) -> str:
    """A name on one line, whatever is in it."""
    return repr(name or "")[1:-1]


def _is_lfs_pointer(data: _DataFile) -> bool:
    start = b"version https://git-lfs"
    return data.size >= len(start) and data.file.view(0, len(start)).tobytes() == start


def _initializer_setter(value: ir.Value) -> Callable[[ir.TensorProtocol], None]:
    def put(tensor: ir.TensorProtocol) -> None:
        value.const_value = tensor

    return put


def _attribute_setter(node: ir.Node, attribute: ir.Attr) -> Callable[[ir.TensorProtocol], None]:
    def put(tensor: ir.TensorProtocol) -> None:
        node.attributes[attribute.name] = ir.AttrTensor(
            attribute.name, tensor, doc_string=attribute.doc_string
        )

    return put


def _element_setter(node: ir.Node, name: str, index: int) -> Callable[[ir.TensorProtocol], None]:
    def put(tensor: ir.TensorProtocol) -> None:
        attribute = node.attributes[name]
        tensors = list(attribute.as_tensors())
        tensors[index] = tensor
        node.attributes[name] = ir.AttrTensors(name, tensors, doc_string=attribute.doc_string)

    return put
