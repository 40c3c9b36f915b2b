"""How long it takes to look at a model: inspect, diff, check and report, each a process of its own.

python -m benchmarks.looking                    all models, and the table
python -m benchmarks.looking --models magika    one of them

Models: SmolLM2 in 4 bits for both targets, EfficientNet-Lite0 and RapidOCR's recognition and detection in 8 bits by our recipes, Magika and
MiniLM by ONNX Runtime's quantize_dynamic. Every verb but inspect runs both models on a little data, those without data of their own on
random inputs. Times are of whole processes, imports included.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxruntime.quantization import quantize_dynamic

import qcompiler
from benchmarks.measure.results import OUT, Results, markdown
from models import cache, efficientnet_lite0, minilm, rapidocr_rec, smollm2
from qcompiler.api import Options

JSON = OUT / "looking.json"
MAGIKA = ("magika", "1.0.3", "3e9b49134e8116ee40b431664dcbed9e199413efddcce1a173c734b4e0521529")
TRIES = 3  # of each verb; the least time counts, since what else a machine does only adds


@dataclass(frozen=True)
class Subject:
    """A quantized model, the float one, and the options that say what both run on."""

    model: Path
    reference: Path
    data: list[str]


def _smollm2(target: str) -> Callable[[Path], Subject]:
    def make(folder: Path) -> Subject:
        source = smollm2.build()
        made = qcompiler.compile(
            source.path, "w4a16-rtn", target=target, output=folder / "out", options=Options(force=True)
        )
        data = ["--text", str(smollm2.evaluation_data()), "--tokenizer", str(source.tokenizer)]
        return Subject(made.path, source.path, data)

    return make


def _efficientnet(folder: Path) -> Subject:
    source = efficientnet_lite0.build().path
    made = qcompiler.compile(
        source, "w8a8-static", calibration=efficientnet_lite0.calibration_data(), output=folder / "out"
    )
    return Subject(made.path, source, ["--data", str(efficientnet_lite0.evaluation_data())])


def _rapidocr(folder: Path) -> Subject:
    source = rapidocr_rec.build().path
    made = qcompiler.compile(
        source, "w8a8-static", calibration=rapidocr_rec.calibration_data(), output=folder / "out"
    )
    return Subject(made.path, source, ["--data", str(rapidocr_rec.evaluation_data())])


def _by_onnx_runtime(source: Callable[[], Path]) -> Callable[[Path], Subject]:
    def make(folder: Path) -> Subject:
        made = folder / "dynamic.onnx"
        quantize_dynamic(source(), made)
        return Subject(made, source(), [])

    return make


def _detection(folder: Path) -> Subject:
    """Its weights are Constant nodes, which ONNX Runtime's quantizer takes for none; calibrated on random inputs."""
    source = cache.package(*rapidocr_rec.PACKAGE) / rapidocr_rec.FILE.with_name("ch_PP-OCRv4_det_infer.onnx")
    return Subject(qcompiler.compile(source, "w8a8-static", output=folder / "out").path, source, [])


def _magika() -> Path:
    return cache.package(*MAGIKA) / "magika" / "models" / "standard_v3_3" / "model.onnx"


SUBJECTS: dict[str, tuple[str, Callable[[Path], Subject]]] = {
    "smollm2-ort": ("SmolLM2-135M, w4a16-rtn, target ort", _smollm2("ort")),
    "smollm2-own": ("SmolLM2-135M, w4a16-rtn, target qcompiler", _smollm2("qcompiler")),
    "efficientnet": ("EfficientNet-Lite0, w8a8-static", _efficientnet),
    "rapidocr": ("RapidOCR recognition, w8a8-static", _rapidocr),
    "detection": ("RapidOCR detection, w8a8-static", _detection),
    "magika": ("Magika, ORT quantize_dynamic", _by_onnx_runtime(_magika)),
    "minilm": ("MiniLM, ORT quantize_dynamic", _by_onnx_runtime(lambda: minilm.build().path)),
}
VERBS = ("inspect", "session", "diff", "check", "report")


def _command(verb: str, subject: Subject, page: Path) -> list[str]:
    model, reference = str(subject.model), str(subject.reference)
    return {
        "inspect": ["inspect", model],
        "session": ["inspect", model, "--session"],
        "diff": ["diff", reference, model, *subject.data],
        "check": ["check", model, *subject.data],
        "report": ["report", model, "--reference", reference, *subject.data, "-o", str(page)],
    }[verb]


def _run(command: list[str]) -> tuple[float, int]:
    """Seconds and peak resident bytes of one command."""
    start = time.perf_counter()
    child = subprocess.Popen(
        [sys.executable, "-c", "from qcompiler.cli import main; main()", *command],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode not in (0, 3):  # 3: check says that parity is broken
        raise SystemExit(f"qcompile {' '.join(command)}: status {child.returncode}")
    return time.perf_counter() - start, usage.ru_maxrss * 1024


def measure(key: str) -> dict[str, Any]:
    """Least seconds and largest memory of each verb, and the size of the page."""
    name, make = SUBJECTS[key]
    row: dict[str, Any] = {"name": name}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        subject = make(folder)
        page = folder / "page.html"
        for verb in VERBS:
            tries = [_run(_command(verb, subject, page)) for _ in range(TRIES)]
            row[verb] = min(seconds for seconds, _ in tries)
            row["peak_bytes"] = max(row.get("peak_bytes", 0), *(peak for _, peak in tries))
            print(f"{key}: {verb} {row[verb]:.1f} s", flush=True)
        row["page_bytes"] = page.stat().st_size
    return row


def table(results: Results) -> str:
    """Markdown of what was measured."""
    heads = ["seconds", "inspect", "inspect --session", "diff", "check", "report", "peak MB", "page kB"]
    rows = [
        [row["name"], *(f"{row[verb]:.1f}" for verb in VERBS), f"{row['peak_bytes'] / 1e6:.0f}", f"{row['page_bytes'] / 1e3:.0f}"]
        for row in (results.rows[key] for key in SUBJECTS if key in results)
    ]  # fmt: skip
    return markdown(heads, rows)


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--models", nargs="+", choices=list(SUBJECTS), default=list(SUBJECTS))
    options.add_argument("--again", action="store_true", help="measure rows that are finished too")
    given = options.parse_args()
    results = Results(JSON)
    for key in given.models:
        if given.again or key not in results:
            results.put(key, measure(key))
    print(table(results))


if __name__ == "__main__":
    main()
