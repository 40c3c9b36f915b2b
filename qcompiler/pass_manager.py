"""Runs passes in order under instruments: timing, dumps, checks, stopping early. A pass that breaks the model is named."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import onnx
import onnx_ir as ir

from qcompiler.errors import PassError, QCompilerError, RecipeError, ResourceError
from qcompiler.graph.model_file import save


@dataclass(frozen=True)
class NamedPass:
    """A pass with the name that the command line and reports use for it, and why it stands where it does."""

    name: str
    run: ir.passes.InPlacePass
    reason: str


@runtime_checkable
class Explains(Protocol):
    """A pass that says why it left things alone: ``reasons``, a line each, of its last run."""

    reasons: list[str]


@dataclass(frozen=True)
class PassRecord:
    """What one pass did, and why it left things alone."""

    name: str
    modified: bool
    seconds: float
    reasons: tuple[str, ...] = ()


class Instrument(Protocol):
    """Watches passes from outside; it edits nothing."""

    def before(self, name: str, model: ir.Model) -> None:
        """Called before a pass runs."""

    def after(self, record: PassRecord, model: ir.Model) -> None:
        """Called after a pass ran."""


class Dump:
    """Saves the model after each pass as ``NN-name/model.onnx``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._number = 0

    def before(self, name: str, model: ir.Model) -> None:
        """Nothing to do."""

    def after(self, record: PassRecord, model: ir.Model) -> None:
        """Save; a pass that changed nothing gets no folder."""
        self._number += 1
        if record.modified:
            save(model, self._folder / f"{self._number:02d}-{record.name}")


class Verify:
    """Checks after each pass that the model is valid ONNX and keeps its inputs and outputs."""

    def __init__(self, model: ir.Model) -> None:
        self._signature = signature(model)

    def before(self, name: str, model: ir.Model) -> None:
        """Nothing to do."""

    def after(self, record: PassRecord, model: ir.Model) -> None:
        """Raises PassError, named, when the model is broken."""
        check_model(model, record.name)
        now = signature(model)
        if now != self._signature:
            raise PassError(
                f"pass {record.name}: changed the model's inputs or outputs from {self._signature} to {now}"
            )


def signature(model: ir.Model) -> tuple[tuple[str, str], ...]:
    """Names and types of inputs and outputs, in order; an input with an initializer is a weight, which may change."""
    weights = set(model.graph.initializers.values())
    values = [*(value for value in model.graph.inputs if value not in weights), *model.graph.outputs]
    return tuple((value.name or "", value.dtype.name if value.dtype is not None else "?") for value in values)


def check_model(model: ir.Model, after: str) -> None:
    """ONNX's checker on the model without its large weights.

    Raises:
        PassError: names the pass and the first fault.
    """
    try:
        proto = ir.to_proto(_without_weights(model))
    except (
        RuntimeError,
        ValueError,
    ) as error:  # onnx_ir wraps what it cannot copy, such as a value that nothing makes
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise PassError(f"pass {after}: left an invalid model: {str(cause).splitlines()[0]}") from error
    for value in (*proto.graph.input, *proto.graph.output):
        # The checker refuses one of unknown rank, which ONNX Runtime takes and exporters write.
        if value.type.HasField("tensor_type") and not value.type.tensor_type.HasField("shape"):
            value.type.tensor_type.shape.SetInParent()
    try:
        onnx.checker.check_model(proto, full_check=False)
    except onnx.checker.ValidationError as error:
        raise PassError(f"pass {after}: left an invalid model: {str(error).splitlines()[0]}") from error


def _without_weights(model: ir.Model) -> ir.Model:
    """A copy whose large initializers are inputs: the checker reads structure and types, not weights."""
    copy = model.clone()
    for name, value in list(copy.graph.initializers.items()):
        tensor = value.const_value
        if tensor is not None and (isinstance(tensor, ir.ExternalTensor) or tensor.nbytes > 1024):
            del copy.graph.initializers[name]
            copy.graph.inputs.append(value)
    return copy


def check_stop(stop_after: str | None, names: Sequence[str]) -> None:
    """Raises RecipeError when ``stop_after`` is none of the passes' names."""
    if stop_after is not None and stop_after not in names:
        raise RecipeError(f"--stop-after {stop_after}: no such pass; there are {', '.join(names)}")


def run_passes(
    model: ir.Model,
    passes: Sequence[NamedPass],
    instruments: Sequence[Instrument],
    stop_after: str | None = None,
) -> list[PassRecord]:
    """Run the passes on the model, in place, up to ``stop_after`` if it is among them.

    Raises:
        PassError: a pass failed with an error that is not one of ours; it names the pass.
        ResourceError: a package that it needs, or one that such a package needs, is missing or does not load.
    """
    records: list[PassRecord] = []
    for entry in passes:
        for instrument in instruments:
            instrument.before(entry.name, model)
        start = time.perf_counter()
        try:
            modified = entry.run(model).modified
        except (QCompilerError, OSError, MemoryError):
            raise  # says what is wrong, or is the machine's
        except Exception as error:  # whatever else leaves a pass is a defect of it, and is named by it
            if isinstance(error, ImportError) and error.name and not error.name.startswith("qcompiler"):
                raise ResourceError(f"pass {entry.name}: {_missing(error)}") from error
            raise PassError(
                f"pass {entry.name}: failed: {type(error).__name__}: {error}; run with --traceback and report it"
            ) from error
        reasons = tuple(entry.run.reasons) if isinstance(entry.run, Explains) else ()
        records.append(PassRecord(entry.name, modified, time.perf_counter() - start, reasons))
        for instrument in instruments:
            instrument.after(records[-1], model)
        if entry.name == stop_after:
            break
    return records


def _missing(error: ImportError) -> str:
    """What keeps a package of others from loading: it is not there, or what is there does not load."""
    if isinstance(error, ModuleNotFoundError):
        return f"the package {error.name} is missing; pip install what provides it"
    return f"{error.name} is installed, but cannot be imported ({error}); install it again"
