"""NNCF's 4-bit weights with AWQ and scale estimation, run in a virtual environment of its own.

PYTHON nncf_peer.py '{"model": ..., "feeds": FOLDER of .npz, "output": ..., "group": 64, "symmetric": false}'

Imports nothing of this repository: NNCF's requirements are not ours. Head and embedding stay float.
"""

import json
import sys
import threading
import time
from pathlib import Path

import nncf
import numpy as np
import onnx
from nncf.onnx.graph.metatypes import onnx_metatypes  # noqa: F401  fails early where NNCF has no ONNX backend


class PeakBytes:
    """A context whose ``bytes`` become the most anonymous memory that this process has had in it."""

    def __init__(self) -> None:
        self.bytes = 0
        self._done = threading.Event()
        self._watch = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> "PeakBytes":
        self._watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._watch.join()

    def _look(self) -> None:
        while not self._done.wait(0.05):
            self.bytes = max(self.bytes, _anonymous_bytes())


def _anonymous_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


def main(arguments: dict[str, str | int | bool]) -> None:
    """Compress, save, print seconds and peak memory as JSON."""
    with PeakBytes() as peak:
        start = time.perf_counter()
        compress(arguments)
        seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "peak_anonymous_bytes": peak.bytes}))


def compress(arguments: dict[str, str | int | bool]) -> None:
    """Write the model with compressed weights to ``output``."""
    model = onnx.load(str(arguments["model"]))
    outputs = {value.name for value in model.graph.output}
    ends = [n.name for n in model.graph.node if n.op_type == "Gather" or outputs & set(n.output)]
    feeds = [dict(np.load(path)) for path in sorted(Path(str(arguments["feeds"])).glob("*.npz"))]
    mode = "INT4_SYM" if arguments["symmetric"] else "INT4_ASYM"
    compressed = nncf.compress_weights(
        model,
        mode=getattr(nncf.CompressWeightsMode, mode),
        ratio=1.0,
        group_size=int(arguments["group"]),
        ignored_scope=nncf.IgnoredScope(names=ends, validate=False),
        all_layers=True,
        dataset=nncf.Dataset(feeds),
        awq=True,
        scale_estimation=True,
        subset_size=len(feeds),
    )
    folder = Path(str(arguments["output"]))
    folder.mkdir(parents=True)
    onnx.save(compressed, str(folder / "model.onnx"), save_as_external_data=True, location="model.onnx.data")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
