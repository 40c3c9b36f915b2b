"""NNCF's post-training quantization to int8, run in a virtual environment of its own.

PYTHON nncf_int8_peer.py '{"model": ..., "data": FILE.npz, "output": ..., "accurate": true}'

By default NNCF's own defaults; accurate: its most accurate settings, activations with zero points where they have both signs and biases
corrected layer by layer. Imports nothing of this repository but the script beside it: NNCF's requirements are not ours.
"""

import json
import sys
import time
from pathlib import Path

import nncf
import numpy as np
import onnx
from nncf_peer import PeakBytes


def main(arguments: dict[str, str | bool]) -> None:
    """Quantize, save, print seconds and peak memory as JSON."""
    accurate = bool(arguments["accurate"])
    with PeakBytes() as peak:
        start = time.perf_counter()
        with np.load(str(arguments["data"])) as arrays:
            (name,) = arrays.files
            feeds = [{name: image[None]} for image in arrays[name]]
        quantized = nncf.quantize(
            onnx.load(str(arguments["model"])),
            nncf.Dataset(feeds),
            subset_size=len(feeds),
            preset=nncf.QuantizationPreset.MIXED if accurate else None,
            fast_bias_correction=not accurate,
        )
        folder = Path(str(arguments["output"]))
        folder.mkdir(parents=True)
        onnx.save(quantized, str(folder / "model.onnx"))
        seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "peak_anonymous_bytes": peak.bytes}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
