"""A plain torch Llama decoder and its export to ONNX, as users export theirs: torch.onnx.export(dynamo=True).

Parameter names and input/output names are those of the Hugging Face checkpoints and of optimum, so that
graphs and weights look like what users have. The exporter leaves pre-transposed weights called ``val_41``,
decomposed RMSNorm and a tied head that is Transpose -> MatMul on the embedding's initializer.

RMSNorm, rotary embedding (rotate halves), grouped-query attention, SwiGLU: Llama 2, arXiv 2307.09288.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.built_model import Dtype, Graph
from models.torch_export import export_module


@dataclass(frozen=True, slots=True)
class LlamaConfig:
    """Sizes of a decoder; head_dim = hidden / heads."""

    vocab: int
    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    rope_base: float
    norm_eps: float

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads


class Llama(nn.Module):
    """Decoder with a tied head; parameters named as in a Hugging Face Llama checkpoint."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.model = _Body(config)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor | None = None,
        past_key_values: list[Tensor] | None = None,
    ) -> tuple[Tensor, ...]:
        """Logits, and with past_key_values the present ones.

        Args:
            input_ids: int64 [batch, sequence].
            attention_mask: int64 [batch, past + sequence], 1 for a token, 0 for padding.
            position_ids: int64 [batch, sequence]; 0, 1, ... when absent.
            past_key_values: per layer key and value, each [batch, kv_heads, past, head_dim].
        Returns:
            logits [batch, sequence, vocab], then per layer key and value
            [batch, kv_heads, past + sequence, head_dim].
        """
        hidden = self.model.embed_tokens(input_ids)
        sequence = input_ids.shape[1]
        past_length = 0 if past_key_values is None else past_key_values[0].shape[2]
        places = torch.arange(past_length + sequence)
        queries = torch.arange(sequence) + past_length
        if position_ids is None:
            position_ids = queries[None, :]
        seen = (places[None, :] <= queries[:, None])[None, None] & (attention_mask[:, None, None, :] != 0)
        # The lowest finite number, not -inf: a padded row that sees nothing must not become NaN.
        mask = torch.where(seen, 0.0, torch.finfo(hidden.dtype).min).to(hidden.dtype)
        cos, sin = self.model.rotation(position_ids, hidden.dtype)
        present: list[Tensor] = []
        for index, layer in enumerate(self.model.layers):
            past = None if past_key_values is None else past_key_values[2 * index : 2 * index + 2]
            hidden, key, value = layer(hidden, mask, cos, sin, past)
            if past is not None:
                present += [key, value]
        logits = functional.linear(self.model.norm(hidden), self.model.embed_tokens.weight)
        return (logits, *present)


class _Body(nn.Module):
    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab, config.hidden)
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.layers))
        self.norm = _RMSNorm(config)

    def rotation(self, position_ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """cos and sin [batch, 1, sequence, head_dim], computed in float32."""
        dim = self.config.head_dim
        inverse = self.config.rope_base ** (-torch.arange(0, dim, 2, dtype=torch.float32) / dim)
        angles = position_ids[:, None, :, None].to(torch.float32) * inverse
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos().to(dtype), angles.sin().to(dtype)


class _RMSNorm(nn.Module):
    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(config.hidden))
        self.eps = config.norm_eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.float32)
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


class _Layer(nn.Module):
    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.input_layernorm = _RMSNorm(config)
        self.self_attn = _Attention(config)
        self.post_attention_layernorm = _RMSNorm(config)
        self.mlp = _SwiGLU(config)

    def forward(
        self, hidden: Tensor, mask: Tensor, cos: Tensor, sin: Tensor, past: list[Tensor] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        attended, key, value = self.self_attn(self.input_layernorm(hidden), mask, cos, sin, past)
        hidden = hidden + attended
        return hidden + self.mlp(self.post_attention_layernorm(hidden)), key, value


class _Attention(nn.Module):
    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        kv_width = config.kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden, config.hidden, bias=False)
        self.k_proj = nn.Linear(config.hidden, kv_width, bias=False)
        self.v_proj = nn.Linear(config.hidden, kv_width, bias=False)
        self.o_proj = nn.Linear(config.hidden, config.hidden, bias=False)

    def forward(
        self, x: Tensor, mask: Tensor, cos: Tensor, sin: Tensor, past: list[Tensor] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        batch, sequence, hidden = x.shape
        query = self._heads(self.q_proj(x))
        key = self._heads(self.k_proj(x))
        value = self._heads(self.v_proj(x))
        query = query * cos + _rotate_half(query) * sin
        key = key * cos + _rotate_half(key) * sin
        if past is not None:
            key = torch.cat((past[0], key), dim=2)
            value = torch.cat((past[1], value), dim=2)
        attended = functional.scaled_dot_product_attention(
            query, self._repeat(key), self._repeat(value), attn_mask=mask
        )
        attended = attended.transpose(1, 2).reshape(batch, sequence, hidden)
        return self.o_proj(attended), key, value

    def _heads(self, x: Tensor) -> Tensor:
        """[batch, sequence, heads * head_dim] -> [batch, heads, sequence, head_dim]."""
        batch, sequence, _ = x.shape
        return x.view(batch, sequence, -1, self.config.head_dim).transpose(1, 2)

    def _repeat(self, x: Tensor) -> Tensor:
        """[batch, kv_heads, total, head_dim] -> [batch, heads, total, head_dim], repeated by group."""
        times = self.config.heads // self.config.kv_heads
        batch, heads, total, dim = x.shape
        return x[:, :, None].expand(batch, heads, times, total, dim).reshape(batch, heads * times, total, dim)


class _SwiGLU(nn.Module):
    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden, config.inner, bias=False)
        self.up_proj = nn.Linear(config.hidden, config.inner, bias=False)
        self.down_proj = nn.Linear(config.inner, config.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        down: Tensor = self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return down


def _rotate_half(x: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def load(config: LlamaConfig, weights: Mapping[str, Tensor], dtype: Dtype) -> Llama:
    """The decoder with these weights, named as in a Hugging Face checkpoint, in this dtype."""
    with torch.device("meta"):
        model = Llama(config)
    element: torch.dtype = getattr(torch, dtype.value)
    model.load_state_dict({name: tensor.to(element) for name, tensor in weights.items()}, assign=True)
    return model.eval()


def export(model: Llama, graph: Graph, path: Path) -> None:
    """Write model.onnx with its weights in ``<path>.data``; batch, sequence and past are dynamic."""
    config = model.config
    batch, sequence = 2, 3  # neither 0 nor 1, which the exporter would take for constants
    past = 4 if graph is Graph.KV else 0
    ids = torch.zeros((batch, sequence), dtype=torch.int64)
    mask = torch.ones((batch, past + sequence), dtype=torch.int64)
    inputs: dict[str, object] = {"input_ids": ids, "attention_mask": mask}
    shapes: dict[str, object] = {
        "input_ids": {0: "batch", 1: "sequence"},
        "attention_mask": {0: "batch", 1: "sequence" if graph is Graph.PREFILL else "total_sequence"},
    }
    names, outputs = ["input_ids", "attention_mask"], ["logits"]
    if graph is Graph.KV:
        cache_shape = (batch, config.kv_heads, past, config.head_dim)
        dtype = model.model.norm.weight.dtype
        inputs["position_ids"] = torch.arange(past, past + sequence).expand(batch, sequence).contiguous()
        inputs["past_key_values"] = [torch.zeros(cache_shape, dtype=dtype) for _ in range(2 * config.layers)]
        shapes["position_ids"] = {0: "batch", 1: "sequence"}
        shapes["past_key_values"] = [{0: "batch", 2: "past_sequence"} for _ in range(2 * config.layers)]
        pairs = [f"{i}.{part}" for i in range(config.layers) for part in ("key", "value")]
        names += ["position_ids", *(f"past_key_values.{pair}" for pair in pairs)]
        outputs += [f"present.{pair}" for pair in pairs]
    export_module(model, inputs, shapes, names, outputs, path)
