"""Memory and time where the model is large: gigabytes of weights, thousands of nodes.

python -m benchmarks.memory                        all rows; goes on where it was stopped
python -m benchmarks.memory --rows nodes           one of them
python -m benchmarks.memory --gb 1 --again         a smaller model
python -m benchmarks.memory --markdown             and the table for the README

weights: --gb of float32 in external data through w4a16-rtn, in a process of its own; at --peer-gb the same
         again, and ONNX Runtime's round to nearest as the peer, since that one holds the whole model.
gptq:    decoders of several sizes, up to --gb, through w4a16-gptq on 2 windows of 64 tokens; beside each the forecast that a dry
         run gives. Weights are random, so only memory is measured: the search for scales and the refinement of codes, which
         need no more of it, are cut short.
nodes:   a chain of 20,000 nodes loaded, prepared, half of its nodes replaced one by one, and saved. The peer
         is onnx.load and onnx.save of the same file, which change nothing.
"""

import argparse
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from benchmarks import synthetic
from benchmarks.measure import child
from benchmarks.measure.results import OUT, Results, markdown
from qcompiler.graph import model_file
from qcompiler.graph.census import take_census
from qcompiler.graph.edits import replace_value
from qcompiler.pass_manager import run_passes
from qcompiler.pipeline import preparing_passes
from qcompiler.recipe import Recipe

JSON = OUT / "memory.json"
NODES = 20_000
REPEATS = 3  # of the node timings; the least is taken
ROWS = ("weights", "gptq", "nodes")
DECODERS = {
    "small": (0.3, synthetic.DecoderSizes(512, 2048, 4, 32_000)),
    "half": (0.5, synthetic.DecoderSizes(1024, 4096, 8, 16_000)),
    "wide": (0.3, synthetic.DecoderSizes(1024, 8192, 8, 8_000)),
    "large": (None, synthetic.DecoderSizes(3072, 8192, 24, 32_000)),
}
"""Gigabytes (None: those of --gb) and sizes."""
QUICK = ("algorithm=[{name: gptq, refine: 0, steps: 1, rounds: 0}]", "calib.samples=2", "calib.length=64")


def weights(results: Results, gb: float, peer_gb: float, again: bool) -> None:
    """Compile large synthetic models; one that is finished is not built again."""
    for size, peer in dict.fromkeys([(gb, False), (peer_gb, True)]):
        ours, theirs = f"weights/{size:g}GB/qcompiler", f"weights/{size:g}GB/ort-rtn"
        if ours in results and (not peer or theirs in results) and not again:
            continue
        with _folder(f"weights-{size:g}gb") as work:
            print(f"{size:g} GB of weights", file=sys.stderr, flush=True)
            model = synthetic.chain_of_matmuls(work / "model", int(size * 1e9))
            arguments: dict[str, Any] = {"model": str(model), "recipe": "w4a16-rtn"}
            results.put(ours, child.run("compile", arguments | {"output": str(work / "ours")}))
            shutil.rmtree(work / "ours")
            if peer:
                scheme = {"bits": 4, "group": 32, "symmetric": True}
                arguments = {"model": str(model), "output": str(work / "theirs")}
                results.put(theirs, child.run("ort", arguments | scheme | {"tool": "rtn"}))


def gptq(results: Results, gb: float, again: bool) -> None:
    """Compile decoders with Hessians, and note what was forecast."""
    for name, (asked, sizes) in DECODERS.items():
        size = gb if asked is None else asked
        key = f"gptq/{name} {size:g}GB"
        if key in results and not again:
            continue
        with _folder(f"gptq-{name}") as work:
            print(
                f"{size:g} GB decoder, hidden {sizes.hidden}, inner {sizes.inner}",
                file=sys.stderr,
                flush=True,
            )
            model = synthetic.decoder(work / "model", int(size * 1e9), sizes)
            for index in range(2):
                ids = np.random.default_rng(index).integers(0, sizes.vocabulary, (1, 64))
                (work / "data").mkdir(exist_ok=True)
                np.savez(work / "data" / f"{index}.npz", input_ids=ids)
            arguments: dict[str, Any] = {"model": str(model), "recipe": "w4a16-gptq", "settings": list(QUICK)}
            arguments |= {"calibration": str(work / "data"), "output": str(work / "ours")}
            found = child.run("forecast", arguments)
            weights = (work / "model" / synthetic.DATA).stat().st_size
            what = {"hidden": sizes.hidden, "inner": sizes.inner, "weight_bytes": weights}
            results.put(key, what | found | child.run("compile", arguments))


def nodes(results: Results, again: bool) -> None:
    """Seconds for each step of a long graph."""
    if "nodes/qcompiler" in results and "nodes/onnx" in results and not again:
        return
    with _folder("nodes") as work:
        print(f"{NODES} nodes", file=sys.stderr, flush=True)
        model = synthetic.chain_of_nodes(work / "model", NODES)
        ours = [_rewrite(model, work / "ours") for _ in range(REPEATS)]
        theirs = [_load_and_save(model, work / "theirs") for _ in range(REPEATS)]
        results.put("nodes/qcompiler", min(ours, key=lambda row: row["seconds"]))
        results.put("nodes/onnx", min(theirs, key=lambda row: row["seconds"]))


def _rewrite(path: Path, out: Path) -> dict[str, float]:
    times = [time.perf_counter()]
    model = model_file.load(path)
    times.append(time.perf_counter())
    run_passes(model, preparing_passes(Recipe.load("w4a16-rtn")), [])
    take_census(model)
    times.append(time.perf_counter())
    for node in list(model.graph):
        if node.op_type == "Mul":
            _replace(model.graph, node)
    times.append(time.perf_counter())
    model_file.save(model, out)
    times.append(time.perf_counter())
    shutil.rmtree(out)
    steps = [after - before for before, after in pairwise(times)]
    return dict(zip(("load", "prepare", "replace", "save"), steps, strict=True)) | {
        "seconds": times[-1] - times[0]
    }


def _replace(graph: ir.Graph, node: ir.Node) -> None:
    """A node by an equal new one, the way a pass does it."""
    old = node.outputs[0]
    fresh = ir.Value(name=f"{old.name}.new", type=old.type, shape=old.shape)
    graph.insert_before(node, ir.node("Mul", list(node.inputs), outputs=[fresh], name=f"{node.name}.new"))
    replace_value(old, fresh)
    graph.remove(node, safe=True)


def _load_and_save(path: Path, out: Path) -> dict[str, float]:
    times = [time.perf_counter()]
    model = onnx.load(path)
    times.append(time.perf_counter())
    out.mkdir()
    onnx.save(
        model, out / "model.onnx", save_as_external_data=True, location="model.onnx.data", size_threshold=1024
    )
    times.append(time.perf_counter())
    shutil.rmtree(out)
    return {"load": times[1] - times[0], "save": times[2] - times[1], "seconds": times[2] - times[0]}


@contextmanager
def _folder(name: str) -> Iterator[Path]:
    """An empty folder, gone afterwards: these models are as large as the disk allows."""
    work = OUT / "work" / name
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def table(results: Results) -> str:
    """Markdown of the finished rows."""
    lines = []
    for key, row in sorted(results.rows.items()):
        if key.startswith("weights/"):
            _, size, who = key.split("/")
            peer = results.rows.get(f"weights/{size}/ort-rtn")
            peak = row["peak_anonymous_bytes"]
            ratio = f"{peak / peer['peak_anonymous_bytes']:.3f}" if peer is not None else ""
            what = f"{size} of float32 weights, " + ("w4a16-rtn" if who == "qcompiler" else "peer: ORT RTN")
            lines.append([what, f"{row['wall_seconds']:.0f}", f"{peak / 1e6:.0f}", ratio])
    if "nodes/qcompiler" in results and "nodes/onnx" in results:
        ours, theirs = results.rows["nodes/qcompiler"], results.rows["nodes/onnx"]
        ratio = f"{ours['seconds'] / theirs['seconds']:.2f}"
        lines.append(
            [f"{NODES:,} nodes: load, prepare, replace half, save", f"{ours['seconds']:.1f}", "", ratio]
        )
        lines.append(
            [f"{NODES:,} nodes, peer: onnx.load and onnx.save", f"{theirs['seconds']:.1f}", "", "1.00"]
        )
    return markdown(["", "seconds", "peak anonymous MB", "ours / peer (memory; nodes: time)"], lines)


def forecast_table(results: Results) -> str:
    """Markdown of the finished decoders: what was forecast, and what was measured."""
    heads = [
        "",
        "hidden, inner",
        "weights, GB",
        "seconds",
        "peak anonymous MB",
        "forecast MB",
        "forecast / measured",
    ]
    lines = []
    for key, row in sorted(results.rows.items(), key=lambda entry: entry[1].get("weight_bytes", 0)):
        if key.startswith("gptq/"):
            peak, forecast = row["peak_anonymous_bytes"], row["forecast_bytes"]
            sizes = f"{row['hidden']}, {row['inner']}"
            lines.append(
                [key.split("/")[1].split()[0], sizes, f"{row['weight_bytes'] / 1e9:.2f}", f"{row['wall_seconds']:.0f}",
                 f"{peak / 1e6:.0f}", f"{forecast / 1e6:.0f}", f"{forecast / peak:.2f}"]
            )  # fmt: skip
    return markdown(heads, lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--gb", type=float, default=4.0, help="gigabytes (1e9 bytes) of the large model")
    parser.add_argument("--peer-gb", type=float, default=1.0, help="of the model that the peer quantizes too")
    parser.add_argument("--json", type=Path, default=JSON, help="where finished rows are kept")
    parser.add_argument("--again", action="store_true", help="measure rows that are finished too")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    given = parser.parse_args()
    results = Results(given.json)
    if "nodes" in given.rows:
        nodes(results, given.again)
    if "gptq" in given.rows:
        gptq(results, given.gb, given.again)
    if "weights" in given.rows:
        weights(results, given.gb, given.peer_gb, given.again)
    if given.markdown:
        print(f"{table(results)}\n\n{forecast_table(results)}")
        return
    for key, row in results.rows.items():
        print(
            key,
            " ".join(f"{name}={value:.4g}" for name, value in row.items() if isinstance(value, (int, float))),
        )


if __name__ == "__main__":
    main()
