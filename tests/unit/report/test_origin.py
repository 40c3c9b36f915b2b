"""A reference that a model was not compiled from, and the tokenizer of one that it was."""

import json
import shutil
from pathlib import Path

import onnx
import pytest

import qcompiler
from qcompiler.errors import CalibrationError
from qcompiler.report import origin
from qcompiler.report.bisect_layers import Bound, bisect_layers
from qcompiler.report.diff_models import diff
from qcompiler.report.evaluate import EvaluationData, evaluate
from qcompiler.report.model_report import make_report
from qcompiler.report.origin import origin_notes
from qcompiler.report.tokenizer_place import find_tokenizer
from tests import command_models as models

FEW = EvaluationData(windows=1)


def compiled(source: Path, out: Path) -> Path:
    return qcompiler.compile(source, "w4a16-rtn", output=out).path


def another(source: Path) -> Path:
    """The same graph, one weight of which differs in its last bit."""
    folder = source.parent / "another"
    shutil.copytree(source.parent, folder, ignore=shutil.ignore_patterns("out*", "another"))
    data = folder / "float.onnx.data"
    content = bytearray(data.read_bytes())
    content[40] ^= 1
    data.write_bytes(content)
    return folder / source.name


def test_every_verb_with_a_reference_tells_of_another_one(tmp_path: Path) -> None:
    source = models.external_mlp(tmp_path)
    made, other = compiled(source, tmp_path / "out"), another(source)
    for reference, said in ((source, False), (other, True)):
        notes = [
            evaluate(made, reference, FEW).notes,
            diff(reference, made, FEW).notes,
            bisect_layers(reference, made, Bound(), FEW).notes,
            make_report(made, reference, FEW).notes,
            make_report(made, reference).notes,
        ]
        for each in notes:
            assert [f"the reference {other} is not the model" in note for note in each].count(True) == said


def test_a_graph_of_its_own_is_told_without_a_look_at_its_data(tmp_path: Path) -> None:
    made = compiled(models.external_mlp(tmp_path), tmp_path / "out")
    other = models.external_mlp(tmp_path, "elsewhere")
    (tmp_path / "float.onnx.data").unlink()  # which an error would name
    assert "names another SHA-256" in origin_notes(made, other)[0]


def test_no_note_without_a_manifest_of_the_model(tmp_path: Path) -> None:
    source = models.external_mlp(tmp_path)
    made, other = compiled(source, tmp_path / "out"), another(source)
    assert origin_notes(source, other) == [] and origin_notes(made, made) == []
    assert origin_notes(made, compiled(source, tmp_path / "out2")) == []  # of one origin
    manifest = made.with_name("manifest.json")
    for text in ("{", "[]", json.dumps({"input": {"float.onnx": "0"}, "output": {"other.onnx": "0"}})):
        manifest.write_text(text)
        assert origin_notes(made, other) == []


def test_large_data_is_not_hashed_and_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = models.external_mlp(tmp_path)
    made, other = compiled(source, tmp_path / "out"), another(source)
    monkeypatch.setattr(origin, "MOST_BYTES", 10_000)
    (note,) = origin_notes(made, other)
    assert "was not looked at" in note and "to hash" in note


def test_the_tokenizer_of_what_it_was_compiled_from(tmp_path: Path) -> None:
    source = models.mlp(tmp_path)
    made = compiled(source, tmp_path / "out")
    (tmp_path / "tokenizer.json").write_text("{}")
    text = tmp_path / "text.txt"
    assert find_tokenizer(None, text, made) == tmp_path / "tokenizer.json"
    given = tmp_path / "given.json"
    assert find_tokenizer(given, text, made) == given
    model = onnx.load(source)
    model.doc_string = "another"
    onnx.save(model, source)  # the tokenizer beside it is another's now
    assert find_tokenizer(None, None, made) is None
    with pytest.raises(
        CalibrationError, match=f"looked for tokenizer.json in {made.parent}, and beside .* in {tmp_path}"
    ):
        find_tokenizer(None, text, made)
    with pytest.raises(
        CalibrationError, match=f"looked for tokenizer.json in {tmp_path / 'nowhere'}; give --tokenizer"
    ):
        find_tokenizer(None, text, tmp_path / "nowhere" / "model.onnx")
