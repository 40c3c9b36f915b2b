"""A model opened to compare its outputs: ONNX Runtime's CPU, quiet, its threads asleep between runs.

ONNX Runtime's CPU computes no bfloat16. Such a model is widened to float32 in a temporary file first: every
bfloat16 value is a float32 value, so its numbers are the model's.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx_ir as ir
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as state

from qcompiler.calibration.feeds import check_indices, index_bounds, input_specs
from qcompiler.calibration.fill import complete_feed, token_input
from qcompiler.errors import CalibrationError, InputError, ResourceError
from qcompiler.graph import model_file
from qcompiler.graph.edits import all_nodes
from qcompiler.graph.extract import is_tensor
from qcompiler.passes.normalize import Normalize
from qcompiler.passes.widen_bfloat16 import WidenBfloat16
from qcompiler.runtime import create_session, register

Array = npt.NDArray[Any]


class ComparableModel:
    """A session with what comparing needs to know of its model; made by ``open_comparable``.

    Attributes:
        inputs: name, type and shape of each.
        outputs: rank and last size of each that is a tensor, None where the model does not say.
        bounds: rows of the table that an input of integers indexes, by its name.
        widened: it computes in float32 here in place of bfloat16.
    """

    def __init__(self, path: Path, model: ir.Model, session: ort.InferenceSession, widened: bool) -> None:
        self.path = path
        self.inputs = input_specs(model)
        tensors = filter(is_tensor, model.graph.outputs)
        self.outputs = {value.name or "": _last_size(value) for value in tensors}
        self.widened = widened
        self.bounds = index_bounds(model)
        self._session = session

    def run(self, feed: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        """Outputs by name for a feed, whose missing inputs are filled in.

        Raises:
            CalibrationError: the feed does not fit the model's inputs.
            InputError: ONNX Runtime fails on the model.
        """
        try:
            complete = complete_feed(feed, self.inputs)
        except CalibrationError as error:
            raise CalibrationError(f"{self.path}: {error}") from error
        check_indices(complete, self.bounds, token_input(self.inputs), str(self.path))
        try:
            arrays = self._session.run(list(outputs), complete)
        except _RUN_ERRORS as error:
            said = " ".join(str(error).split())
            raise InputError(f"{self.path}: ONNX Runtime cannot run it on this data: {said}") from error
        return dict(zip(outputs, arrays, strict=True))


_RUN_ERRORS = (state.Fail, state.InvalidArgument, state.RuntimeException, state.NotImplemented, RuntimeError)


@contextmanager
def open_comparable(path: Path) -> Iterator[ComparableModel]:
    """The model at ``path``, opened.

    Raises:
        InputError: it cannot be read, or ONNX Runtime cannot load it.
        ResourceError: the disk has no room for the widened copy.
    """
    model = model_file.load(path)
    if not has_bfloat16(model):
        yield ComparableModel(
            path, model, create_session(path, _PROVIDERS, session_options=quiet_options()), False
        )
        return
    with tempfile.TemporaryDirectory(prefix="qcompiler-") as folder:
        Normalize()(model)
        WidenBfloat16()(model)
        widen_signature(model.graph)
        copy = model_file.save(model, folder)
        session = create_session(copy, _PROVIDERS, session_options=quiet_options())
        yield ComparableModel(path, model, session, True)


_PROVIDERS = ("CPUExecutionProvider",)


def quiet_options() -> ort.SessionOptions:
    """Of a session that shares the cores with another; with our library, where it is."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # two sessions share the cores
    with suppress(ResourceError):  # not built here: a model that needs it fails to load, with the remedy
        register(options)
    return options


def has_bfloat16(model: ir.Model) -> bool:
    """Whether any value is of the type that ONNX Runtime's CPU does not compute."""
    values = [
        *model.graph.inputs,
        *model.graph.initializers.values(),
        *(value for node in all_nodes(model) for value in node.outputs),
    ]
    return any(value.dtype == ir.DataType.BFLOAT16 for value in values)


def widen_signature(graph: ir.Graph) -> None:
    """Inputs and outputs become float32 too: NumPy has no bfloat16 to hand over."""
    for value in (*graph.inputs, *graph.outputs):
        if value.dtype != ir.DataType.BFLOAT16:
            continue
        value.type = ir.TensorType(ir.DataType.FLOAT)
        producer = value.producer()
        if producer is not None and producer.op_type == "Cast":
            producer.attributes["to"] = ir.AttrInt64("to", ir.DataType.FLOAT.value)


def _last_size(value: ir.Value) -> tuple[int | None, int | None]:
    """(rank, size of the last dimension)."""
    if value.shape is None:
        return None, None
    last = value.shape[-1] if len(value.shape) else None
    return len(value.shape), last if isinstance(last, int) else None
