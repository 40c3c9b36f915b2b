"""A model on disk: loaded without its weights in memory, saved with one of them there at a time."""

import hashlib
import logging
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import onnx
import onnx_ir as ir

from qcompiler.errors import InputError, PassError
from qcompiler.graph import external_data, inline_weights
from qcompiler.graph.data_file import DataFile, Progress, in_memory
from qcompiler.graph.disk import require_free, writing
from qcompiler.graph.edits import all_graphs
from qcompiler.graph.external_data import TensorSlot
from qcompiler.graph.mapped_tensor import MappedFile, MappedTensor
from qcompiler.graph.quiet import quiet
from qcompiler.graph.validity import check_graphs, check_header, check_tensors

MODEL_NAME = "model.onnx"
DATA_NAME = "model.onnx.data"


def model_path(path: str | os.PathLike[str]) -> Path:
    """The model file; of a folder, the ``model.onnx`` that a compile wrote there.

    Raises:
        InputError: a folder without one.
    """
    place = Path(path)
    try:
        if not place.is_dir():
            return place
        if not (place / MODEL_NAME).is_file():
            raise InputError(f"{place}: a folder without {MODEL_NAME}; give the .onnx file in it")
    except (OSError, ValueError) as error:
        raise InputError(
            f"{place}: cannot be read (path too long, or a folder without permission); check the path"
        ) from error
    return place / MODEL_NAME


def load(path: str | os.PathLike[str]) -> ir.Model:
    """The model at ``path`` (see ``model_path``); weights of 4 KiB and more stay in their files (``MappedTensor``).

    Only the structure is read and checked, so size does not matter.

    Raises:
        InputError: the file, or a data file it names, is missing, damaged, elsewhere or unsupported.
    """
    place = model_path(path)
    try:
        if not place.exists():
            raise InputError(f"{place}: no such file; check the path")
    except (OSError, ValueError) as error:
        reason = "path too long, or a folder without permission"
        raise InputError(f"{place}: cannot be read ({reason}); check the path") from error
    proto = inline_weights.parse(place)
    check_header(proto, place)
    model = _deserialize(proto, place)
    external_data.bind(model, place)
    check_tensors(model, place)
    check_graphs(model, place)
    return model


def save(model: ir.Model, folder: str | os.PathLike[str], progress: Progress | None = None) -> Path:
    """Writes ``folder/model.onnx``, and its tensors of 1 KiB and more to ``folder/model.onnx.data``.

    Each of those begins at a multiple of 64 bytes, so that a kernel can use it in place, and is written once,
    however many initializers share it. They go through memory one at a time; those that are in a file already
    do not. Both files appear under their names only when complete. The model is as before afterwards; the
    same model gives the same bytes.

    Returns:
        The path of model.onnx.

    Raises:
        ResourceError: the disk is full or the folder not writable.
        InputError: a file to be written is one that the model's weights are read from, or what must stay
            inline exceeds protobuf's 2 GB.
        PassError: an initializer has lost its tensor.
    """
    target, data = Path(folder) / MODEL_NAME, Path(folder) / DATA_NAME
    slots = _slots_to_save(model)
    with writing(target.parent):
        _check_not_a_source(slots, (target, data))
    plan = DataFile(slots)
    with writing(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
    require_free(target.parent, plan.nbytes + plan.inline_nbytes)
    partial, partial_data = (path.with_name(f".{path.name}.partial") for path in (target, data))
    try:
        if plan.nbytes:
            with writing(data), partial_data.open("wb") as file:
                plan.write(file, progress)
        content = _serialized(model, plan, data)
        with writing(target):
            partial.write_bytes(content)
            if plan.nbytes:
                partial_data.replace(data)
            else:
                data.unlink(missing_ok=True)  # of an earlier save
            partial.replace(target)
    finally:
        for leftover in (partial, partial_data):
            leftover.unlink(missing_ok=True)
    return target


def files_of(path: str | os.PathLike[str], model: ir.Model | None = None) -> dict[str, Path]:
    """The model file and every data file that it names, by path relative to the model's folder.

    Args:
        path: the model file.
        model: what ``load`` made of it, not edited; None loads it.

    Raises:
        InputError: as ``load``.
    """
    place = model_path(path)
    model = load(place) if model is None else model
    names = {place.name: place}
    for slot in external_data.tensor_slots(model):
        if isinstance(slot.tensor, MappedTensor) and slot.tensor.file.path != place.resolve():
            data = slot.tensor.file.path
            names[os.path.relpath(data, place.absolute().parent)] = data
    return names


def check_no_model_file(place: Path, *models: str | os.PathLike[str] | None) -> None:
    """Refuses to write over a file of the models, None among them aside.

    Raises:
        InputError: ``place`` is one, or a model cannot be read.
    """
    if not place.exists():
        return
    for model in models:
        if model is not None and any(place.samefile(file) for file in files_of(model).values()):
            raise InputError(f"{place}: is a file of the model {model}, which would be lost; write elsewhere")


def sha256_of(path: str | os.PathLike[str], progress: Progress | None = None) -> dict[str, str]:
    """SHA-256 of the model file and of every data file that it names, by path relative to the model's folder.

    Raises:
        InputError: as ``load``.
    """
    names = files_of(path)
    total = sum(file.stat().st_size for file in names.values())
    done = 0
    digests = {}
    for name, file in names.items():
        digest = hashlib.sha256()
        with file.open("rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
                done += len(block)
                if progress is not None:
                    progress(done, total)
        digests[name] = digest.hexdigest()
    return digests


def _deserialize(proto: onnx.ModelProto, path: Path) -> ir.Model:
    try:
        # What onnx_ir would warn about, ``check_graphs`` refuses: in one line.
        with quiet(ir.serde.__name__, logging.ERROR), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = ir.serde.deserialize_model(proto)
    except (
        ir.serde.SerdeError,
        ValueError,
        KeyError,
        TypeError,
        NotImplementedError,
        AssertionError,
    ) as error:
        raise InputError(
            f"{path}: not a valid model: {_reason(error)}; check it with onnx.checker"
        ) from error
    imports = model.opset_imports
    if "ai.onnx" in imports:  # the other name of the default domain
        imports.setdefault("", imports.pop("ai.onnx"))
    return model


def _reason(error: BaseException) -> str:
    """One line of the error that onnx_ir wrapped: its own text repeats whole protobufs."""
    while (earlier := error.__cause__ or error.__context__) is not None:
        error = earlier
    return (str(error) or type(error).__name__).splitlines()[0][:200]


def _slots_to_save(model: ir.Model) -> list[TensorSlot]:
    for graph in all_graphs(model):
        for value in graph.initializers.values():
            if value.const_value is None:
                raise PassError(f"initializer {value.name} of graph {graph.name} has no tensor")
    return list(external_data.tensor_slots(model))


def _check_not_a_source(slots: list[TensorSlot], targets: Sequence[Path]) -> None:
    existing = [target for target in targets if target.exists()]
    sources = {slot.tensor.path for slot in slots if isinstance(slot.tensor, ir.ExternalTensor)}
    for target in existing:
        for source in sources:
            if Path(source).exists() and target.samefile(source):
                raise InputError(f"{target}: the model's weights are read from it; save to another folder")


def _serialized(model: ir.Model, plan: DataFile, data: Path) -> bytes:
    """The protobuf with the plan's places in it; the model gets its tensors back."""
    file = MappedFile(data)
    swapped: list[TensorSlot] = []
    try:
        for slot, offset in plan.external:
            tensor = slot.tensor
            swapped.append(slot)
            slot.put(
                MappedTensor(
                    file,
                    offset,
                    tensor.dtype,
                    ir.Shape(tensor.shape.numpy()),
                    tensor.name or "",
                    doc_string=tensor.doc_string,
                    metadata_props=dict(tensor.metadata_props),
                )
            )
        for slot in plan.inline:
            if isinstance(slot.tensor, ir.ExternalTensor):
                swapped.append(slot)
                slot.put(in_memory(slot.tensor))
        proto = ir.serde.serialize_model(model)
    except ir.serde.SerdeError as error:
        raise PassError(f"the model cannot be written: {_reason(error)}") from error
    finally:
        for slot in swapped:
            slot.put(slot.tensor)
    content: bytes = proto.SerializeToString(deterministic=True)
    return content
