"""Running compiled models: finds our operator library, registers it, creates sessions.

Needs numpy and onnxruntime alone, so that an application ships without the compiler. A compiled model with
function bodies also runs in a plain ``onnxruntime.InferenceSession``; with the library registered, our
kernels take its nodes.
"""

import os
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from qcompiler.errors import InputError, ResourceError

if TYPE_CHECKING:
    import onnxruntime

_DOMAIN = "ai.qcompiler"
_LIBRARY = "libqcompiler_ops.so"
_REGISTERED = "qcompiler.registered"  # a config entry of ours: ONNX Runtime keeps those it does not know


def create_session(
    path: str | os.PathLike[str],
    providers: Sequence[str | tuple[str, dict[str, Any]]] | None = None,
    *,
    session_options: "onnxruntime.SessionOptions | None" = None,
) -> "onnxruntime.InferenceSession":
    """A plain ONNX Runtime session on a model file, with our kernels where the library is installed.

    Args:
        path: an ``.onnx`` file, compiled by us or not, or a folder with a ``model.onnx``.
        providers: as ONNX Runtime takes them. None: CUDA where this build of ONNX Runtime offers it, then
            the CPU. A build may offer CUDA on a machine without it: ``session.get_providers()`` tells.
        session_options: used as they are: call ``register`` on them first, once. None: fresh, registered.

    Raises:
        InputError: the file is missing, or ONNX Runtime cannot load it.
        ResourceError: onnxruntime is not installed, or the model needs operators that are not here.
    """
    ort = _onnxruntime()
    if Path(path).is_dir():
        path = Path(path, "model.onnx")
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file; give the path of an .onnx file")
    if session_options is None:
        session_options = ort.SessionOptions()
        if _library_file().is_file():
            register(session_options)
    if providers is None:
        offered = ort.get_available_providers()
        providers = [p for p in ("CUDAExecutionProvider", "CPUExecutionProvider") if p in offered]
    try:
        return ort.InferenceSession(os.fspath(path), session_options, providers=providers)
    except _load_errors() as error:
        raise _explained(path, error) from error


def register(session_options: "onnxruntime.SessionOptions") -> None:
    """Adds our operators to the options of a session that the application creates itself.

    A second call on the same options does nothing: ONNX Runtime refuses a session whose options hold one domain twice.

    Raises:
        ResourceError: this installation has no operator library.
        TypeError: not the options of a session.
    """
    if not hasattr(session_options, "register_custom_ops_library"):
        raise TypeError(
            f"register: expected onnxruntime.SessionOptions, got {type(session_options).__name__}; give the options "
            "that the session is created with"
        )
    library = str(library_path())
    try:
        session_options.get_session_config_entry(_REGISTERED)
        return
    except RuntimeError:  # no such entry
        session_options.register_custom_ops_library(library)
    session_options.add_session_config_entry(_REGISTERED, "1")


def library_path() -> Path:
    """The shared library with our operators, for ONNX Runtime's ``RegisterCustomOpsLibrary`` in any language.

    Raises:
        ResourceError: this installation has no operator library.
    """
    library = _library_file()
    if not library.is_file():
        raise ResourceError(
            f"{library} is missing: qcompiler was put on the path without being built; "
            "in a checkout run scripts/install, elsewhere pip install its sources (a C++ compiler and CMake are needed)"
        )
    return library


def _library_file() -> Path:
    # Not beside __file__: an editable install keeps the built library apart from the sources.
    return Path(str(resources.files("qcompiler").joinpath("lib", _LIBRARY)))


def _onnxruntime() -> ModuleType:
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise ResourceError(
            "onnxruntime is not installed; run pip install onnxruntime, or onnxruntime-gpu for CUDA"
        ) from error
    module: ModuleType = onnxruntime
    return module


def _load_errors() -> tuple[type[Exception], ...]:
    """The kinds of error that ONNX Runtime gives its failures; they have no common base but Exception."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    return (
        state.Fail,
        state.InvalidArgument,
        state.InvalidGraph,
        state.InvalidProtobuf,
        state.NoSuchFile,
        state.NotImplemented,
        state.RuntimeException,
    )


def _explained(path: str | os.PathLike[str], error: Exception) -> InputError | ResourceError:
    said = " ".join(str(error).split())
    if "Domain already set in registry" in said:
        return InputError(
            f"{path}: the session options hold operators of one domain twice; call qcompiler.register instead of "
            "register_custom_ops_library, not besides it"
        )
    if f"{_DOMAIN}:" not in said or "not a registered" not in said:
        return InputError(f"{path}: ONNX Runtime cannot load it: {said}")
    if _library_file().is_file():
        remedy = "call qcompiler.register on your session options, or update qcompiler"
    else:
        remedy = f"this installation lacks {_LIBRARY}: in a checkout run scripts/install, elsewhere pip install qcompiler's sources"
    return ResourceError(f"{path}: needs operators of {_DOMAIN} that are not registered; {remedy} ({said})")
