"""Products as models of their own, measured in turn in one process, and what the machine can do at most."""

import json
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from qcompiler.runtime import register

SECONDS = 1.0
"""All sessions of a comparison run in turn for at least so long."""
SMALL = 4 << 20  # bytes: a weight up to this may stay in a cache from one run to the next
CACHES = 64 << 20  # bytes: more than the caches hold
ALIKE = 0.02  # of the norm: rounding activations to 8 bits errs by 0.007


@dataclass(frozen=True)
class Limits:
    """What the machine can do at most."""

    threads: int
    dram_gb_s: float
    int8_gops: float
    float32_gops: float

    def seconds(
        self, n: int, k: int, m: int, stored: int, compute: Literal["int8", "float32"] = "int8"
    ) -> float:
        """The least time of a product whose weight has ``stored`` bytes, which multiplies numbers of a type."""
        reading = stored / self.dram_gb_s / 1e9 if stored > SMALL else 0.0
        gops = self.int8_gops if compute == "int8" else self.float32_gops
        return max(reading, 2 * n * k * m / gops / 1e9)


def measure_limits(threads: int) -> Limits:
    """Builds and runs the program."""
    sources = Path(__file__).parents[2] / "runtime_ops"
    with tempfile.TemporaryDirectory() as folder:
        quiet: dict[str, Any] = {"check": True, "stdout": subprocess.DEVNULL}
        subprocess.run(["cmake", "-S", sources, "-B", folder, "-DQCOMPILER_BENCHMARKS=ON"], **quiet)
        subprocess.run(["cmake", "--build", folder, "--target", "limits"], **quiet)
        said = subprocess.run([f"{folder}/limits", str(threads)], check=True, capture_output=True, text=True)
    return Limits(**json.loads(said.stdout))


def copies_of(stored: int) -> int:
    """How often a weight of so many bytes has to be in a model to be read from memory, as in a model of many layers."""
    return -(-CACHES // stored) if stored > SMALL else 1


@dataclass(frozen=True)
class Product:
    """A node that multiplies x [M, K] with constants.

    Attributes:
        domain: "" for ONNX's own.
    """

    op: str
    domain: str
    constants: Mapping[str, npt.NDArray[Any]]
    attributes: Mapping[str, int]
    x_type: int = TensorProto.FLOAT
    y_type: int = TensorProto.FLOAT

    @property
    def stored(self) -> int:
        """Bytes of the constants."""
        return sum(array.nbytes for array in self.constants.values())

    def session(self, copies: int, threads: int) -> ort.InferenceSession:
        """With our library: so many nodes on one x, each with constants and an output of its own."""
        nodes, stored = [], []
        for copy in range(copies):
            names = [f"{name}_{copy}" for name in self.constants]
            nodes.append(
                helper.make_node(self.op, ["x", *names], [f"y_{copy}"], domain=self.domain, **self.attributes)
            )
            # Rows turned, so that no two weights are alike, which a runtime may keep once.
            stored += [
                numpy_helper.from_array(np.roll(array, copy, 0) if array.ndim > 1 else array, name)
                for name, array in zip(names, self.constants.values(), strict=True)
            ]
        x = helper.make_tensor_value_info("x", self.x_type, ["M", "K"])
        outputs = [helper.make_tensor_value_info(node.output[0], self.y_type, ["M", "N"]) for node in nodes]
        opsets = [
            helper.make_opsetid("", 21),
            *([helper.make_opsetid(self.domain, 1)] if self.domain else []),
        ]
        model: onnx.ModelProto = helper.make_model(
            helper.make_graph(nodes, "g", [x], outputs, stored), opset_imports=opsets, ir_version=10
        )
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        # Else the threads of the session that rests would spin on the cores of the one that is measured.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        register(options)
        return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def require_alike(sessions: Sequence[ort.InferenceSession], x: npt.NDArray[Any]) -> None:
    """Ends the program where the first outputs differ by more than the rounding of activations to 8 bits does."""
    first, *others = (session.run([session.get_outputs()[0].name], {"x": x})[0] for session in sessions)
    for other in others:
        error = float(np.linalg.norm(first - other) / np.linalg.norm(other))
        if not error < ALIKE:
            raise SystemExit(
                f"outputs differ by {error:.3g} of their norm for x of {x.shape}: nothing to compare"
            )


def least_seconds(
    sessions: Sequence[ort.InferenceSession], inputs: Sequence[npt.NDArray[Any]]
) -> list[float]:
    """The least seconds of a run of each session, which run in turn."""
    bindings = []
    for session, x in zip(sessions, inputs, strict=True):
        binding = session.io_binding()
        binding.bind_cpu_input("x", x)
        for output in session.get_outputs():
            binding.bind_output(output.name)
        bindings.append(binding)
    best = [float(np.inf)] * len(sessions)
    rounds, end = 0, time.perf_counter() + SECONDS
    while rounds < 3 or time.perf_counter() < end:
        for index, session in enumerate(sessions):
            start = time.perf_counter()
            session.run_with_iobinding(bindings[index])
            best[index] = min(best[index], time.perf_counter() - start)
        rounds += 1
    return best
