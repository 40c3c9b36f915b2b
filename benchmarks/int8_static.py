"""What 8 bits of weights and activations cost a convolutional classifier: EfficientNet-Lite0 on photographs of animals.

python -m benchmarks.int8_static                        ONNX Runtime's quantizers; goes on where it stopped
python -m benchmarks.int8_static --nncf                 NNCF too, in an environment of its own
python -m benchmarks.int8_static --recipes w8a8-dynamic and recipes of ours, by name or file
python -m benchmarks.int8_static --again                quantized anew
python -m benchmarks.int8_static --json                 the rows; --markdown: the table for the docs

Data: models.stamps, 30 photographs to calibrate and 93 others to judge. KL is the mean over the 93 of KL(float || quantized) over
the 1,000 classes, in nats; agreement the share of them with the float model's first class. Every quantizer is a process of its own,
whose seconds count its start. Times of an image are measured in every run, of all its models in turn in one process: the least of each,
of one thread the time that it computed.
"""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime

from benchmarks.measure import child
from benchmarks.measure.environment import NNCF, environment
from benchmarks.measure.evaluation import model_bytes
from benchmarks.measure.interleaved import least_seconds, quiet_session
from benchmarks.measure.results import OUT, Results, markdown
from models import efficientnet_lite0
from qcompiler.quant import metrics

JSON = OUT / "int8_static.json"
MODELS = OUT / "int8_static"
RECIPES: tuple[str, ...] = ("w8a8-static",)  # ours that quantize convolutions
# Clocks by number of threads. Of one thread the time that it computes: on 2 cores that many processes shared, three models
# that differ by their ranges alone took 6.73, 6.78, 6.78 ms of it, but 8.7, 7.7, 11.2 ms on the wall with two threads.
CLOCKS: dict[int, Callable[[], float]] = {1: time.thread_time, 2: time.perf_counter}
TURN = 0.05  # seconds: slow models shall not leave fast ones few runs
FLOAT = "float"
ACCURATE = "accurate"

Images = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Entry:
    """A way to quantize the model.

    Attributes:
        key: of its row, and name of its folder.
        what: how the table calls it.
        job: of ``benchmarks.measure.child``.
        method: of a peer, or our recipe.
    """

    key: str
    what: str
    job: str
    method: str

    @property
    def ours(self) -> bool:
        """Whether it is a recipe of ours."""
        return self.job == "compile"

    def arguments(self, model: Path, data: Path, output: Path) -> dict[str, Any]:
        """Of its job."""
        given = {"model": str(model), "output": str(output)}
        if self.ours:
            return given | {"recipe": self.method, "calibration": str(data)}
        given |= {"data": str(data)}
        if self.job == "nncf-int8":
            accurate = self.method == ACCURATE
            return given | {"accurate": accurate, "python": str(environment("nncf", NNCF))}
        return given | {"method": self.method}


ORT = (
    Entry("ort-minmax", "peer: ORT quantize_static, minmax", "ort-int8", "MinMax"),
    Entry("ort-entropy", "peer: ORT quantize_static, entropy", "ort-int8", "Entropy"),
    Entry("ort-percentile", "peer: ORT quantize_static, percentile", "ort-int8", "Percentile"),
    Entry("ort-dynamic", "peer: ORT quantize_dynamic", "ort-int8", "dynamic"),
)
OTHERS = (
    Entry("nncf", "peer: NNCF quantize", "nncf-int8", ""),
    Entry("nncf-accurate", "peer: NNCF quantize, accurate", "nncf-int8", ACCURATE),
)
PEERS = (*ORT, *OTHERS)


def recipe_entry(recipe: str) -> Entry:
    """Of a recipe of ours, by name or file."""
    name = Path(recipe).stem if recipe.endswith(".yaml") else recipe
    return Entry(f"ours-{name}", name, "compile", recipe)


def measure(entries: Sequence[Entry], results: Results, again: bool, seconds: float) -> None:
    """Quantize and judge what is not finished; then time all entries and the float model, so many seconds with each number of threads."""
    built = efficientnet_lite0.build()
    data = efficientnet_lite0.calibration_data()
    with np.load(efficientnet_lite0.evaluation_data()) as arrays:
        images = arrays["image"]
    reference: npt.NDArray[np.float32] | None = None
    models = {FLOAT: built.path}
    for entry in entries:
        folder = MODELS / entry.key
        model = models[entry.key] = folder / "model.onnx"
        if not again and entry.key in results and model.exists():
            continue
        print(entry.what, file=sys.stderr, flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = child.run(entry.job, entry.arguments(built.path, data, folder))
        if reference is None:
            reference = logits(_session(built.path, 1, ours=False), images)
        found = logits(_session(model, 1, entry.ours), images)
        judged = {
            "kl": metrics.kl_divergence(reference, found),
            "agreement": metrics.top1_agreement(reference, found),
        }
        results.put(entry.key, made | judged | {"what": entry.what, "bytes": model_bytes(model)})
    ours = {entry.key for entry in entries if entry.ours}
    milliseconds: dict[str, dict[str, float]] = {key: {} for key in models}
    for threads, clock in CLOCKS.items():
        sessions = [_session(path, threads, ours=key in ours) for key, path in models.items()]
        times = least_seconds(sessions, {"image": images[:1]}, seconds, TURN, clock)
        for key, least in zip(models, times, strict=True):
            milliseconds[key][str(threads)] = least * 1e3
    rows = results.rows | {FLOAT: {"kl": 0.0, "agreement": 1.0, "bytes": model_bytes(built.path)}}
    for key, times_of in milliseconds.items():
        results.put(key, rows[key] | {"milliseconds": times_of})


def _session(model: Path, threads: int, ours: bool) -> onnxruntime.InferenceSession:
    return quiet_session(onnx.load(model), threads, ours)


def logits(session: onnxruntime.InferenceSession, images: Images) -> npt.NDArray[np.float32]:
    """float32 [count, 1000], the images run one by one."""
    return np.concatenate([session.run(["logits"], {"image": image[None]})[0] for image in images])


HEADS = [
    "",
    "KL",
    "agreement",
    "KL / best peer",
    "MB",
    "CPU ms, 1 thread",
    "ms, 2 threads",
    "float / it",
    "seconds",
    "peak GB",
]


def table(results: Results, recipes: Iterable[str] | None = None) -> str:
    """Markdown of the finished rows: float, peers with the best first, then ours (all recipes where None).

    ``float / it`` is the ratio of times with one thread.
    """
    finished = {key: row for key, row in results.rows.items() if "milliseconds" in row}
    if FLOAT not in finished:
        return markdown(HEADS, [])
    base = finished[FLOAT]
    lines = [[FLOAT, "0", "1", "", f"{base['bytes'] / 1e6:.1f}", *_milliseconds(base), "1", "", ""]]
    peers = sorted((e.key for e in PEERS if e.key in finished), key=lambda key: finished[key]["kl"])
    if recipes is None:
        ours = [key for key in finished if key.startswith("ours-")]
    else:
        ours = [key for recipe in recipes if (key := recipe_entry(recipe).key) in finished]
    best = finished[peers[0]]["kl"] if peers else None
    for key in [*peers, *ours]:
        row = finished[key]
        lines.append(
            [row["what"], f"{row['kl']:.4f}", f"{row['agreement']:.3f}",
             "" if best is None else f"{row['kl'] / best:.2f}", f"{row['bytes'] / 1e6:.1f}", *_milliseconds(row),
             f"{base['milliseconds']['1'] / row['milliseconds']['1']:.2f}", f"{row['wall_seconds']:.0f}",
             f"{row['peak_anonymous_bytes'] / 1e9:.2f}"]
        )  # fmt: skip
    return markdown(HEADS, lines)


def _milliseconds(row: dict[str, Any]) -> list[str]:
    return [f"{row['milliseconds'][str(threads)]:.2f}" for threads in CLOCKS]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipes", nargs="*", default=list(RECIPES), help="ours, by name or .yaml file")
    parser.add_argument("--nncf", action="store_true", help="NNCF too, in an environment of its own")
    parser.add_argument("--results", type=Path, default=JSON, help="where finished rows are kept")
    parser.add_argument("--again", action="store_true", help="quantize anew what is finished")
    parser.add_argument(
        "--seconds",
        type=float,
        default=30.0,
        help="of timing, with each number of threads, all models together",
    )
    parser.add_argument("--json", action="store_true", help="print the rows")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    given = parser.parse_args()
    results = Results(given.results)
    entries = [*ORT, *(OTHERS if given.nncf else ()), *map(recipe_entry, given.recipes)]
    measure(entries, results, given.again, given.seconds)
    if given.json:
        print(json.dumps({key: results.rows[key] for key in (FLOAT, *(e.key for e in entries))}, indent=1))
        return
    if given.markdown:
        print(table(results))
        return
    for entry in entries:
        row = results.rows[entry.key]
        print(
            f"{entry.what:52} KL {row['kl']:.4f}  agreement {row['agreement']:.3f}  {row['bytes'] / 1e6:.1f} MB  "
            f"{' '.join(_milliseconds(row))} ms  {row['wall_seconds']:.0f} s"
        )


if __name__ == "__main__":
    main()
