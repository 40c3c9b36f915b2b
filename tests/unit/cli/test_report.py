"""``qcompile report`` from outside."""

import json
from pathlib import Path

import onnxruntime.quantization as ort_quantization

from tests import command_models as models
from tests.command_line import Command
from tests.whole_page import is_whole


def test_of_a_model_that_another_tool_quantized(run: Command, tmp_path: Path) -> None:
    source, made = models.decoder(tmp_path), tmp_path / "dynamic.onnx"
    ort_quantization.quantize_dynamic(source, made)
    outcome = run("report", made)
    assert outcome.status == 0 and outcome.out.strip() == str(tmp_path / "report.html")
    is_whole((tmp_path / "report.html").read_text("utf-8"))
    assert "int8" in (tmp_path / "report.html").read_text("utf-8")


def test_as_json_everything_the_page_shows(run: Command, tmp_path: Path) -> None:
    outcome = run("report", models.decoder(tmp_path), "--json")
    said = json.loads(outcome.out)
    assert {"page", "layers", "inspection", "blocks", "weights"} <= said.keys()


def test_measuring_needs_something_to_compare_with(run: Command, tmp_path: Path) -> None:
    source = models.decoder(tmp_path)
    alone = run("report", source, "--data", "x.npz")
    assert alone.status == 2 and "--reference MODEL" in alone.err
    both = run("report", source, "--reference", source, "--data", "x.npz", "--text", "t.txt")
    assert both.status == 2 and "exclude each other" in both.err
