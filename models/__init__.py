"""Models for tests, demos and benchmarks: one file, one model, run as ``python -m models.NAME``.

Not installed with the package. Each model file fetches or trains its weights, exports them to ONNX into the
user's cache folder, and gives the model's calibration data, evaluation data and metric.
"""

import importlib.util
import sys

_MISSING = [name for name in ("numpy", "onnxruntime", "tokenizers") if importlib.util.find_spec(name) is None]
if _MISSING and sys.argv[0] == "-m":  # python -m models.NAME: outside .venv a line, not a traceback
    sys.exit(
        f"error: this Python has no {', '.join(_MISSING)}; run scripts/install, then source .venv/bin/activate"
    )
