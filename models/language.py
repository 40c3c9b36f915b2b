"""Decoders in ONNX Runtime: token windows of a text, perplexity within windows, generation."""

from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from tokenizers import Tokenizer

from qcompiler.errors import InputError
from qcompiler.quant import metrics

Ids = NDArray[np.int64]
FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


def session(model: Path) -> onnxruntime.InferenceSession:
    """A CPU session."""
    return onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])


def windows(tokenizer: Path, text: str, count: int, length: int) -> Ids:
    """The first ``count * length`` tokens as int64 [count, length], without special tokens.

    Raises:
        InputError: the text has fewer tokens.
    """
    ids = Tokenizer.from_file(str(tokenizer)).encode(text, add_special_tokens=False).ids
    if len(ids) < count * length:
        raise InputError(
            f"text: {len(ids)} tokens are fewer than {count} windows of {length}; give a longer text"
        )
    return np.array(ids[: count * length], dtype=np.int64).reshape(count, length)


def logits(model: onnxruntime.InferenceSession, ids: Ids) -> NDArray[np.float32]:
    """Logits float32 [batch, sequence, vocab] of ids [batch, sequence], with nothing in the past."""
    feeds: dict[str, NDArray[np.generic]] = {}
    for value in model.get_inputs():
        if value.name == "input_ids":
            feeds[value.name] = ids
        elif value.name == "attention_mask":
            feeds[value.name] = np.ones_like(ids)
        elif value.name == "position_ids":
            feeds[value.name] = np.broadcast_to(np.arange(ids.shape[1], dtype=np.int64), ids.shape)
        else:  # past_key_values.{i}.key: [batch, kv_heads, past, head_dim]
            _, heads, _, dim = value.shape
            feeds[value.name] = np.zeros((ids.shape[0], heads, 0, dim), FLOATS[value.type])
    found: NDArray[np.float32] = model.run(["logits"], feeds)[0]
    return found.astype(np.float32, copy=False)


def perplexity(model: onnxruntime.InferenceSession, ids: Ids) -> float:
    """exp of the mean negative log likelihood of each token but its window's first; ids [count, length]."""
    nats = [metrics.mean_nats(logits(model, row[None])[0, :-1], row[1:]) for row in ids]
    return metrics.perplexity(float(np.mean(nats)))


def generate(
    model: onnxruntime.InferenceSession, prompt: Ids, count: int, temperature: float, seed: int
) -> Ids:
    """``count`` tokens after the prompt [sequence]: the most likely at temperature 0, else sampled."""
    rng = np.random.default_rng(seed)
    ids = prompt
    for _ in range(count):
        last = logits(model, ids[None])[0, -1].astype(np.float64)
        if temperature == 0:
            chosen = int(last.argmax())
        else:
            weights = np.exp((last - last.max()) / temperature)
            chosen = int(rng.choice(len(weights), p=weights / weights.sum()))
        ids = np.append(ids, np.int64(chosen))
    return ids[len(prompt) :]
