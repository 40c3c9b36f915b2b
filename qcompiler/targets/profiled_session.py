"""What ONNX Runtime makes of a model, and how long each node of that takes: the optimized graph and a profile of a small run.

The optimized copy and the profile are written to a temporary folder and read back; the copy is as large as the model.
"""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx
import onnxruntime as ort

from qcompiler.errors import InputError, ResourceError
from qcompiler.graph.disk import require_free, writing
from qcompiler.graph.model_file import files_of
from qcompiler.graph.session_errors import SESSION_ERRORS
from qcompiler.runtime import register

RUNS = 3  # after one that is not counted: memory is first touched in it
_SUFFIX = "_kernel_time"


@dataclass(frozen=True)
class RunningNode:
    """A node of the optimized graph.

    Attributes:
        op: with its domain, unless that is ONNX's own.
        provider: that runs it; empty for a node in a body, whose control flow node is profiled.
        microseconds: of one run, on average; 0.0 for what did not run.
        level: accuracy_level of a MatMulNBits: 4 rounds activations to int8, 0 and 1 multiply floats.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    provider: str
    microseconds: float
    level: int | None = None

    @property
    def title(self) -> str:
        """Its name; of one without a name that of what it yields."""
        return self.name or self.outputs[0]

    @property
    def op_type(self) -> str:
        """Without the domain."""
        return self.op.rpartition("::")[2]

    @property
    def label(self) -> str:
        """For people: ``MatMulNBits (level 4)``."""
        return f"{self.op_type} (level {self.level})" if self.level is not None else self.op_type


@dataclass(frozen=True)
class ProfiledSession:
    """One session.

    Attributes:
        providers: of the session, which may be fewer than were asked for.
        library: whether our operators were registered.
        nodes: of the optimized graph, control-flow bodies included.
        initializers: names of its constants, and how many dimensions each has.
        graph_inputs, graph_outputs: their names.
    """

    providers: list[str]
    library: bool
    nodes: list[RunningNode]
    initializers: dict[str, int]
    graph_inputs: list[str]
    graph_outputs: list[str]

    @property
    def microseconds(self) -> float:
        """Of all nodes in one run."""
        return sum(node.microseconds for node in self.nodes)


def profile(
    model: Path,
    feed: Mapping[str, npt.NDArray[Any]],
    providers: Sequence[str],
    runs: int = RUNS,
    threads: int | None = None,
    library: bool = True,
) -> ProfiledSession:
    """Create a session on the model file and run it on ``feed``.

    Args:
        threads: None leaves them to ONNX Runtime.
        library: whether our operators are registered, where they were built.
    Raises:
        InputError: ONNX Runtime cannot load or run it, or a provider is not there.
        ResourceError: the temporary folder has no room for a copy of the model.
    """
    offered = ort.get_available_providers()
    for provider in providers:
        if provider not in offered:
            raise InputError(
                f"{provider}: this ONNX Runtime does not offer it; choose from {', '.join(offered)}"
            )
    with tempfile.TemporaryDirectory(prefix="qcompiler-") as temporary:
        folder = Path(temporary)
        require_free(folder, sum(file.stat().st_size for file in files_of(model).values()))
        options, registered = _options(folder, library)
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            session = ort.InferenceSession(os.fspath(model), options, providers=list(providers))
            for _ in range(runs + 1):
                session.run(None, dict(feed))
            events = session.end_profiling()
        except SESSION_ERRORS as error:
            raise InputError(f"{model}: ONNX Runtime {ort.__version__}: {short(error)}") from error
        with writing(folder):
            optimized = onnx.load(folder / "optimized.onnx", load_external_data=False)
            kernels = _kernel_events(Path(events), runs)
    return ProfiledSession(
        session.get_providers(),
        registered,
        list(_nodes(optimized.graph, kernels)),
        {tensor.name: len(tensor.dims) for tensor in optimized.graph.initializer},
        [value.name for value in optimized.graph.input],
        [value.name for value in optimized.graph.output],
    )


def short(error: Exception) -> str:
    """The one line of an error of ONNX Runtime that tells something, without its place in ONNX Runtime's sources."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    if line.startswith("[ONNXRuntimeError]"):
        line = line.split(" : ", 3)[-1]
    return line if len(line) <= 300 else f"{line[:297]}..."


def _options(folder: Path, wanted: bool) -> tuple[ort.SessionOptions, bool]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.add_session_config_entry(
        "session.optimized_model_external_initializers_file_name", "optimized.data"
    )
    if not wanted:
        return options, False
    with suppress(ResourceError):  # not built here: a model that needs it fails to load
        register(options)
        return options, True
    return options, False


def _kernel_events(path: Path, runs: int) -> dict[str, tuple[str, float]]:
    """Provider and microseconds a run of each node, by name; the first run is left out."""
    durations: dict[str, list[float]] = {}
    providers: dict[str, str] = {}
    for event in json.loads(path.read_text(encoding="utf-8")):
        if event.get("cat") == "Node" and event["name"].endswith(_SUFFIX):
            name = event["name"].removesuffix(_SUFFIX)
            durations.setdefault(name, []).append(float(event["dur"]))
            providers[name] = event["args"].get("provider", "")
    found = {}
    for name, times in durations.items():
        counted = times[len(times) // (runs + 1) :]
        found[name] = (providers[name], sum(counted) / runs)
    return found


def _nodes(graph: onnx.GraphProto, kernels: Mapping[str, tuple[str, float]]) -> Iterator[RunningNode]:
    unnamed = _unnamed(graph, kernels)
    for node in graph.node:
        provider, microseconds = (
            kernels.get(node.name, ("", 0.0)) if node.name else next(unnamed[node.op_type], ("", 0.0))
        )
        op = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"
        level = next((a.i for a in node.attribute if a.name == "accuracy_level"), None)
        yield RunningNode(
            node.name, op, tuple(node.input), tuple(node.output), provider, microseconds,
            (level or 0) if "MatMulNBits" in node.op_type else None,
        )  # fmt: skip
        for attribute in node.attribute:
            for body in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                yield from _nodes(body, kernels)


def _unnamed(
    graph: onnx.GraphProto, kernels: Mapping[str, tuple[str, float]]
) -> dict[str, Iterator[tuple[str, float]]]:
    """For each operator what the profile says of its nodes without a name, in the order they ran in: it calls them ``MatMul_12``."""
    names = {node.name for node in graph.node}
    ran: dict[str, list[tuple[str, float]]] = {node.op_type: [] for node in graph.node}
    for name, told in kernels.items():
        operator, _, number = name.rpartition("_")
        if number.isdigit() and operator in ran and name not in names:
            ran[operator].append(told)
    return {operator: iter(told) for operator, told in ran.items()}
