"""Peak memory and time of observing the ranges of EfficientNet-Lite0's activations, by the number of images.

python -m benchmarks.ranges                     all rows, each in a process of its own, and the table
python -m benchmarks.ranges --one mse 100       one of them: what observes, and on how many images

Observed are the inputs and outputs of all products, of Clip and Add, on the calibration images, over again where more are asked for.
The peer is ONNX Runtime's calibrator of entropy, which keeps what every image gave, and its calibrator of minmax.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure.results import OUT, Results, markdown
from models import efficientnet_lite0
from qcompiler.report.memory import PeakMemory

JSON = OUT / "ranges.json"
ROWS = {
    "minmax": (1, 100, 1000),
    "mse": (1, 100),
    "entropy": (1, 100),
    "ort-minmax": (1, 100),
    "ort-entropy": (1, 25),
}
"""Images by what observes; ONNX Runtime's entropy keeps 67 MB of each."""
OBSERVED = ("Conv", "Gemm", "MatMul", "Clip", "Add")
Feeds = Iterator[dict[str, np.ndarray]]


def _feeds(count: int) -> Feeds:
    with np.load(efficientnet_lite0.calibration_data()) as arrays:
        images = arrays["image"]
    for index in range(count):
        yield {"image": images[index % len(images)][None]}


def ours(model: Path, method: str, feeds: Feeds) -> int:
    """Observe with ``observe_ranges``; returns how many ranges there are."""
    import onnx_ir as ir

    from qcompiler.calibration.ranges_of_model import observe_ranges

    loaded = ir.load(model)
    nodes = [node for node in loaded.graph if node.op_type in OBSERVED]
    values = [value for node in nodes for value in (node.inputs[0], *node.outputs) if value is not None]
    return len(observe_ranges(loaded, list(dict.fromkeys(values)), feeds, method))  # type: ignore[arg-type]


def ort(model: Path, method: str, feeds: Feeds) -> int:
    """ONNX Runtime's calibrators."""
    from onnxruntime.quantization import calibrate

    class Reader(calibrate.CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(feeds, None)

    which = {"minmax": calibrate.CalibrationMethod.MinMax, "entropy": calibrate.CalibrationMethod.Entropy}[
        method
    ]
    augmented = OUT / "work" / "ranges.onnx"
    augmented.parent.mkdir(parents=True, exist_ok=True)
    calibrator = calibrate.create_calibrator(model, OBSERVED, str(augmented), which)
    calibrator.collect_data(Reader())
    return len(calibrator.compute_data().data)


def measure(what: str, count: int) -> dict[str, Any]:
    """Peak anonymous bytes of the process, seconds of the work, and how many ranges it found."""
    model = efficientnet_lite0.build().path
    observe = ort if what.startswith("ort-") else ours
    start = time.perf_counter()
    with PeakMemory(interval=0.005) as memory:
        ranges = observe(model, what.removeprefix("ort-"), _feeds(count))
    return {
        "seconds": time.perf_counter() - start,
        "peak_anonymous_bytes": memory.peak_bytes,
        "ranges": ranges,
    }


def table(results: Results) -> str:
    """Markdown of the finished rows."""
    lines = []
    for what, counts in ROWS.items():
        for count in counts:
            if f"{what}/{count}" in results:
                row = results.rows[f"{what}/{count}"]
                name = (
                    f"peer: ONNX Runtime's {what.removeprefix('ort-')}" if what.startswith("ort-") else what
                )
                seconds, megabytes = (
                    f"{row['seconds'] / count:.2f}",
                    f"{row['peak_anonymous_bytes'] / 1e6:.0f}",
                )
                lines.append([name, str(count), str(row["ranges"]), megabytes, seconds])
    return markdown(["", "images", "ranges", "peak anonymous MB", "seconds an image"], lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--one", nargs=2, metavar=("WHAT", "IMAGES"))
    options = parser.parse_args()
    if options.one:
        print("\n" + json.dumps(measure(options.one[0], int(options.one[1]))))
        return
    results = Results(JSON)
    for what, counts in ROWS.items():
        for count in counts:
            print(what, count, file=sys.stderr, flush=True)
            command = [sys.executable, "-m", "benchmarks.ranges", "--one", what, str(count)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            results.put(f"{what}/{count}", json.loads(done.stdout.strip().splitlines()[-1]))
    print(table(results))


if __name__ == "__main__":
    main()
