"""Rows of an embedding: our GatherNBits against ONNX Runtime's GatherBlockQuantized, on the same bytes, in one process.

python -m benchmarks.embedding_rows                the embedding of SmolLM2-135M, 2 threads: half a minute
python -m benchmarks.embedding_rows --threads 1 --size 151936x896

Memory is what a process of its own holds more after it has created the session on the model's file and run it once.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks.measure.interleaved import least_seconds, quiet_session
from benchmarks.measure.results import markdown
from qcompiler.graph.kernel_node import DOMAIN
from qcompiler.graph.operator_body import OUR_DOMAIN
from qcompiler.graph.own_gather_nbits import OP, STOCK_OP

SIZE = "49152x576"  # N, K
BLOCK = 32
TOKENS = (1, 512)

_MEMORY = """
import sys
import numpy, onnxruntime
from qcompiler.runtime import register
def held():
    with open("/proc/self/smaps_rollup") as file:
        sizes = dict(line.split(":") for line in list(file)[1:])
    return int(sizes["Anonymous"].split()[0])
options = onnxruntime.SessionOptions()
register(options)
before = held()
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
session.run(None, {"indices": numpy.zeros((1, 1), numpy.int64)})
print(held() - before)
"""


def model(n: int, k: int, bits: int, symmetric: bool, ours: bool) -> onnx.ModelProto:
    """Rows of one table."""
    rng = np.random.default_rng(0)
    groups = -(-k // BLOCK)
    constants = {
        "codes": rng.integers(0, 256, (n, groups * BLOCK * bits // 8), np.uint8),
        "scales": rng.uniform(0.01, 0.02, (n, groups)).astype(np.float32),
    }
    if not symmetric:
        constants["zero_points"] = rng.integers(0, 256, (n, -(-groups * bits // 8)), np.uint8)
    names = list(constants)
    if ours:
        node = helper.make_node(
            OP, ["indices", *names], ["y"], domain=OUR_DOMAIN, K=k, N=n, bits=bits, block_size=BLOCK
        )
    else:
        node = helper.make_node(
            STOCK_OP, [names[0], "indices", *names[1:]], ["y"], domain=DOMAIN, bits=bits, block_size=BLOCK, gather_axis=0,
            quantize_axis=1,
        )  # fmt: skip
    indices = helper.make_tensor_value_info("indices", TensorProto.INT64, ["B", "M"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    stored = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph([node], "g", [indices], [y], stored)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(node.domain, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def held_kb(made: onnx.ModelProto) -> int:
    """Anonymous memory of a session on it, its weights in a file of their own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(made, path, save_as_external_data=True, location="data", size_threshold=0)
        command = [sys.executable, "-c", _MEMORY, str(path)]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--size", metavar="NxK", default=SIZE)
    asked = parser.parse_args()
    n, k = map(int, asked.size.split("x"))
    lines = []
    for bits in (4, 8):
        for symmetric in (True, False):
            made = [model(n, k, bits, symmetric, ours) for ours in (True, False)]
            sessions = [quiet_session(each, asked.threads, True) for each in made]
            memory = [held_kb(each) / 1024 for each in made]
            for tokens in TOKENS:
                indices = np.random.default_rng(tokens).integers(0, n, (1, tokens))
                ours, stock = (1e6 * seconds for seconds in least_seconds(sessions, {"indices": indices}))
                lines.append(
                    [f"{bits} bits, {'no ' if symmetric else ''}zero points", str(tokens), f"{ours:.1f}", f"{stock:.1f}",
                     f"{stock / ours:.2f}", f"{memory[0]:.1f}", f"{memory[1]:.1f}"]
                )  # fmt: skip
    head = ["", "tokens", "ours, us", STOCK_OP, "times as fast", "MB held, ours", STOCK_OP]
    print(f"{n} x {k}, blocks of {BLOCK}, {asked.threads} thread(s)\n\n{markdown(head, lines)}")


if __name__ == "__main__":
    main()
