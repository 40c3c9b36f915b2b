"""What ``qcompiler.compile`` returns, as Python and notebooks show it, and what can be asked of it."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import qcompiler
from qcompiler.passes.layer_result import LayerResult
from qcompiler.report.compile_report import CompileReport
from qcompiler.report.compiled_model import CompiledModel
from qcompiler.report.evaluate import EvaluationData
from qcompiler.report.model_report import OTHER_REPORT, make_report, outline
from tests import command_models as models
from tests.whole_page import is_whole

LAYER = LayerResult(
    "fc", "linear", "MatMul", (8, 32), "int4 g32 sym", "rtn", "recipe w4a16-rtn", 1024, 144, 0.01, 0.01, 20.0, 0.995, ()
)  # fmt: skip


@pytest.fixture
def made(tmp_path: Path) -> CompiledModel:
    return qcompiler.compile(
        models.decoder(tmp_path), "w4a16-rtn", settings=["group_size=32"], output=tmp_path / "out"
    )


def test_it_is_shown_in_one_line() -> None:
    layers = [replace(LAYER, name=f"layer {index}") for index in range(100)]
    report = CompileReport("m.onnx", "w4a16-awq", "ort", layers, [], [], {}, {}, 6_830_000, 1_310_000, 1.0, 1)
    shown = "<CompiledModel out/model.onnx: w4a16-awq, 100 weights quantized, 6.83 MB -> 1.31 MB>"
    assert repr(CompiledModel(Path("out"), report)) == shown


def test_a_notebook_shows_what_sums_it_up_and_the_worst_layer_first(made: CompiledModel) -> None:
    shown = made._repr_html_()
    assert shown is not None
    is_whole(shown)
    assert "<script" not in shown and "w4a16-rtn" in shown and "bits per weight" in shown
    ranked = sorted(made.report.layers, key=lambda layer: -layer.output_error)
    places = [shown.index(f"<td>{layer.name}</td><td>{layer.scheme}</td>") for layer in ranked]
    assert len(places) == 3 and places == sorted(places)
    assert f"<td>{ranked[0].output_error:.2e}</td><td>{ranked[0].sqnr_db:.1f}</td>" in shown


def test_five_layers_are_shown_and_their_names_are_no_markup(made: CompiledModel) -> None:
    report = outline(made.path)
    layers = [replace(report.layers[0], name=f"<b>{index}", error=0.1 * index) for index in range(7)]
    shown = replace(report, layers=layers)._repr_html_()
    assert shown is not None and "<b>" not in shown
    places = [shown.index(f"&lt;b&gt;{index}") for index in (6, 5, 4, 3, 2)]
    assert places == sorted(places) and "&lt;b&gt;1" not in shown


def test_without_the_model_or_what_draws_it_there_is_the_one_line(
    made: CompiledModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert replace(made, folder=tmp_path / "moved")._repr_html_() is None
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "qcompiler.report.page.page", None)
        assert made._repr_html_() is None
    assert made._repr_html_() is not None


def test_a_look_is_what_report_measures(made: CompiledModel, tmp_path: Path) -> None:
    tokens = np.random.default_rng(0).integers(0, models.VOCABULARY, (2, 8))
    np.savez(tmp_path / "data.npz", input_ids=tokens)
    given = EvaluationData(data=str(tmp_path / "data.npz"))
    found = made.look(str(tmp_path / "float.onnx"), given)
    assert found == make_report(made.path, tmp_path / "float.onnx", given)
    assert found.evaluation is not None and found.compiled == made.report
    assert made.look().evaluation is None
    assert [layer.error for layer in found.layers if layer.quantized] == [
        layer.output_error for layer in made.report.layers
    ]


def test_a_report_of_another_version_is_said_to_be_left_out(made: CompiledModel) -> None:
    assert outline(made.path).notes == []
    (made.folder / "report.json").write_text("{}")
    found = outline(made.path)
    assert found.compiled is None and found.notes == [OTHER_REPORT]
    (made.folder / "report.json").unlink()
    assert outline(made.path).notes == []
