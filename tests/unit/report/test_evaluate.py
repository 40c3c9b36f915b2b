import json
import math
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers import models as token_models

import qcompiler
from qcompiler.errors import CalibrationError, InputError
from qcompiler.quant import metrics
from qcompiler.quant.similarity import Similarity
from qcompiler.report.evaluate import EvaluationData, evaluate
from tests import command_models as models
from tests.small_models import make_model, run, save_model, weight


def tokenizer(folder: Path) -> Path:
    """Words a0 .. a95 are their numbers."""
    vocabulary = {f"a{index}": index for index in range(models.VOCABULARY)}
    made = Tokenizer(token_models.WordLevel(vocabulary, unk_token="a0"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    path = folder / "tokenizer.json"
    made.save(str(path))
    return path


def text(folder: Path, words: int) -> tuple[Path, list[int]]:
    ids = np.random.default_rng(0).integers(0, models.VOCABULARY, words).tolist()
    path = folder / "text.txt"
    path.write_text(" ".join(f"a{index}" for index in ids))
    return path, ids


def test_language_figures_are_those_of_the_logits(tmp_path: Path) -> None:
    source = models.decoder(tmp_path)
    made = qcompiler.compile(source, "w4a16-rtn", output=tmp_path / "out").path
    path, ids = text(tmp_path, 70)
    found = evaluate(made, source, EvaluationData(path, tokenizer(tmp_path), windows=2, length=32))
    windows = np.array(ids[:64]).reshape(2, 1, 32)
    reference, ours = (
        np.concatenate([run(model, {"input_ids": window})["logits"] for window in windows])
        for model in (source, made)
    )
    targets = windows[:, 0, 1:]
    assert found.tokens == 64 and found.samples == 2
    assert found.kl == pytest.approx(metrics.kl_divergence(reference, ours), rel=1e-9)
    assert found.reference_ppl == pytest.approx(metrics.perplexity(reference[:, :-1], targets), rel=1e-9)
    assert found.ppl == pytest.approx(metrics.perplexity(ours[:, :-1], targets), rel=1e-9)
    assert found.top1_agreement == pytest.approx(metrics.top1_agreement(reference, ours))
    assert found.sqnr_db == pytest.approx(metrics.sqnr_db(reference, ours), rel=1e-9)
    assert found.cosine == pytest.approx(metrics.cosine(reference, ours), rel=1e-9)


def test_the_text_starts_where_it_is_told(tmp_path: Path) -> None:
    source = models.decoder(tmp_path)
    path, ids = text(tmp_path, 64)
    start = len(" ".join(f"a{index}" for index in ids[:32])) + 1
    given = EvaluationData(path, tokenizer(tmp_path), windows=1, length=32, skip_chars=start)
    whole = EvaluationData(path, tokenizer(tmp_path), windows=1, length=32)
    tail = run(source, {"input_ids": np.array(ids[32:])[None]})["logits"]
    expected = metrics.perplexity(tail[0, :-1], np.array(ids[33:]))
    assert evaluate(source, source, given).ppl == pytest.approx(expected, rel=1e-9)
    assert evaluate(source, source, whole).ppl != pytest.approx(expected, rel=1e-3)


def test_a_model_against_itself_is_equal(tmp_path: Path) -> None:
    source = models.mlp(tmp_path)
    data = models.feeds_file(tmp_path, x=np.ones((4, 64), np.float32))
    found = evaluate(source, source, EvaluationData(data=str(data)))
    assert found.sqnr_db == math.inf and found.cosine == 1.0 and found.top1_agreement == 1.0
    assert found.kl is None and found.notes == []


def test_random_inputs_are_said(tmp_path: Path) -> None:
    source = models.mlp(tmp_path)
    made = qcompiler.compile(source, "w4a16-rtn", output=tmp_path / "out").path
    found = evaluate(made, source, EvaluationData())
    assert found.samples == 8 and "random inputs (seed 0)" in found.notes[0]
    assert 10 < found.sqnr_db < 40  # int4 groups of 32: about 20 dB a layer


def test_a_bfloat16_reference_is_widened(tmp_path: Path) -> None:
    graph = "g (bfloat16[M,64] x) => (bfloat16[M,32] y) { y = MatMul (x, w) }"
    source = save_model(make_model(graph, {"w": weight(64, 32, seed=1, dtype=ml_dtypes.bfloat16)}), tmp_path)
    data = models.feeds_file(tmp_path, x=np.ones((4, 64), np.float32))
    found = evaluate(source, source, EvaluationData(data=str(data)))
    assert found.sqnr_db == math.inf and "widened to float32" in found.notes[0]


def test_models_that_do_not_belong_together(tmp_path: Path) -> None:
    first = models.mlp(tmp_path)
    (tmp_path / "other").mkdir()
    other = models.decoder(tmp_path / "other")
    with pytest.raises(InputError, match=r"inputs differ: .* alone takes input_ids; .* alone takes x"):
        evaluate(first, other, EvaluationData())
    data = models.feeds_file(tmp_path, x=np.ones((4, 64), np.float32))
    with pytest.raises(InputError, match="no output in common"):
        evaluate(first, other, EvaluationData(data=str(data)))
    path, _ = text(tmp_path, 40)
    with pytest.raises(InputError, match=r"no output \[batch, sequence, vocabulary\]"):
        evaluate(first, first, EvaluationData(path, tokenizer(tmp_path), length=32))
    with pytest.raises(CalibrationError, match="not one window of 64"):
        evaluate(other, other, EvaluationData(path, tokenizer(tmp_path), length=64))


def test_similarity_of_parts_is_that_of_the_whole() -> None:
    rng = np.random.default_rng(1)
    reference = rng.standard_normal((6, 50)).astype(np.float32)
    other = reference + 0.1 * rng.standard_normal((6, 50)).astype(np.float32)
    parts = Similarity()
    for row in range(6):
        parts.add(reference[row], other[row])
    assert parts.sqnr_db == pytest.approx(metrics.sqnr_db(reference, other), rel=1e-12)
    assert parts.cosine == pytest.approx(metrics.cosine(reference, other), rel=1e-12)
    assert json.dumps(parts.sqnr_db)


def test_the_tokenizer_beside_the_model_serves_both_compile_and_eval(tmp_path: Path) -> None:
    source = models.decoder(tmp_path)
    path, _ = text(tmp_path, 300)  # four windows
    tokenizer(tmp_path)
    made = qcompiler.compile(
        source, "w4a16-awq", calibration=path, output=tmp_path / "out", settings=["calib.length=64"]
    ).path
    assert evaluate(made, source, EvaluationData(path, windows=1, length=16)).tokens == 16
