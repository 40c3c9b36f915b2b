"""The ways to run one model: ONNX Runtime's optimization levels, numbers of threads, providers."""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx
import onnxruntime as ort

from qcompiler.errors import ResourceError
from qcompiler.graph.session_errors import SESSION_ERRORS
from qcompiler.runtime import register

CPU = "CPUExecutionProvider"
REMOTE = frozenset({"AzureExecutionProvider"})
"""Providers that send a model elsewhere; they run nodes of their own kind alone."""

_LEVELS = {
    "disabled": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "layout": getattr(ort.GraphOptimizationLevel, "ORT_ENABLE_LAYOUT", None),  # from ONNX Runtime 1.23 on
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
LEVELS = [name for name, level in _LEVELS.items() if level is not None]
"""Of this ONNX Runtime, from nothing to everything."""


@dataclass(frozen=True)
class SessionVariant:
    """One way to run a model.

    Attributes:
        level: of ONNX Runtime's optimizer, one of ``LEVELS``.
        threads: in one operator; 0 as ONNX Runtime chooses.
        provider: what is not for it runs on the CPU.
        library: whether our operators are registered where they are built.
    """

    level: str = "disabled"
    threads: int = 1
    provider: str = CPU
    library: bool = True

    @property
    def label(self) -> str:
        """``all, 2 threads, CPU``."""
        threads = (
            "all threads" if self.threads == 0 else f"{self.threads} thread{'' if self.threads == 1 else 's'}"
        )
        library = "" if self.library else ", without our library"
        return f"{self.level}, {threads}, {self.provider.removesuffix('ExecutionProvider')}{library}"

    def open(
        self, model: Path | bytes, *, optimized: Path | None = None, entries: Mapping[str, str] | None = None
    ) -> ort.InferenceSession:
        """A session.

        Args:
            optimized: where the optimized graph is written; its weights go to ``optimized.data`` beside it.
            entries: of the session's configuration.
        Raises:
            one of ``SESSION_ERRORS``: ONNX Runtime cannot create it.
        """
        options = ort.SessionOptions()
        options.log_severity_level = 4  # the error says it
        options.graph_optimization_level = _LEVELS[self.level]
        options.intra_op_num_threads = self.threads
        for key, value in (entries or {}).items():
            options.add_session_config_entry(key, value)
        if optimized is not None:
            options.optimized_model_filepath = str(optimized)
            options.add_session_config_entry(
                "session.optimized_model_external_initializers_file_name", "optimized.data"
            )
        if self.library:
            with suppress(ResourceError):  # not built here
                register(options)
        providers = [self.provider] if self.provider == CPU else [self.provider, CPU]
        return ort.InferenceSession(
            model if isinstance(model, bytes) else os.fspath(model), options, providers=providers
        )


REFERENCE = SessionVariant()


def variants(providers: Sequence[str], ours: bool) -> list[SessionVariant]:
    """What is compared with ``REFERENCE``.

    Args:
        providers: beside the CPU.
        ours: whether the model has operators of ours, which run otherwise where our library is not there.
    """
    found = [SessionVariant(level) for level in LEVELS[1:]]
    cores = os.cpu_count() or 1
    found += [
        SessionVariant("all", threads) for threads in dict.fromkeys((min(2, cores), cores)) if threads > 1
    ]
    found += [SessionVariant("all", cores, provider) for provider in providers]
    if ours:
        found.append(SessionVariant("all", library=False))
    return found


def is_usable(provider: str) -> bool:
    """Whether sessions get a provider that this ONNX Runtime offers: a build for CUDA does so on a machine without it too."""
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["x"], ["y"])],
        "probe",
        [value("x", onnx.TensorProto.FLOAT, [1])],
        [value("y", onnx.TensorProto.FLOAT, [1])],
    )
    probe = onnx.helper.make_model(graph, ir_version=8, opset_imports=[onnx.helper.make_opsetid("", 17)])
    try:
        return provider in SessionVariant(provider=provider).open(probe.SerializeToString()).get_providers()
    except SESSION_ERRORS:
        return False


def run(session: ort.InferenceSession, feed: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """Outputs by name, of those that are tensors.

    Raises:
        one of ``SESSION_ERRORS``: the run failed.
    """
    names = [output.name for output in session.get_outputs() if output.type.startswith("tensor(")]
    return dict(zip(names, session.run(names, dict(feed)), strict=True))
