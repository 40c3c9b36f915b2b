from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from tokenizers import Tokenizer

from models import language, tiny_lm
from models.built_model import BuiltModel, Graph

Build = Callable[[Callable[[], BuiltModel]], BuiltModel]


@pytest.fixture(scope="module")
def built(build_or_skip: Build) -> BuiltModel:
    return build_or_skip(tiny_lm.build)


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    path = tmp_path / "tokenizer.json"
    tiny_lm.write_tokenizer(path)
    return path


@pytest.mark.parametrize(
    "text", ["for x in y:\n\treturn 'it''s'", "naïve — 日本語 🙂", " a\r\n\x00\x7f\xad ", "12 345"]
)
def test_token_ids_are_the_bytes(tokenizer: Path, text: str) -> None:
    loaded = Tokenizer.from_file(str(tokenizer))
    ids = loaded.encode(text).ids
    assert bytes(ids) == text.encode()
    assert loaded.decode(ids) == text
    assert loaded.get_vocab_size() == 256


def test_weights_are_small_enough_to_commit() -> None:
    assert tiny_lm.WEIGHTS.stat().st_size <= 4 << 20


def test_the_graph_looks_like_an_exported_one(built: BuiltModel) -> None:
    model = onnx.load(built.path, load_external_data=False)
    assert model.opset_import[0].version == 21
    assert [value.name for value in model.graph.input] == ["input_ids", "attention_mask"]
    assert [value.name for value in model.graph.output] == ["logits"]
    tables = [w.name for w in model.graph.initializer if list(w.dims) == [256, 192]]
    assert tables == ["model.embed_tokens.weight"]
    uses = {node.op_type for node in model.graph.node if tables[0] in node.input}
    assert uses == {"Gather", "Transpose"}  # the head is tied


def test_held_out_text_is_predicted(built: BuiltModel) -> None:
    assert built.tokenizer is not None
    assert tiny_lm.measure(built.path, built.tokenizer)["perplexity"] < 3.3  # of 256; measured 3.09


def test_it_writes_words(built: BuiltModel) -> None:
    session = language.session(built.path)
    text = tiny_lm.generate(session, "The return value is ", count=80)
    assert text == tiny_lm.generate(session, "The return value is ", count=80)
    assert text.isascii()
    assert {"the", "a", "of", "to", "is", "and"}.intersection(text.split())
    sampled = [tiny_lm.generate(session, "The ", 30, seed=seed, temperature=0.8) for seed in (1, 1, 2)]
    assert sampled[0] == sampled[1] != sampled[2]


def test_padding_on_the_left_changes_nothing(built: BuiltModel) -> None:
    session = language.session(built.path)
    ids = np.frombuffer(b"Raised when a", dtype=np.uint8).astype(np.int64)
    padded = np.concatenate([np.zeros(5, np.int64), ids])
    mask = (np.arange(len(padded)) >= 5).astype(np.int64)
    feeds = {"input_ids": padded[None], "attention_mask": mask[None]}
    shifted = session.run(["logits"], feeds)[0][0, 5:]
    plain = language.logits(session, ids[None])[0]
    assert np.abs(shifted - plain).max() < 1e-3 * np.abs(plain).max()  # float32 sums in another order


@pytest.mark.slow
def test_the_kv_graph_agrees_with_prefill(built: BuiltModel, build_or_skip: Build) -> None:
    ids = np.frombuffer(b"Return True if the", dtype=np.uint8).astype(np.int64)[None]
    expected = language.logits(language.session(built.path), ids)
    session = language.session(build_or_skip(lambda: tiny_lm.build(Graph.KV)).path)
    assert np.abs(language.logits(session, ids) - expected).max() < 1e-3 * np.abs(expected).max()
    names = [value.name for value in session.get_outputs()]
    past = {
        value.name: np.zeros((1, 2, 0, 32), np.float32)
        for value in session.get_inputs()
        if value.name.startswith("past_key_values")
    }
    for start, stop in ((0, 7), (7, 8), (8, 18)):
        feeds = {
            "input_ids": ids[:, start:stop],
            "attention_mask": np.ones((1, stop), np.int64),
            "position_ids": np.arange(start, stop)[None],
        }
        found = dict(zip(names, session.run(None, {**feeds, **past}), strict=True))
        past = {name: found[name.replace("past_key_values", "present")] for name in past}
        difference = np.abs(found["logits"] - expected[:, start:stop]).max()
        assert difference < 1e-3 * np.abs(expected).max()
