"""Outliers: our SparseMatMul against its body in plain ONNX and against the dense product in floats, in one process.

python -m benchmarks.sparse_product                1 % of each shape, 2 threads: a minute
python -m benchmarks.sparse_product --threads 1 --share 0.005

Values are float16 and columns uint16, as compiles write them. The body is what runs where our library is not registered; the dense product
is a MatMul with the same numbers in a float32 matrix, which holds 1 / share / 2 times the bytes and more.
"""

import argparse

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from benchmarks.measure.interleaved import least_seconds, quiet_session
from benchmarks.measure.results import markdown
from qcompiler.graph.operator_body import OUR_DOMAIN
from qcompiler.graph.sparse_matmul import OP, provide
from qcompiler.quant.outliers import Outliers, column_type

SIZES = ((1536, 576), (576, 1536), (4096, 4096))  # N, K
ROWS = (1, 4, 16, 128, 512)


def models(n: int, k: int, share: float) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """A product with a sparse matrix, and the dense one."""
    rng = np.random.default_rng(0)
    mask = rng.random((n, k), np.float32) < share
    outliers = Outliers.at(mask, rng.standard_normal((n, k), np.float32), "float16")
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["M", width])
        for name, width in (("x", k), ("y", n))
    )
    made = []
    for node, constants in (
        (
            helper.make_node(OP, ["x", "values", "columns", "offsets"], ["y"], domain=OUR_DOMAIN),
            {
                "values": outliers.values.astype(np.float16),
                "columns": outliers.columns.astype(column_type(k)),
                "offsets": outliers.offsets,
            },
        ),
        (
            helper.make_node("MatMul", ["x", "w"], ["y"]),
            {"w": np.ascontiguousarray(outliers.dense(slice(None)).T)},
        ),
    ):
        stored = [numpy_helper.from_array(array, name) for name, array in constants.items()]
        graph = helper.make_graph([node], "g", [x], [y], stored)
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid(OUR_DOMAIN, 1)]
        model = ir.serde.deserialize_model(helper.make_model(graph, opset_imports=opsets, ir_version=10))
        provide(model)
        made.append(ir.serde.serialize_model(model))
    return made[0], made[1]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--share", type=float, default=0.01)
    parser.add_argument("--rows", nargs="+", type=int, default=ROWS)
    asked = parser.parse_args()
    lines = []
    for n, k in SIZES:
        sparse, dense = models(n, k, asked.share)
        sessions = [
            quiet_session(model, asked.threads, ours)
            for model, ours in ((sparse, True), (sparse, False), (dense, False))
        ]
        for m in asked.rows:
            x = np.random.default_rng(m).standard_normal((m, k)).astype(np.float32)
            ours, body, full = (1e6 * seconds for seconds in least_seconds(sessions, {"x": x}))
            lines.append(
                [f"{n} x {k}", str(m), f"{ours:.0f}", f"{body:.0f}", f"{full:.0f}", f"{body / ours:.1f}",
                 f"{full / ours:.1f}"]
            )  # fmt: skip
    head = ["N x K", "M", "ours, us", "its body", "dense, float32", "body / ours", "dense / ours"]
    print(f"{asked.share:.2%} of the matrix, {asked.threads} thread(s)\n\n{markdown(head, lines)}")


if __name__ == "__main__":
    main()
