"""What ``qcompiler.compile`` returns, as Python shows it."""

from pathlib import Path

from qcompiler.api import CompiledModel
from qcompiler.report.compile_report import CompileReport


def test_it_is_shown_in_one_line() -> None:
    layers = [{"name": f"layer {index}", "stored_bytes": 1} for index in range(100)]
    report = CompileReport("m.onnx", "w4a16-awq", "ort", layers, [], [], {}, {}, 6_830_000, 1_310_000, 1.0, 1)
    shown = "<CompiledModel out/model.onnx: w4a16-awq, 100 weights quantized, 6.83 MB -> 1.31 MB>"
    assert repr(CompiledModel(Path("out"), report)) == shown
