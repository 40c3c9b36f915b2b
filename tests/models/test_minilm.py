from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

import qcompiler
from models import language, minilm
from models.built_model import BuiltModel

Build = Callable[[Callable[[], BuiltModel]], BuiltModel]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def built(build_or_skip: Build) -> BuiltModel:
    return build_or_skip(minilm.build)


def test_paraphrases_are_close_and_other_sentences_are_not(built: BuiltModel) -> None:
    measured = minilm.measure(built.path)
    assert measured["worst_cosine_to_float"] > 0.9999
    assert measured["paraphrase_cosine"] > 0.7  # measured 0.745
    assert measured["unrelated_cosine"] < 0.15  # measured 0.085


def test_padding_changes_nothing(built: BuiltModel) -> None:
    tokenizer = Tokenizer.from_file(str(built.tokenizer))
    session = language.session(built.path)
    sentences = ["A short one.", "A sentence that is a good deal longer than the other one is."]
    together = minilm.embed(session, minilm.tokenize(tokenizer, sentences))
    alone = minilm.embed(session, minilm.tokenize(tokenizer, sentences[:1]))
    assert np.abs(together[0] - alone[0]).max() < 1e-5  # float32 sums in another order; entries below 1


def test_its_activations_are_part_of_our_products(built: BuiltModel, tmp_path: Path) -> None:
    compiled = qcompiler.compile(built.path, "w4a16-rtn", target="qcompiler", output=tmp_path / "out")
    running = compiled.report.running
    assert running["ai.qcompiler::MatMulNBitsGelu"] == 6 and "ai.qcompiler::MatMulNBits" not in running


def test_data_files_hold_the_inputs_of_the_model(built: BuiltModel) -> None:
    for path in (minilm.calibration_data(), minilm.evaluation_data()):
        with np.load(path) as arrays:
            assert sorted(arrays.files) == ["attention_mask", "input_ids", "token_type_ids"]
            assert arrays["input_ids"].shape[0] == 64
