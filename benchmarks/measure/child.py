"""Work in a process of its own, so that its time and peak memory are its own.

python -m benchmarks.measure.child compile '{"model": ..., "recipe": ..., "output": ...}'
python -m benchmarks.measure.child ort '{"tool": "rtn", "model": ..., "output": ..., "bits": 4, "group": 64, ...}'
python -m benchmarks.measure.child ort-int8 '{"method": "MinMax", "model": ..., "data": FILE.npz, "output": ...}'

The last line of the output is JSON: seconds from the start of the work, and peak anonymous bytes.
"""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


class ChildError(Exception):
    """The other process failed; its last lines."""


def run(job: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Do a job in a new Python; ``wall_seconds`` counts starting it and its imports too.

    Raises:
        ChildError: it failed.
    """
    start = time.perf_counter()
    command = [sys.executable, "-m", "benchmarks.measure.child", job, json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ChildError(f"{job}: " + " / ".join((done.stderr or done.stdout).strip().splitlines()[-3:]))
    found: dict[str, Any] = json.loads(_last_json(done.stdout))
    return found | {"wall_seconds": time.perf_counter() - start}


def _last_json(text: str) -> str:
    """The last line that is an object: libraries print after it what they like."""
    return next(line for line in reversed(text.splitlines()) if line.startswith("{"))


def compile_model(arguments: dict[str, Any]) -> dict[str, Any]:
    """``qcompiler.compile``, and what its report says."""
    import qcompiler

    report = qcompiler.compile(**arguments).report
    return {
        "seconds": report.seconds,
        "peak_anonymous_bytes": report.peak_anonymous_bytes,
        "bytes": report.bytes,
        "warnings": report.warnings,
        "passes": {entry.name: entry.seconds for entry in report.passes},
    }


def forecast(arguments: dict[str, Any]) -> dict[str, Any]:
    """What ``qcompile --dry-run`` says of the compile's peak memory."""
    from qcompiler.api import dry_run

    return {"forecast_bytes": dry_run(**arguments).peak_bytes}


def ort(arguments: dict[str, Any]) -> dict[str, Any]:
    """ONNX Runtime's own quantizers: ``tool`` is rtn, hqq, k-quant or dynamic; head and embedding stay float."""
    import onnx
    from onnxruntime.quantization import matmul_nbits_quantizer as peer

    from qcompiler.report.memory import PeakMemory

    start = time.perf_counter()
    folder = Path(arguments["output"])
    folder.mkdir(parents=True)
    products = {"op_types_to_quantize": ("MatMul",)}
    with PeakMemory() as memory:
        if arguments["tool"] == "dynamic":
            _quantize_dynamic(arguments["model"], folder / "model.onnx")
            return {"seconds": time.perf_counter() - start, "peak_anonymous_bytes": memory.peak_bytes}
        model = onnx.load(arguments["model"])
        if arguments["tool"] == "hqq":
            config = peer.HQQWeightOnlyQuantConfig(arguments["group"], arguments["bits"], **products)
        elif arguments["tool"] == "k-quant":
            config = peer.KQuantWeightOnlyQuantConfig(**products)
        else:
            config = peer.DefaultWeightOnlyQuantConfig(
                block_size=arguments["group"],
                is_symmetric=arguments["symmetric"],
                bits=arguments["bits"],
                **products,
            )
        quantizer = peer.MatMulNBitsQuantizer(
            model, arguments["bits"], arguments["group"], algo_config=config, nodes_to_exclude=_heads(model)
        )
        quantizer.process()
        quantizer.model.save_model_to_file(str(folder / "model.onnx"), use_external_data_format=True)
    return {"seconds": time.perf_counter() - start, "peak_anonymous_bytes": memory.peak_bytes}


def _quantize_dynamic(model: str, place: Path) -> None:
    """int8 weights with a scale for each output, activations with one scale for all rows."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        model,
        place,
        op_types_to_quantize=["MatMul"],
        per_channel=True,
        weight_type=QuantType.QInt8,
        nodes_to_exclude=_heads(onnx.load(model, load_external_data=False)),
        use_external_data_format=True,
    )


def nncf(arguments: dict[str, Any]) -> dict[str, Any]:
    """NNCF, in the environment whose Python is ``python``, on the feeds that qcompiler would calibrate on."""
    import numpy as np

    from qcompiler.calibration.feeds import make_feeds
    from qcompiler.graph import model_file

    source = Path(arguments["model"])
    feeds = Path(arguments["output"]).with_name("nncf-feeds")
    feeds.mkdir(parents=True, exist_ok=True)
    made = make_feeds(
        model_file.load(source),
        arguments["calibration"],
        Path(arguments["tokenizer"]),
        16,
        512,
        0,
        lambda *_: None,
    )
    for index, feed in enumerate(made.feeds):
        np.savez(feeds / f"{index:03}.npz", **feed)
    found = _in_environment("nncf_peer.py", arguments | {"feeds": str(feeds)})
    shutil.rmtree(feeds)
    return found


def nncf_int8(arguments: dict[str, Any]) -> dict[str, Any]:
    """NNCF's int8, in the environment whose Python is ``python``."""
    return _in_environment("nncf_int8_peer.py", arguments)


def _in_environment(script: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """What a script of this folder says, run by ``python``."""
    command = [arguments["python"], str(Path(__file__).with_name(script)), json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ChildError(f"{script}: {done.stderr.strip()[-600:]}")
    found: dict[str, Any] = json.loads(_last_json(done.stdout))
    return found


def ort_int8(arguments: dict[str, Any]) -> dict[str, Any]:
    """ONNX Runtime's own int8: see ``benchmarks.measure.ort_int8``."""
    from benchmarks.measure.ort_int8 import quantize
    from qcompiler.report.memory import PeakMemory

    start = time.perf_counter()
    folder = Path(arguments["output"])
    folder.mkdir(parents=True)
    with PeakMemory() as memory:
        quantize(
            Path(arguments["model"]),
            Path(arguments["data"]),
            folder / "model.onnx",
            arguments["method"],
            arguments.get("shapes", True),
        )
    return {"seconds": time.perf_counter() - start, "peak_anonymous_bytes": memory.peak_bytes}


def _heads(model: Any) -> list[str]:
    """Names of the MatMuls that make graph outputs."""
    outputs = {value.name for value in model.graph.output}
    return [node.name for node in model.graph.node if node.op_type == "MatMul" and outputs & set(node.output)]


JOBS = {
    "compile": compile_model,
    "forecast": forecast,
    "ort": ort,
    "ort-int8": ort_int8,
    "nncf": nncf,
    "nncf-int8": nncf_int8,
}

if __name__ == "__main__":
    print(
        "\n" + json.dumps(JOBS[sys.argv[1]](json.loads(sys.argv[2])))
    )  # libraries may have left a line open
