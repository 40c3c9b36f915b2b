"""What ONNX Runtime raises: its Python classes share no base of their own."""

from typing import Final

from onnxruntime.capi import onnxruntime_pybind11_state as state

SESSION_ERRORS: Final[tuple[type[Exception], ...]] = (
    RuntimeError,
    ValueError,
    state.Fail,
    state.InvalidArgument,
    state.InvalidGraph,
    state.InvalidProtobuf,
    state.NoSuchFile,
    state.NotImplemented,
    state.RuntimeException,
)
