"""A model whose values can be read while it runs: some of them are made outputs of a temporary copy of its graph.

The copy holds no weights: it names the same places in the same files. It runs at the optimization level that the model would run at.
Where ONNX Runtime would have fused the nodes around a value, a tap there keeps them apart: the product of a DequantizeLinear pair is then
computed in float32 from the same codes, so its numbers may differ by a rounding. ``plain`` taps nothing, to measure that.
"""

import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime as ort

from qcompiler.calibration.feeds import check_indices, index_bounds, input_specs
from qcompiler.calibration.fill import InputSpec, complete_feed, token_input
from qcompiler.errors import CalibrationError, InputError
from qcompiler.graph import model_file
from qcompiler.graph.data_file import in_memory
from qcompiler.graph.external_data import tensor_slots
from qcompiler.graph.extract import is_tensor
from qcompiler.graph.mapped_tensor import MappedTensor
from qcompiler.graph.session_errors import SESSION_ERRORS
from qcompiler.passes.normalize import Normalize
from qcompiler.passes.widen_bfloat16 import WidenBfloat16
from qcompiler.report.comparable_model import has_bfloat16, quiet_options, widen_signature

Array = npt.NDArray[Any]
_FOLDER = "session.model_external_initializers_file_folder_path"


@dataclass(frozen=True)
class Tap:
    """A value to read: floats, or codes with the names of the scale and zero point that they are dequantized with."""

    value: str
    scale: str | None = None
    zero_point: str | None = None


class TappedModel:
    """Made by ``open_tapped``.

    Attributes:
        path: as it was given.
        model: normalized (functions inlined but for ours); names of values are those of the file.
        inputs: name, type and shape of each.
        outputs: names of those that are tensors.
        widened: it computes in float32 here in place of bfloat16, with Casts of its own.
    """

    def __init__(self, path: Path, model: ir.Model, folder: Path, widened: bool = False) -> None:
        self.path = path
        self.model = model
        self.inputs: list[InputSpec] = input_specs(model)
        self.outputs = [value.name or "" for value in model.graph.outputs if is_tensor(value)]
        self.widened = widened
        self._bounds = index_bounds(model)
        self._folder = folder
        self._proto = _without_weights(model, folder)

    def plain(self) -> "TapSession":
        """Its own outputs."""
        return self._open(self._proto, {name: name for name in self.outputs})

    def session(self, taps: Sequence[Tap]) -> "TapSession":
        """A session that yields the taps, by the names of their values; floats where codes have a scale.

        Raises:
            InputError: ONNX Runtime cannot load it.
        """
        proto = onnx.ModelProto()
        proto.CopyFrom(self._proto)
        places = {}
        for index, tap in enumerate(taps):
            name = tap.value
            if tap.scale is not None:
                name = f"qcompiler.tap.{index}"
                inputs = [tap.value, tap.scale, *([tap.zero_point] if tap.zero_point else [])]
                proto.graph.node.append(onnx.helper.make_node("DequantizeLinear", inputs, [name]))
            if name not in self.outputs:
                proto.graph.output.append(onnx.ValueInfoProto(name=name))
            places[tap.value] = name
        return self._open(proto, places)

    def element_counts(self, taps: Sequence[Tap], feed: Mapping[str, Array]) -> list[int]:
        """How many numbers each tap yields for a feed."""
        proto = onnx.ModelProto()
        proto.CopyFrom(self._proto)
        places = {}
        for index, tap in enumerate(taps):
            places[tap.value] = f"qcompiler.shape.{index}"
            proto.graph.node.append(onnx.helper.make_node("Shape", [tap.value], [places[tap.value]]))
            proto.graph.output.append(onnx.ValueInfoProto(name=places[tap.value]))
        shapes = self._open(proto, places).run(feed)
        return [math.prod(shapes[tap.value].tolist()) for tap in taps]

    def complete(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """What of a feed the model takes, its missing inputs filled in.

        Raises:
            CalibrationError: the feed does not fit.
        """
        taken = {spec.name for spec in self.inputs}
        try:
            complete = complete_feed({k: v for k, v in feed.items() if k in taken}, self.inputs)
        except CalibrationError as error:
            raise CalibrationError(f"{self.path}: {error}") from error
        check_indices(complete, self._bounds, token_input(self.inputs), str(self.path))
        return complete

    def _open(self, proto: onnx.ModelProto, places: Mapping[str, str]) -> "TapSession":
        options = quiet_options()
        options.add_session_config_entry(_FOLDER, str(self._folder))
        try:
            session = ort.InferenceSession(
                proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except SESSION_ERRORS as error:
            said = " ".join(str(error).split())
            raise InputError(f"{self.path}: ONNX Runtime cannot load it: {said}") from error
        return TapSession(self, session, places)


class TapSession:
    """Runs a model with some of its values read."""

    def __init__(self, model: TappedModel, session: ort.InferenceSession, places: Mapping[str, str]) -> None:
        self._model = model
        self._session = session
        self._places = dict(places)

    def run(self, feed: Mapping[str, Array], outputs: bool = False) -> dict[str, Array]:
        """Arrays by the names of what is tapped, and with ``outputs`` of the model's own outputs.

        Raises:
            CalibrationError: the feed does not fit the model's inputs.
            InputError: ONNX Runtime fails on the model.
        """
        complete = self._model.complete(feed)
        places = {**({name: name for name in self._model.outputs} if outputs else {}), **self._places}
        if not places:  # ONNX Runtime would take no names for all outputs
            return {}
        try:
            arrays = self._session.run(list(places.values()), complete)
        except SESSION_ERRORS as error:
            said = " ".join(str(error).split())
            raise InputError(
                f"{self._model.path}: ONNX Runtime cannot run it on this data: {said}"
            ) from error
        return dict(zip(places, arrays, strict=True))


@contextmanager
def open_tapped(path: Path) -> Iterator[TappedModel]:
    """The model at ``path``, opened; bfloat16 is widened, in a temporary file.

    Raises:
        InputError: it cannot be read.
        ResourceError: the disk has no room for a copy, where one is needed.
    """
    place = model_file.model_path(path)
    model = model_file.load(place)
    Normalize()(model)
    widens = has_bfloat16(model)
    if widens:
        WidenBfloat16()(model)
        widen_signature(model.graph)
    folder = None if widens else _folder_of(place, model)
    if folder is not None:
        yield TappedModel(place, model, folder)
        return
    with tempfile.TemporaryDirectory(prefix="qcompiler-") as temporary:
        copy = model_file.load(model_file.save(model, temporary))
        yield TappedModel(place, copy, Path(temporary).resolve(), widens)


def _folder_of(path: Path, model: ir.Model) -> Path | None:
    """One that holds every file that weights are in, links resolved, as ONNX Runtime wants them; None where there is none."""
    files = {slot.tensor.file.path for slot in tensor_slots(model) if isinstance(slot.tensor, MappedTensor)}
    resolved = {file.resolve() for file in files}
    for folder in (
        path.absolute().parent.resolve(),
        path.resolve().parent,
        *(file.parent for file in resolved),
    ):
        if all(file.is_relative_to(folder) for file in resolved):
            return folder
    return None


def _without_weights(model: ir.Model, folder: Path) -> onnx.ModelProto:
    """The graph; weights that are in files stay there."""
    for slot in tensor_slots(model):
        if slot.inlined and isinstance(slot.tensor, ir.ExternalTensor):
            slot.put(in_memory(slot.tensor))
    proto: onnx.ModelProto = ir.serde.serialize_model(model)
    for tensor in proto.graph.initializer:
        held = model.graph.initializers[tensor.name].const_value
        if isinstance(held, MappedTensor):
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = str(held.file.path.resolve().relative_to(folder))
    return proto
