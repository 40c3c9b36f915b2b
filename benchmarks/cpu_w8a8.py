"""Our products with activations of 8 bits against ONNX Runtime's, on the same weights, in one process.

python -m benchmarks.cpu_w8a8                      one thread, all shapes: about 2 minutes
python -m benchmarks.cpu_w8a8 --threads 2 --json   as a list of rows

dynamic: float activations, DynamicQuantMatMul (a scale for each row) against com.microsoft::DynamicQuantizeMatMul (one for all rows),
with the error of each against the product in float64, as a share of its norm; every tenth of rows is ten times as large, as tokens are.
s8: int8 activations and weights of one scale, QLinearMatMul against MatMulInteger, which leaves scaling to further nodes. u8: the same of
uint8 activations. Shares of the limit as in ``cpu_gemm``.
"""

import argparse
import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from benchmarks.measure.products import Product, copies_of, least_seconds, measure_limits
from benchmarks.measure.results import markdown
from qcompiler.graph.operator_body import OUR_DOMAIN

SIZES = ((4096, 4096), (1536, 576), (576, 576))  # N, K
ROWS = (1, 4, 16, 128, 512)
BLOCK = 128
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Result:
    """A row; times in microseconds, errors as a share of the output's norm (0 where both are exact)."""

    kind: str
    n: int
    k: int
    m: int
    threads: int
    ours_us: float
    ort_us: float
    our_error: float
    ort_error: float
    limit_share: float


def _weight(n: int, k: int) -> tuple[Array, Array]:
    """int8 [N, K] and a scale for each row, float32 [N]."""
    rng = np.random.default_rng(0)
    w = rng.standard_normal((n, k)).astype(np.float32)
    scales = np.abs(w).max(1) / np.float32(127)
    return np.rint(w / scales[:, None]).astype(np.int8), scales


def _ours(op: str, codes: Array, scales: Array, before: dict[str, Array], x_type: int) -> Product:
    n, k = codes.shape
    groups = -(-k // BLOCK)
    unsigned = np.zeros((n, groups * BLOCK), np.uint8)
    unsigned[:, :k] = codes.view(np.uint8) ^ 0x80
    constants = {**before, "codes": unsigned, "scales": np.repeat(scales[:, None], groups, 1)}
    return Product(op, OUR_DOMAIN, constants, {"K": k, "N": n, "bits": 8, "block_size": BLOCK}, x_type)


def _dynamic(codes: Array, scales: Array) -> tuple[Product, Product]:
    stock = {
        "w": np.ascontiguousarray(codes.T),
        "scale": scales,
        "zero_point": np.zeros(len(scales), np.int8),
    }
    return (
        _ours("DynamicQuantMatMul", codes, scales, {}, TensorProto.FLOAT),
        Product("DynamicQuantizeMatMul", "com.microsoft", stock, {}),
    )


def _static(codes: Array, scales: Array, x_type: int, zero_point: Array) -> tuple[Product, Product]:
    before = {"x_scale": np.array(0.02, np.float32), "x_zero_point": zero_point}
    stock = {"w": np.ascontiguousarray(codes.T), "zero_point": zero_point}
    return (
        _ours("QLinearMatMul", codes, scales, before, x_type),
        Product("MatMulInteger", "", stock, {}, x_type, TensorProto.INT32),
    )


def _rows(m: int, k: int) -> Array:
    x = np.random.default_rng(m).standard_normal((m, k)).astype(np.float32)
    x[::10] *= 10
    return x


def _bytes(m: int, k: int, kind: type) -> Array:
    limits = np.iinfo(kind)
    return np.random.default_rng(m).integers(limits.min, limits.max + 1, (m, k)).astype(kind)


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
        codes, scales = _weight(n, k)
        exact = codes.astype(np.float64) * scales[:, None]
        kinds = {
            "dynamic": (_dynamic(codes, scales), _rows),
            "s8": (_static(codes, scales, TensorProto.INT8, np.array(0, np.int8)), lambda m, k: _bytes(m, k, np.int8)),
            "u8": (_static(codes, scales, TensorProto.UINT8, np.array(128, np.uint8)), lambda m, k: _bytes(m, k, np.uint8)),
        }  # fmt: skip
        for kind, (pair, make) in kinds.items():
            copies = copies_of(pair[0].stored)
            sessions = [product.session(copies, asked.threads) for product in pair]
            for m in asked.rows:
                x = make(m, k)
                ours, stock = (seconds / copies for seconds in least_seconds(sessions, [x, x]))
                errors = [0.0, 0.0]
                if kind == "dynamic":
                    y = x @ exact.T
                    errors = [
                        float(np.linalg.norm(session.run(["y_0"], {"x": x})[0] - y) / np.linalg.norm(y))
                        for session in sessions
                    ]
                share = limits.seconds(n, k, m, pair[0].stored) / ours
                results.append(
                    Result(kind, n, k, m, asked.threads, round(ours * 1e6, 1), round(stock * 1e6, 1), errors[0], errors[1], round(share, 3))
                )  # fmt: skip
    if asked.json:
        print(json.dumps([asdict(result) for result in results], indent=1))
        return
    print(f"limits: {limits.dram_gb_s} GB/s, {limits.int8_gops} GOPS, {limits.threads} thread(s)\n")
    head = [
        "activations",
        "N x K",
        "M",
        "ours us",
        "ORT us",
        "ORT / ours",
        "our error",
        "ORT's error",
        "share of the limit",
    ]
    print(
        markdown(
            head,
            [
                [r.kind, f"{r.n} x {r.k}", str(r.m), f"{r.ours_us:.1f}", f"{r.ort_us:.1f}", f"{r.ort_us / r.ours_us:.2f}",
                 f"{r.our_error:.4f}", f"{r.ort_error:.4f}", f"{r.limit_share:.0%}"]
                for r in results
            ],
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()
