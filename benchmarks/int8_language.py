"""What a prompt and a token take in a decoder of int8, beside ONNX Runtime's quantize_dynamic: SmolLM2-135M with a cache.

python -m benchmarks.int8_language                          all; compiled models are kept, times are measured anew
python -m benchmarks.int8_language --recipes w8a8-dynamic    some of ours
python -m benchmarks.int8_language --markdown                the table for the docs

A prompt of 512 tokens and one token behind 128, random ones: times depend on sizes alone, so smoothing is calibrated on one window of 64
tokens here, and quality is ``benchmarks.quality``'s. All models run in turn in one process: the least time that one thread computed. ONNX
Runtime's quantizer makes int8 weights with a scale for each output; head and embedding stay float there, and in a row of ours that says so.
"""

import argparse
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure import child
from benchmarks.measure.evaluation import model_bytes
from benchmarks.measure.interleaved import least_seconds, quiet_session
from benchmarks.measure.results import OUT, Results, markdown
from models import smollm2
from models.built_model import Graph
from qcompiler.bench.workloads import Sizes, make_workloads
from qcompiler.graph import model_file

JSON = OUT / "int8_language.json"
MODELS = OUT / "int8_language"
FLOAT, PEER = "float", "ort-dynamic"
RECIPES = ("w8a8-dynamic", "w8a8-smoothquant")
FLOAT_ENDS = ("head=float", "embedding=float")
SHORT = ("calib.samples=1", "calib.length=64")


@dataclass(frozen=True)
class Contender:
    """A model of the run, compiled by ``recipe`` of ours for ``target``, or made otherwise where there is none."""

    key: str
    what: str
    recipe: str | None = None
    target: str = "ort"
    settings: tuple[str, ...] = ()


def contenders(recipes: list[str]) -> list[Contender]:
    """Float, the peer, ours."""
    found = [
        Contender(FLOAT, "float"),
        Contender(PEER, "peer: ORT quantize_dynamic, head and embedding float"),
    ]
    for recipe in recipes:
        short = SHORT if recipe == "w8a8-smoothquant" else ()
        ends = Contender(f"{recipe}-float-ends", f"{recipe}, head and embedding float", recipe, "ort",
                         (*short, *FLOAT_ENDS))  # fmt: skip
        ours = [
            Contender(f"{recipe}-{target}", f"{recipe}, target {target}", recipe, target, short)
            for target in ("ort", "qcompiler")
        ]
        found += [ends, *ours]
    return found


def measure(entries: list[Contender], results: Results, seconds: float) -> None:
    """Make what is missing, then time all, so many seconds with each workload."""
    built = smollm2.build(smollm2.Form.OFF_GRID, Graph.KV)
    paths = {}
    for entry in entries:
        paths[entry.key] = built.path if entry.key == FLOAT else MODELS / entry.key / "model.onnx"
        if paths[entry.key].exists():
            continue
        print(entry.what, file=sys.stderr, flush=True)
        _make(entry, built.path, MODELS / entry.key)
    sessions = [quiet_session(paths[entry.key], 1, entry.target == "qcompiler") for entry in entries]
    found: dict[str, dict[str, float]] = {entry.key: {} for entry in entries}
    for workload in make_workloads(str(built.path), model_file.load(built.path), Sizes()):
        times = least_seconds(sessions, workload.feed, seconds, 0.0, time.thread_time)
        for entry, least in zip(entries, times, strict=True):
            found[entry.key][workload.name] = least * 1e3
    for entry in entries:
        row: dict[str, Any] = {"what": entry.what, "bytes": model_bytes(paths[entry.key])}
        results.put(entry.key, row | {"milliseconds": found[entry.key]})


def _make(entry: Contender, source: Path, output: Path) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(output, ignore_errors=True)
    given: dict[str, Any] = {"model": str(source), "output": str(output)}
    if entry.recipe is None:
        child.run("ort", given | {"tool": "dynamic"})
        return
    given |= {"recipe": entry.recipe, "target": entry.target, "settings": list(entry.settings)}
    if entry.recipe != "w8a8-dynamic":
        given |= {"calibration": str(smollm2.calibration_data())}
    child.run("compile", given)


HEADS = [
    "",
    "MB",
    "512 tokens, CPU ms",
    "float / it",
    "ORT / it",
    "a token, CPU ms",
    "float / it",
    "ORT / it",
]


def table(results: Results) -> str:
    """Markdown of the rows that are there; ``float / it`` and ``ORT / it`` above 1: faster."""
    rows = results.rows
    if FLOAT not in rows or PEER not in rows:
        return markdown(HEADS, [])
    lines = []
    for key in (FLOAT, PEER, *(key for key in rows if key not in (FLOAT, PEER))):
        cells = [rows[key]["what"], f"{rows[key]['bytes'] / 1e6:.1f}"]
        for workload in ("prefill", "decode"):
            spent = rows[key]["milliseconds"][workload]
            bases = [rows[base]["milliseconds"][workload] for base in (FLOAT, PEER)]
            cells += [f"{spent:.4g}", *(f"{base / spent:.2f}" for base in bases)]
        lines.append(cells)
    return markdown(HEADS, lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipes", nargs="*", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--results", type=Path, default=JSON, help="where rows are kept")
    parser.add_argument("--seconds", type=float, default=60.0, help="of timing, with each workload")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    given = parser.parse_args()
    results = Results(given.results)
    measure(contenders(given.recipes), results, given.seconds)
    if given.markdown:
        print(table(results))
        return
    for row in results.rows.values():
        times = "  ".join(f"{name} {spent:9.2f} ms" for name, spent in row["milliseconds"].items())
        print(f"{row['what']:56} {row['bytes'] / 1e6:7.1f} MB  {times}")


if __name__ == "__main__":
    main()
