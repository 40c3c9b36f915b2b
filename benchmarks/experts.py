"""A product with stacked experts, written in every way that ONNX Runtime can run it: milliseconds.

python -m benchmarks.experts              all of it: a minute or two
python -m benchmarks.experts --markdown   as a table

32 experts [1024, 1024] at int4 g32 sym, 4 of them for each token; 1, 16 and 256 tokens; one thread.

dense:     every expert reads all tokens. split: Split, a MatMulNBits for each, Concat (what qcompiler writes). one
           DequantizeLinear: of the 3-D codes, before the MatMul.
gathered:  each token brings its experts' matrices. split: the rows of each expert, a MatMulNBits on them, and back.
           GatherBlockQuantized: the packed matrices of each row gathered and unpacked. (Gather takes no 4-bit types.)

All run in one process, one after the other in each of REPEATS rounds; the median is taken.
"""

import argparse
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

import qcompiler
from benchmarks.measure.results import OUT, markdown
from qcompiler.algorithms import rtn
from qcompiler.api import Options
from qcompiler.quant import packing
from qcompiler.quant.scheme import Granularity, QuantScheme

EXPERTS, K, N, TOP, GROUP = 32, 1024, 1024, 4, 32
TOKENS = (1, 16, 256)
REPEATS = 15
SCHEME = QuantScheme(4, True, Granularity.GROUP, GROUP)


def _stack() -> Any:
    return np.random.default_rng(0).standard_normal((EXPERTS, K, N), dtype=np.float32) * np.float32(K**-0.5)


def _model(nodes: list[Any], constants: dict[str, Any], gathered: bool) -> onnx.ModelProto:
    shape = ["R", 1, K] if gathered else ["T", K]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    inputs += [helper.make_tensor_value_info("i", TensorProto.INT64, ["R"])] if gathered else []
    result = ["R", 1, N] if gathered else [EXPERTS, "T", N]
    graph = helper.make_graph(
        nodes, "experts", inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, result)]
    )
    for name, value in constants.items():
        made = value if isinstance(value, TensorProto) else numpy_helper.from_array(value, name)
        graph.initializer.append(made)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def _codes(stack: Any) -> tuple[Any, Any]:
    """Signed codes [E, N, K] and scales [E, N, K / GROUP] of the experts rounded to nearest."""
    found = [rtn.quantize(matrix.T, None, SCHEME) for matrix in stack]
    return np.stack([t.codes for t in found]), np.stack([t.scale for t in found])


def forms(folder: Path) -> dict[str, tuple[bool, Path | bytes]]:
    """The models, by name; whether each is gathered."""
    stack = _stack()
    codes, scale = _codes(stack)
    gather, product = (
        helper.make_node("Gather", ["w", "i"], ["v"]),
        helper.make_node("MatMul", ["x", "v"], ["y"]),
    )
    found: dict[str, tuple[bool, Path | bytes]] = {}
    for gathered in (False, True):
        nodes = [gather, product] if gathered else [helper.make_node("MatMul", ["x", "w"], ["y"])]
        name = "gathered" if gathered else "dense"
        model = _model(nodes, {"w": stack}, gathered)
        found[f"{name}: float"] = gathered, model.SerializeToString()
        source = folder / f"{name}.onnx"
        onnx.save(model, source)
        for level in (0, 4):
            settings = [f"group_size={GROUP}", f"accuracy_level={level}"]
            made = qcompiler.compile(
                source,
                "w4a16-rtn",
                output=folder / f"{name}{level}",
                settings=settings,
                options=Options(force=True),
            )
            found[f"{name}: split, level {level}"] = gathered, made.path
    signed = packing.pack_flat(packing.shift_sign(codes.swapaxes(1, 2), 4).reshape(-1, N), 4)
    turned = helper.make_tensor("c", TensorProto.INT4, (EXPERTS, K, N), signed.tobytes(), raw=True)
    sides = np.ascontiguousarray(scale.swapaxes(1, 2))
    unpack = {"axis": 1, "block_size": GROUP}
    found["dense: one DequantizeLinear"] = False, _model(
        [helper.make_node("DequantizeLinear", ["c", "s"], ["w"], **unpack),
         helper.make_node("MatMul", ["x", "w"], ["y"])], {"c": turned, "s": sides}, False,
    ).SerializeToString()  # fmt: skip
    packed = packing.pack_flat(codes.reshape(-1, K), 4).reshape(EXPERTS, N, K // 2)
    blocks = {"bits": 4, "block_size": GROUP, "gather_axis": 0, "quantize_axis": 2, "domain": "com.microsoft"}
    found["gathered: GatherBlockQuantized"] = True, _model(
        [helper.make_node("GatherBlockQuantized", ["b", "i", "s"], ["u"], **blocks),
         helper.make_node("Transpose", ["u"], ["v"], perm=[0, 2, 1]), product], {"b": packed, "s": scale}, True,
    ).SerializeToString()  # fmt: skip
    return found


def feed(gathered: bool, tokens: int) -> dict[str, Any]:
    """Rows, and TOP different experts for each where they are gathered."""
    random = np.random.default_rng(tokens)
    if not gathered:
        return {"x": random.standard_normal((tokens, K), dtype=np.float32)}
    ids = np.concatenate([random.permutation(EXPERTS)[:TOP] for _ in range(tokens)]).astype(np.int64)
    return {"x": random.standard_normal((tokens * TOP, 1, K), dtype=np.float32), "i": ids}


def measure(models: dict[str, tuple[bool, Path | bytes]]) -> dict[str, list[float | None]]:
    """Milliseconds of each model for each of TOKENS; None where it would take more memory than a machine has."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    times: dict[str, list[float | None]] = {name: [] for name in models}
    sessions: dict[str, tuple[bool, Any]] = {}
    for name, (gathered, source) in models.items():
        opened = str(source) if isinstance(source, Path) else source
        sessions[name] = gathered, ort.InferenceSession(opened, options, providers=["CPUExecutionProvider"])
    for tokens in TOKENS:
        runs: dict[str, Callable[[], Any]] = {}
        for name, (gathered, session) in sessions.items():
            unpacked = gathered and "split" not in name and 4 * tokens * TOP * K * N > 1 << 31
            if not unpacked:
                given = feed(gathered, tokens)
                runs[name] = lambda session=session, given=given: session.run(None, given)
        seen: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(REPEATS):
            for name, run in runs.items():
                start = time.perf_counter()
                run()
                seen[name].append(1000 * (time.perf_counter() - start))
        for name in models:
            times[name].append(float(np.median(seen[name][1:])) if name in seen else None)
    return times


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    given = parser.parse_args()
    folder = OUT / "work" / "experts"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    times = measure(forms(folder))
    shutil.rmtree(folder)
    rows = [[name, *("-" if t is None else f"{t:.1f}" for t in found)] for name, found in times.items()]
    if given.markdown:
        print(markdown(["", *(f"{tokens} tokens" for tokens in TOKENS)], rows))
        return
    for row in rows:
        print(f"{row[0]:34}" + "".join(f"{cell:>10}" for cell in row[1:]))


if __name__ == "__main__":
    main()
