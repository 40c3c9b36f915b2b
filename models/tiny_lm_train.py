"""Trains the embedded tiny_lm and writes models/tiny_lm.safetensors: python -m models.tiny_lm_train

The committed weights came from this script with its defaults: 2 cores, AdamW, cosine schedule, sequences of
512 bytes of text that ships with Python 3.11. Held-out perplexity is printed on the way.
"""

import argparse
import math
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from models import python_text
from models.llama import Llama
from models.tiny_lm import CONFIG, WEIGHTS

SEQUENCE = 512
PEAK_RATE = 3e-3
WARMUP = 100
WEIGHT_DECAY = 0.1


def train(steps: int, batch: int, seed: int) -> Llama:
    """A decoder trained on ``python_text.training_text``; logs loss in nats per byte."""
    torch.manual_seed(seed)
    text = _bytes_tensor(python_text.training_text())
    held_out = _bytes_tensor(python_text.evaluation_text())
    model = Llama(CONFIG)
    _initialize(model)
    matrices = [p for p in model.parameters() if p.dim() == 2]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK_RATE, betas=(0.9, 0.98), fused=True)
    started = time.monotonic()
    running = math.log(CONFIG.vocab)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = PEAK_RATE * _schedule(step, steps)
        starts = torch.randint(len(text) - SEQUENCE - 1, (batch,))
        windows = torch.stack([text[s : s + SEQUENCE + 1] for s in starts.tolist()])
        loss = _loss(model, windows)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        running += 0.02 * (loss.item() - running)
        if step % 100 == 0 or step == steps - 1:
            line = f"step {step} train {running:.4f} seconds {time.monotonic() - started:.0f}"
            if step % 500 == 0 or step == steps - 1:
                line += f" held-out perplexity {math.exp(_held_out_loss(model, held_out)):.3f}"
            print(line, flush=True)
    return model


def _schedule(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine down to nothing."""
    if step < WARMUP:
        return (step + 1) / WARMUP
    return 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / (steps - WARMUP)))


def _loss(model: Llama, windows: Tensor) -> Tensor:
    """Mean cross entropy in nats; windows uint8 [batch, SEQUENCE + 1]."""
    ids = windows.to(torch.int64)
    logits = model(ids[:, :-1], torch.ones_like(ids[:, :-1]))[0]
    return functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


@torch.no_grad()
def _held_out_loss(model: Llama, text: Tensor) -> float:
    whole = len(text) // (SEQUENCE + 1) * (SEQUENCE + 1)
    return _loss(model, text[:whole].view(-1, SEQUENCE + 1)).item()


def _initialize(model: Llama) -> None:
    """Normal 0.04, and smaller where a layer writes to the residual stream (GPT-2)."""
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            residual = name.endswith(("o_proj.weight", "down_proj.weight"))
            nn.init.normal_(parameter, 0.0, 0.04 / math.sqrt(2 * CONFIG.layers) if residual else 0.04)


def _bytes_tensor(text: str) -> Tensor:
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    options = parser.parse_args()
    model = train(options.steps, options.batch, options.seed)
    save_file({name: p.detach().to(torch.float16) for name, p in model.named_parameters()}, options.out)
    print(options.out)


if __name__ == "__main__":
    main()
