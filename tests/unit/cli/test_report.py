"""``qcompile report`` from outside."""

import json
import math
from pathlib import Path

import numpy as np
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


def test_a_model_that_gives_no_numbers_has_its_page(run: Command, tmp_path: Path) -> None:
    source, broken = models.mlp(tmp_path), models.mlp(tmp_path, name="broken.onnx", spoil=math.nan)
    feed = models.feeds_file(tmp_path, x=np.ones((2, 64), np.float32))
    outcome = run("report", broken, "--reference", source, "--data", feed)
    assert outcome.status == 0 and outcome.err.startswith("warning: outputs were not compared: ")
    assert f"qcompile trace {broken}" in outcome.err and "more bits" not in outcome.err
    page = (tmp_path / "report.html").read_text("utf-8")
    is_whole(page)
    assert "outputs were not compared" in page and "fc2" in page
