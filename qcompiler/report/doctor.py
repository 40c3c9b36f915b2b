"""What this machine can run: packages, providers that open a session, CPU, our library, memory and disk."""

import os
import platform
import shutil
import sys
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from qcompiler import runtime
from qcompiler.errors import ResourceError
from qcompiler.report.sizes import format_bytes, format_memory

PACKAGES = {
    "qcompiler": "",
    "numpy": "pip install numpy",
    "onnx": "pip install onnx",
    "onnx_ir": "pip install onnx_ir",
    "onnxscript": "pip install onnxscript",
    "onnxruntime": "pip install onnxruntime, or onnxruntime-gpu for CUDA",
    "torch": "pip install torch; autoround, sensitivity: fisher and device: cuda need it, other recipes do not",
    "tokenizers": "pip install tokenizers; text for calibration and evaluation needs it",
}
CPU_FLAGS = {
    "avx2": "AVX2",
    "f16c": "F16C",
    "avx_vnni": "AVX-VNNI",
    "avx512f": "AVX-512F",
    "avx512_vnni": "AVX512-VNNI",
    "amx_int8": "AMX-INT8",
    "asimddp": "NEON dot product",
    "i8mm": "I8MM",
    "sve": "SVE",
}


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, what was found, whether it is there, and what to do where it is not."""

    what: str
    found: str
    present: bool = True
    advice: str = ""


def examine(folder: Path) -> list[Finding]:
    """Look at this machine; ``folder`` is where output would be written. What is missing raises nothing."""
    found = [Finding("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")]
    found += [_package(name, advice) for name, advice in PACKAGES.items()]
    found += [*_providers(), _cpu(), _torch_device(), _library()]
    return [*found, *_room(folder)]


def doctor_table(findings: list[Finding]) -> RenderableType:
    """A line for each finding."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        mark = "[green]ok[/]" if finding.present else "[yellow]--[/]"
        said = finding.found + (f"; {finding.advice}" if finding.advice and not finding.present else "")
        table.add_row(mark, escape(finding.what), escape(said))
    return table


def _package(name: str, advice: str) -> Finding:
    for candidate in (name, f"{name}-gpu") if name == "onnxruntime" else (name,):
        try:
            return Finding(name, version(candidate) + (" (onnxruntime-gpu)" if candidate != name else ""))
        except PackageNotFoundError:
            continue
    return Finding(name, "not installed", False, advice)


def _providers() -> list[Finding]:
    """A provider counts when a session on it really uses it: builds list CUDA on machines without it."""
    try:
        import onnxruntime as ort
    except ModuleNotFoundError:
        return []
    model = _smallest_model()
    findings = []
    for provider in ort.get_available_providers():
        if provider not in ("CPUExecutionProvider", "CUDAExecutionProvider"):
            continue
        options = ort.SessionOptions()
        options.log_severity_level = 4
        try:
            used = ort.InferenceSession(model, options, providers=[provider]).get_providers()
        except (RuntimeError, ort.capi.onnxruntime_pybind11_state.Fail) as error:
            used, reason = [], f"no session: {' '.join(str(error).split())[:100]}"
        else:
            reason = "offered by this build, but sessions fall back to the CPU"
        if provider in used:
            findings.append(Finding(provider, "opens sessions"))
        else:
            findings.append(Finding(provider, reason, False, "check the driver and CUDA libraries"))
    return findings


def _smallest_model() -> bytes:
    from onnx import TensorProto, helper

    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Abs", ["x"], ["y"])], "probe", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    content: bytes = model.SerializeToString()
    return content


def _cpu() -> Finding:
    name, flags = platform.processor() or platform.machine(), set[str]()
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("flags", "Features"):
                flags |= set(value.split())
            elif key.strip() == "model name":
                name = value.strip()
    having = [label for flag, label in CPU_FLAGS.items() if flag in flags]
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    return Finding("cpu", f"{name}, {cores} cores; {', '.join(having) or 'no features known to help'}")


def _torch_device() -> Finding:
    try:
        torch = import_module("torch")
    except (ImportError, OSError) as error:
        return Finding("torch device", f"none ({error})", False, PACKAGES["torch"])
    if torch.cuda.is_available():
        return Finding("torch device", f"cuda: {torch.cuda.get_device_name(0)}")
    return Finding("torch device", f"cpu, {torch.get_num_threads()} threads")


def _library() -> Finding:
    try:
        library = runtime.library_path()
    except ResourceError:
        return Finding(
            "operator library",
            "not built",
            False,
            "in a checkout run scripts/install, elsewhere pip install its sources; stock operators work without",
        )
    try:
        import onnxruntime as ort
    except ModuleNotFoundError:
        return Finding("operator library", f"{library}, not tried", False, PACKAGES["onnxruntime"])
    try:
        runtime.register(ort.SessionOptions())
    except (RuntimeError, ort.capi.onnxruntime_pybind11_state.Fail) as error:
        said = " ".join(str(error).split())
        return Finding(
            "operator library",
            f"{library} does not load: {said}",
            False,
            "build it for this machine: pip install from sources",
        )
    return Finding("operator library", f"loads ({library})")


def _room(folder: Path) -> list[Finding]:
    findings = []
    if sys.platform == "linux":
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                findings.append(Finding("memory", f"{format_memory(int(line.split()[1]) * 1024)} available"))
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return [
            *findings,
            Finding("disk", f"{folder}: {error.strerror}", False, "choose another place with -o"),
        ]
    return [*findings, Finding("disk", f"{format_bytes(free)} free in {folder}")]
