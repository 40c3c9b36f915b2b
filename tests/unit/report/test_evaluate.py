import math
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from rich.console import Console

import qcompiler
from qcompiler.errors import CalibrationError, InputError, NotFiniteError
from qcompiler.quant import metrics
from qcompiler.report.evaluate import EvaluationData, evaluate
from qcompiler.report.evaluation_table import evaluation_table
from tests import command_models as models
from tests.command_models import tokenizer
from tests.small_models import Array, make_model, run, save_model, weight


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
    assert found.reference_ppl == pytest.approx(
        metrics.perplexity(metrics.mean_nats(reference[:, :-1], targets)), rel=1e-9
    )
    assert found.ppl == pytest.approx(metrics.perplexity(metrics.mean_nats(ours[:, :-1], targets)), rel=1e-9)
    assert found.top1_agreement == pytest.approx(metrics.top1_agreement(reference, ours))
    r, a = reference.astype(np.float64), ours.astype(np.float64)
    assert found.sqnr_db == pytest.approx(10 * np.log10((r**2).sum() / ((r - a) ** 2).sum()), rel=1e-9)
    assert found.cosine == pytest.approx((r * a).sum() / (np.linalg.norm(r) * np.linalg.norm(a)), rel=1e-9)


def test_the_text_starts_where_it_is_told(tmp_path: Path) -> None:
    source = models.decoder(tmp_path)
    path, ids = text(tmp_path, 64)
    start = len(" ".join(f"a{index}" for index in ids[:32])) + 1
    given = EvaluationData(path, tokenizer(tmp_path), windows=1, length=32, skip_chars=start)
    whole = EvaluationData(path, tokenizer(tmp_path), windows=1, length=32)
    tail = run(source, {"input_ids": np.array(ids[32:])[None]})["logits"]
    expected = metrics.perplexity(metrics.mean_nats(tail[0, :-1], np.array(ids[33:])))
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
    with pytest.raises(
        InputError,
        match=r"inputs differ: .* alone takes input_ids; .* alone takes x; is it the model's own reference",
    ):
        evaluate(first, other, EvaluationData())
    data = models.feeds_file(tmp_path, x=np.ones((4, 64), np.float32))
    with pytest.raises(InputError, match="no output in common"):
        evaluate(first, other, EvaluationData(data=str(data)))
    path, _ = text(tmp_path, 40)
    with pytest.raises(InputError, match=r"no output \[batch, sequence, vocabulary\]"):
        evaluate(first, first, EvaluationData(path, tokenizer(tmp_path), length=32))
    with pytest.raises(CalibrationError, match="not one window of 64"):
        evaluate(other, other, EvaluationData(path, tokenizer(tmp_path), length=64))


def _language_model(folder: Path, head: Array, bias: Array, name: str = "float.onnx") -> Path:
    """Its logits depend on the token alone."""
    count = models.VOCABULARY
    made = make_model(
        f"g (int64[B,S] input_ids) => (float[B,S,{count}] logits) {{ e = Gather(t, input_ids) h = MatMul(e, w) logits = Add(h, b) }}",
        {"t": weight(count, 16), "w": head, "b": bias},
    )
    return save_model(made, folder, name)


def test_a_model_that_is_surely_wrong_has_infinite_perplexity(tmp_path: Path) -> None:
    head, bias = weight(16, models.VOCABULARY, seed=1), np.zeros(models.VOCABULARY, np.float32)
    reference = _language_model(tmp_path, head, bias)
    broken = _language_model(tmp_path, head * 1e6, bias, "broken.onnx")
    path, _ = text(tmp_path, 40)
    found = evaluate(broken, reference, EvaluationData(path, tokenizer(tmp_path), windows=1, length=32))
    assert found.ppl == math.inf
    assert found.reference_ppl is not None and math.isfinite(found.reference_ppl)


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_logits_that_are_no_numbers_are_refused(number: float, tmp_path: Path) -> None:
    head, bias = weight(16, models.VOCABULARY, seed=1), np.zeros(models.VOCABULARY, np.float32)
    reference = _language_model(tmp_path, head, bias)
    bias[7] = number
    broken = _language_model(tmp_path, head, bias, "broken.onnx")
    path, _ = text(tmp_path, 40)
    data = EvaluationData(path, tokenizer(tmp_path), windows=1, length=32)
    for model, other in ((broken, reference), (reference, broken)):
        with pytest.raises(NotFiniteError, match=r"broken.onnx: its logits hold NaN or infinity") as refused:
            evaluate(model, other, data)
        assert "qcompile trace" in str(refused.value) and "bits" not in str(refused.value)
    if np.isnan(number):
        with pytest.raises(
            InputError, match=r"broken.onnx: output logits holds NaN, the reference's does not"
        ):
            evaluate(broken, reference, EvaluationData())


def test_tokens_that_both_exclude_change_nothing(tmp_path: Path) -> None:
    head, bias = weight(16, models.VOCABULARY, seed=1), np.zeros(models.VOCABULARY, np.float32)
    path, ids = text(tmp_path, 32)
    bias[next(index for index in range(models.VOCABULARY) if index not in ids)] = -np.inf
    reference = _language_model(tmp_path, head, bias)
    ours = _language_model(tmp_path, head * 1.01, bias, "ours.onnx")
    found = evaluate(ours, reference, EvaluationData(path, tokenizer(tmp_path), windows=1, length=32))
    assert found.kl is not None and 0 < found.kl < 1
    assert 20 < found.sqnr_db < 60  # 40 dB is one part in a hundred


def test_tokens_of_another_tokenizer(tmp_path: Path) -> None:
    made = make_model(
        "g (int64[B,S] input_ids) => (float[B,S,64] logits) { e = Gather(t, input_ids) logits = MatMul(e, w) }",
        {"t": weight(40, 16), "w": weight(16, 64)},
    )
    model = save_model(made, tmp_path)
    path, _ = text(tmp_path, 40)
    with pytest.raises(
        CalibrationError, match=r"token \d\d, but the model's vocabulary is 40: is this the model's tok"
    ):
        evaluate(model, model, EvaluationData(path, tokenizer(tmp_path), windows=1, length=32))
    assert evaluate(model, model, EvaluationData()).samples == 8, "random tokens stay inside the table"


def test_a_weight_that_could_be_overridden_is_no_difference(tmp_path: Path) -> None:
    made = make_model(
        "g (float[M,64] x, float[64,32] w) => (float[M,32] y) { h = MatMul(x, w) y = Relu(h) }",
        {"w": weight(64, 32)},
    )
    source = save_model(made, tmp_path)
    compiled = qcompiler.compile(source, "w4a16-rtn", output=tmp_path / "out").path
    assert evaluate(compiled, source, EvaluationData()).samples == 8


def test_the_tokenizer_beside_the_model_serves_both_compile_and_eval(tmp_path: Path) -> None:
    source = models.decoder(tmp_path)
    path, _ = text(tmp_path, 300)  # four windows
    tokenizer(tmp_path)
    made = qcompiler.compile(
        source, "w4a16-awq", calibration=path, output=tmp_path / "out", settings=["calib.length=64"]
    ).path
    assert evaluate(made, source, EvaluationData(path, windows=1, length=16)).tokens == 16


def test_a_sequence_is_not_compared(tmp_path: Path) -> None:
    text = "g (float[M,8] x) => (float[M,4] y, seq(float) s) { y = MatMul(x, w) s = SequenceConstruct(y, y) }"
    path = save_model(make_model(text, {"w": weight(8, 4)}), tmp_path)
    assert [output.name for output in evaluate(path, path, EvaluationData()).outputs] == ["y"]


@pytest.mark.filterwarnings("error")
def test_an_infinity_of_one_model_is_told(tmp_path: Path) -> None:
    source, broken = models.mlp(tmp_path), models.mlp(tmp_path, name="broken.onnx", spoil=math.inf)
    data = EvaluationData(data=str(models.feeds_file(tmp_path, x=np.ones((1, 64), np.float32))))
    found = evaluate(broken, source, data)
    (note,) = found.notes
    assert note.startswith("infinity in an output, y: 64 numbers of one model alone; qcompile trace")
    console = Console(width=200)
    with console.capture() as capture:
        console.print(evaluation_table(found))
    assert found.sqnr_db == -math.inf and "-inf" not in capture.get()
    assert evaluate(broken, broken, data).notes == []  # as a mask that both have
