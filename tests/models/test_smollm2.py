from collections.abc import Callable

import numpy as np
import onnx
import pytest
from tokenizers import Tokenizer

from models import language, smollm2
from models.built_model import BuiltModel
from models.cache import UnavailableError

Build = Callable[[Callable[[], BuiltModel]], BuiltModel]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def built(build_or_skip: Build) -> BuiltModel:
    return build_or_skip(smollm2.build)


def test_perplexity_is_the_published_one(built: BuiltModel) -> None:
    assert built.tokenizer is not None
    try:
        measured = smollm2.measure(built.path, built.tokenizer)
    except UnavailableError as error:
        pytest.skip(str(error))
    assert measured["perplexity"] == pytest.approx(27.66, abs=0.01)


def test_the_tokenizer_is_the_models_own(built: BuiltModel) -> None:
    tokenizer = Tokenizer.from_file(str(built.tokenizer))
    text = "Hello 2023 world's — naïve 日本\n\n  x"
    encoded = tokenizer.encode(text)
    assert encoded.tokens[:8] == ["Hello", "Ġ", "2", "0", "2", "3", "Ġworld", "'s"]
    assert tokenizer.decode(encoded.ids) == text
    assert tokenizer.encode("<|im_start|>").ids == [1]


def test_the_graph_has_the_traps_of_exported_ones(built: BuiltModel) -> None:
    graph = onnx.load(built.path, load_external_data=False).graph
    weights = {w.name: list(w.dims) for w in graph.initializer}
    linears = [node for node in graph.node if node.op_type == "MatMul" and node.input[1] in weights]
    assert len(linears) == 210
    assert all(node.input[1].startswith("val_") for node in linears)
    assert [name for name, dims in weights.items() if 49152 in dims] == ["model.embed_tokens.weight"]


def test_both_forms_compute_the_same(built: BuiltModel, build_or_skip: Build) -> None:
    original = build_or_skip(lambda: smollm2.build(smollm2.Form.ORIGINAL))
    ids = np.arange(1000, 1064, dtype=np.int64)[None]
    expected = language.logits(language.session(original.path), ids)
    moved = language.logits(language.session(built.path), ids)
    assert np.abs(moved - expected).max() < 1e-3 * np.abs(expected).max()  # float32 through 30 layers


def test_logits_agree_with_torch(built: BuiltModel) -> None:
    import torch

    from models import llama, smollm2_weights
    from models.built_model import Dtype

    weights = smollm2_weights.off_grid(smollm2_weights.read_weights(smollm2_weights.open_gguf()))
    model = llama.load(smollm2_weights.CONFIG, smollm2_weights.as_torch(weights), Dtype.FLOAT32)
    ids = np.arange(5000, 5032, dtype=np.int64)[None]
    with torch.no_grad():
        expected = model(torch.from_numpy(ids), torch.ones_like(torch.from_numpy(ids)))[0].numpy()
    found = language.logits(language.session(built.path), ids)
    assert np.abs(found - expected).max() < 1e-3 * np.abs(expected).max()
