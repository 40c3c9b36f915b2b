"""A plain torch BERT encoder with mean pooling, its parameters named as in a Hugging Face checkpoint.

Token, position and type embeddings; post-norm layers; exact GELU (arXiv 1810.04805). The sentence embedding
is the mean over unmasked tokens, scaled to length 1 (Sentence-BERT, arXiv 1908.10084).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class BertConfig:
    """Sizes of an encoder."""

    vocab: int
    hidden: int
    inner: int
    layers: int
    heads: int
    positions: int
    types: int
    norm_eps: float


class Bert(nn.Module):
    """Encoder and mean pooling."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.embeddings = _Embeddings(config)
        self.encoder = _Encoder(config)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Token embeddings [batch, sequence, hidden], sentence embeddings [batch, hidden]."""
        hidden = self.embeddings(input_ids, token_type_ids)
        mask = (1.0 - attention_mask[:, None, None, :].to(hidden.dtype)) * torch.finfo(hidden.dtype).min
        for layer in self.encoder.layer:
            hidden = layer(hidden, mask)
        weight = attention_mask[:, :, None].to(hidden.dtype)
        mean = (hidden * weight).sum(1) / weight.sum(1).clamp(min=1e-9)
        return hidden, functional.normalize(mean, dim=1)


class _Embeddings(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab, config.hidden)
        self.position_embeddings = nn.Embedding(config.positions, config.hidden)
        self.token_type_embeddings = nn.Embedding(config.types, config.hidden)
        self.LayerNorm = nn.LayerNorm(config.hidden, eps=config.norm_eps)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor) -> Tensor:
        positions = torch.arange(input_ids.shape[1])
        embedded = self.word_embeddings(input_ids) + self.token_type_embeddings(token_type_ids)
        normed: Tensor = self.LayerNorm(embedded + self.position_embeddings(positions))
        return normed


class _Encoder(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(_Layer(config) for _ in range(config.layers))


class _Layer(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.attention = _Attention(config)
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(config.hidden, config.inner)})
        self.output = _Output(config.inner, config)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        attended = self.attention(hidden, mask)
        inner = functional.gelu(self.intermediate["dense"](attended))
        written: Tensor = self.output(inner, attended)
        return written


class _Attention(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.heads = config.heads
        names = ("query", "key", "value")
        self.self = nn.ModuleDict({name: nn.Linear(config.hidden, config.hidden) for name in names})
        self.output = _Output(config.hidden, config)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        batch, sequence, width = hidden.shape
        query, key, value = (
            self.self[name](hidden).view(batch, sequence, self.heads, -1).transpose(1, 2)
            for name in ("query", "key", "value")
        )
        attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        written: Tensor = self.output(attended.transpose(1, 2).reshape(batch, sequence, width), hidden)
        return written


class _Output(nn.Module):
    """Projection back to the residual stream, and its norm."""

    def __init__(self, width: int, config: BertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(width, config.hidden)
        self.LayerNorm = nn.LayerNorm(config.hidden, eps=config.norm_eps)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        normed: Tensor = self.LayerNorm(self.dense(x) + residual)
        return normed


def load(config: BertConfig, weights: Mapping[str, Tensor]) -> Bert:
    """The encoder with these weights; what it does not have (pooler, position_ids) is left out."""
    with torch.device("meta"):
        model = Bert(config)
    needed = model.state_dict().keys()
    model.load_state_dict({name: weights[name] for name in needed}, assign=True)
    return model.eval()
