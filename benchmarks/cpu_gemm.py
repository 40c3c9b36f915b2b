"""Our MatMulNBits against ONNX Runtime's (accuracy_level 4), on the same bytes, in one process.

python -m benchmarks.cpu_gemm                      one thread, all shapes: about 5 minutes
python -m benchmarks.cpu_gemm --threads 2 --json   as a list of rows: n, k, m, bits, group, symmetric, threads, ours_us, ort_us, limit_share
python -m benchmarks.cpu_gemm --sizes 576x576 --rows 1 16

From the root of the sources and with -m, as all benchmarks: `python benchmarks/cpu_gemm.py` does not find what they share.

Both sessions run in turn, for at least SECONDS together; the least time of each counts. Between runs no thread spins. The share is of
what the machine can do at most: the time to read the weights' bytes from memory, or to multiply at the peak of its 8-bit instructions,
whichever is longer, over ours. Both limits are measured first (runtime_ops/benchmarks/limits.cc). Weights that fit the caches are not
read from memory: only the second limit counts for them.
"""

import argparse
import json
import subprocess
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from benchmarks.measure.results import markdown
from qcompiler.graph.operator_body import OUR_DOMAIN
from qcompiler.quant import packing
from qcompiler.quant.scheme import Granularity, QuantScheme
from qcompiler.runtime import register

SIZES = ((4096, 4096), (11008, 4096), (576, 576), (1536, 576), (49152, 576))  # N, K
SCHEMES = tuple(
    QuantScheme(4, symmetric, Granularity.GROUP, group) for group, symmetric in ((128, False), (32, True))
)
ROWS = (1, 4, 16, 128, 512)
SECONDS = 1.0
CACHED = 16 << 20  # bytes: smaller weights may stay in a cache from one run to the next


@dataclass(frozen=True)
class Limits:
    """What the machine can do at most."""

    threads: int
    dram_gb_s: float
    int8_gops: float

    def seconds(self, n: int, k: int, m: int, stored: int) -> float:
        """The least time of a product whose weight has ``stored`` bytes."""
        reading = stored / self.dram_gb_s / 1e9 if stored > CACHED else 0.0
        return max(reading, 2 * n * k * m / self.int8_gops / 1e9)


@dataclass(frozen=True)
class Result:
    """A row; times in microseconds."""

    n: int
    k: int
    m: int
    bits: int
    group: int
    symmetric: bool
    threads: int
    ours_us: float
    ort_us: float
    limit_share: float


def measure_limits(threads: int) -> Limits:
    """Builds and runs the program."""
    sources = Path(__file__).parents[1] / "runtime_ops"
    with tempfile.TemporaryDirectory() as folder:
        quiet: dict[str, Any] = {"check": True, "stdout": subprocess.DEVNULL}
        subprocess.run(["cmake", "-S", sources, "-B", folder, "-DQCOMPILER_BENCHMARKS=ON"], **quiet)
        subprocess.run(["cmake", "--build", folder, "--target", "limits"], **quiet)
        said = subprocess.run([f"{folder}/limits", str(threads)], check=True, capture_output=True, text=True)
    return Limits(**json.loads(said.stdout))


def model(n: int, k: int, scheme: QuantScheme, ours: bool) -> tuple[bytes, int]:
    """One product, and the bytes of its weight."""
    rng = np.random.default_rng(0)
    groups = -(-k // scheme.group_width(k))
    codes = rng.integers(0, 1 << scheme.bits, (n, k), np.uint8)
    points = None if scheme.symmetric else rng.integers(0, 1 << scheme.bits, (n, groups), np.uint8)
    constants = {
        "codes": packing.pack_matmul_nbits(codes, points, scheme),
        "scales": rng.uniform(0.01, 0.02, (n, groups)).astype(np.float32),
    }
    if points is not None:
        constants["zero_points"] = packing.pack_zero_points(points, scheme.bits)
    node = helper.make_node(
        "MatMulNBits", ["x", *constants], ["y"], domain=OUR_DOMAIN if ours else "com.microsoft", K=k, N=n, bits=scheme.bits,
        block_size=scheme.group_size, **({} if ours else {"accuracy_level": 4}),
    )  # fmt: skip
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["M", width])
        for name, width in (("x", k), ("y", n))
    )
    graph = helper.make_graph(
        [node], "g", [x], [y], [numpy_helper.from_array(a, name) for name, a in constants.items()]
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(node.domain, 1)]
    made: onnx.ModelProto = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return made.SerializeToString(), sum(a.nbytes for a in constants.values())


def _session(source: bytes, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    # Else the threads of the session that rests would spin on the cores of the one that is measured.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    register(options)
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def compare(
    sessions: tuple[ort.InferenceSession, ort.InferenceSession], m: int, k: int
) -> tuple[float, float]:
    """The least seconds of a run of each, for the same rows."""
    x = np.random.default_rng(m).standard_normal((m, k)).astype(np.float32)
    bindings = []
    for session in sessions:
        binding = session.io_binding()
        binding.bind_cpu_input("x", x)
        binding.bind_output("y")
        bindings.append(binding)
    best = [np.inf, np.inf]
    rounds, end = 0, time.perf_counter() + SECONDS
    while rounds < 3 or time.perf_counter() < end:
        for index, session in enumerate(sessions):
            start = time.perf_counter()
            session.run_with_iobinding(bindings[index])
            best[index] = min(best[index], time.perf_counter() - start)
        rounds += 1
    return best[0], best[1]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sizes", nargs="+", metavar="NxK", default=[f"{n}x{k}" for n, k in SIZES])
    parser.add_argument("--rows", nargs="+", type=int, default=ROWS)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    limits = measure_limits(asked.threads)
    results = []
    for size in asked.sizes:
        n, k = map(int, size.split("x"))
        for scheme in SCHEMES:
            (ours, stored), (stock, _) = model(n, k, scheme, True), model(n, k, scheme, False)
            sessions = _session(ours, asked.threads), _session(stock, asked.threads)
            for m in asked.rows:
                our_seconds, ort_seconds = compare(sessions, m, k)
                share = limits.seconds(n, k, m, stored) / our_seconds
                results.append(
                    Result(n, k, m, scheme.bits, scheme.group_width(k), scheme.symmetric, asked.threads,
                           round(our_seconds * 1e6, 1), round(ort_seconds * 1e6, 1), round(share, 3))
                )  # fmt: skip
    if asked.json:
        print(json.dumps([asdict(result) for result in results], indent=1))
        return
    print(f"limits: {limits.dram_gb_s} GB/s, {limits.int8_gops} GOPS, {limits.threads} thread(s)\n")
    head = ["N x K", "scheme", "M", "ours us", "ORT us", "ORT / ours", "share of the limit"]
    rows = [
        [f"{r.n} x {r.k}", f"int{r.bits} g{r.group} {'sym' if r.symmetric else 'asym'}", str(r.m), f"{r.ours_us:.1f}", f"{r.ort_us:.1f}",
         f"{r.ort_us / r.ours_us:.2f}", f"{r.limit_share:.0%}"]
        for r in results
    ]  # fmt: skip
    print(markdown(head, rows))


if __name__ == "__main__":
    main()
