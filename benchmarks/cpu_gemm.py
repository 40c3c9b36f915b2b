"""Our MatMulNBits against ONNX Runtime's of the same accuracy_level, on the same bytes, in one process.

python -m benchmarks.cpu_gemm                      one thread, all shapes: about 5 minutes
python -m benchmarks.cpu_gemm --threads 2 --json   as a list of rows: n, k, m, bits, group, symmetric, threads, ours_us, ort_us, limit_share
python -m benchmarks.cpu_gemm --compute float32    activations as they are (accuracy_level 1), in place of 8 bits (4)
python -m benchmarks.cpu_gemm --sizes 576x576 --rows 1 16

From the root of the sources and with -m, as all benchmarks: `python benchmarks/cpu_gemm.py` does not find what they share.

Both sessions run in turn, for at least a second together; the least time of each counts. Between runs no thread spins. The share is of
what the machine can do at most: the time to read the weights' bytes from memory, or to multiply at the peak of its 8-bit instructions (or
its float32 ones), whichever is longer, over ours. The limits are measured first (runtime_ops/benchmarks/limits.cc). A model's weights are
too many for the caches, so a weight of more than 4 MB is there several times, as so many products of one run on the same rows, and each
comes from memory; a small one stays in the caches, and only the second limit counts for it.
"""

import argparse
import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.measure.products import Product, copies_of, least_seconds, measure_limits, require_alike
from benchmarks.measure.results import markdown
from qcompiler.graph.operator_body import OUR_DOMAIN
from qcompiler.graph.own_matmul_nbits import FLOAT_ACTIVATIONS, INT8_ACTIVATIONS
from qcompiler.quant import packing
from qcompiler.quant.scheme import Granularity, QuantScheme

SIZES = ((4096, 4096), (11008, 4096), (576, 576), (1536, 576), (49152, 576))  # N, K
SCHEMES = tuple(
    QuantScheme(4, symmetric, Granularity.GROUP, group) for group, symmetric in ((128, False), (32, True))
)
ROWS = (1, 4, 16, 128, 512)
LEVELS = {"int8": INT8_ACTIVATIONS, "float32": FLOAT_ACTIVATIONS}
"""What products compute in, and the accuracy_level for it."""


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


def weight(n: int, k: int, scheme: QuantScheme) -> dict[str, npt.NDArray[Any]]:
    """Inputs of a MatMulNBits."""
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
    return constants


def products(n: int, k: int, scheme: QuantScheme, level: int) -> tuple[Product, Product]:
    """Ours, and ONNX Runtime's, of an accuracy_level."""
    constants = weight(n, k, scheme)
    attributes = {
        "K": k, "N": n, "bits": scheme.bits, "block_size": scheme.group_width(k), "accuracy_level": level
    }  # fmt: skip
    return (
        Product("MatMulNBits", OUR_DOMAIN, constants, attributes),
        Product("MatMulNBits", "com.microsoft", constants, attributes),
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sizes", nargs="+", metavar="NxK", default=[f"{n}x{k}" for n, k in SIZES])
    parser.add_argument("--rows", nargs="+", type=int, default=ROWS)
    parser.add_argument("--compute", choices=LEVELS, default="int8")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    limits = measure_limits(asked.threads)
    results = []
    for size in asked.sizes:
        n, k = map(int, size.split("x"))
        for scheme in SCHEMES:
            pair = products(n, k, scheme, LEVELS[asked.compute])
            stored = pair[0].stored
            copies = copies_of(stored)
            sessions = [product.session(copies, asked.threads) for product in pair]
            for m in asked.rows:
                x = np.random.default_rng(m).standard_normal((m, k)).astype(np.float32)
                require_alike(sessions, x)
                ours, stock = (seconds / copies for seconds in least_seconds(sessions, [x, x]))
                share = limits.seconds(n, k, m, stored, asked.compute) / ours
                results.append(
                    Result(n, k, m, scheme.bits, scheme.group_width(k), scheme.symmetric, asked.threads,
                           round(ours * 1e6, 1), round(stock * 1e6, 1), round(share, 3))
                )  # fmt: skip
    if asked.json:
        print(json.dumps([asdict(result) for result in results], indent=1))
        return
    print(
        f"limits: {limits.dram_gb_s} GB/s, {limits.int8_gops} GOPS of int8, {limits.float32_gops} of float32, {limits.threads} thread(s)\n"
    )
    head = ["N x K", "scheme", "M", "ours us", "ORT us", "ORT / ours", "share of the limit"]
    rows = [
        [f"{r.n} x {r.k}", f"int{r.bits} g{r.group} {'sym' if r.symmetric else 'asym'}", str(r.m), f"{r.ours_us:.1f}", f"{r.ort_us:.1f}",
         f"{r.ort_us / r.ours_us:.2f}", f"{r.limit_share:.0%}"]
        for r in results
    ]  # fmt: skip
    print(markdown(head, rows))


if __name__ == "__main__":
    main()
