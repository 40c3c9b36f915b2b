"""Runs every model of a folder in the ONNX Runtime of this Python, which may be an old one: needs numpy and onnxruntime alone.

    python run_models.py FOLDER [LIBRARY]

For each NAME.onnx: inputs from NAME.npz; outputs to NAME.outputs.npz and the shapes that were inferred for them to NAME.json, or what
ONNX Runtime said to NAME.txt. Prints its version.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort


def run(model: Path, library: str | None) -> None:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if library is not None:
        options.register_custom_ops_library(library)
    session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    with np.load(model.with_suffix(".npz")) as inputs:
        outputs = session.run(None, dict(inputs))
    made = session.get_outputs()
    np.savez(model.with_suffix(".outputs.npz"), **{m.name: y for m, y in zip(made, outputs, strict=True)})
    model.with_suffix(".json").write_text(json.dumps({m.name: m.shape for m in made}))


def main(folder: str, library: str | None = None) -> None:
    for model in sorted(Path(folder).glob("*.onnx")):
        try:
            run(model, library)
        except Exception as error:  # its kinds of error have no other base, and the test reads what it says
            model.with_suffix(".txt").write_text(f"{type(error).__name__}: {error}")
    print(ort.__version__)


if __name__ == "__main__":
    main(*sys.argv[1:])
