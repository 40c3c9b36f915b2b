"""Trains the embedded tiny_lm and writes models/tiny_lm.safetensors: python -m models.tiny_lm_train

The committed weights came from this script with its defaults on Python 3.11: text that ships with Python, in
sequences of 512 bytes; Muon for the linears, AdamW for the rest. Held-out perplexity and the weights so far
are written on the way: 3.07 per byte at the end, after 49 minutes of one thread on a busy machine. No
byte-for-byte reproduction is promised across kinds of CPU.

Muon: momentum whose update is made orthogonal by Newton-Schulz steps (Jordan et al. 2024,
kellerjordan.github.io/posts/muon).
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
WARMUP = 50
MUON_RATE = 0.02
MUON_MOMENTUM = 0.95
ADAM_RATE = 3e-3
REPORT = 50  # steps between lines
EVALUATE = 200  # steps between evaluations


def train(steps: int, batch: int, seed: int, out: Path) -> None:
    """Train a decoder on ``python_text.training_text``; loss is in nats per byte."""
    torch.manual_seed(seed)
    text = _bytes_tensor(python_text.training_text())
    held_out = _bytes_tensor(python_text.evaluation_text())
    model = Llama(CONFIG)
    _initialize(model)
    linears = [p for name, p in model.named_parameters() if p.dim() == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.dim() == 1 or "embed" in name]
    momenta = [torch.zeros_like(p) for p in linears]
    adam = torch.optim.AdamW(others, lr=ADAM_RATE, betas=(0.9, 0.98), weight_decay=0.0)
    started = time.monotonic()
    running = math.log(CONFIG.vocab)
    for step in range(steps):
        rate = _schedule(step, steps)
        starts = torch.randint(len(text) - SEQUENCE - 1, (batch,))
        windows = torch.stack([text[s : s + SEQUENCE + 1] for s in starts.tolist()])
        loss = _loss(model, windows)
        model.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        for weight, momentum in zip(linears, momenta, strict=True):
            _muon_step(weight, momentum, MUON_RATE * rate)
        adam.param_groups[0]["lr"] = ADAM_RATE * rate
        adam.step()
        running += 0.05 * (loss.item() - running)
        last = step == steps - 1
        if step % REPORT == 0 or last:
            print(f"step {step} train {running:.4f} seconds {time.monotonic() - started:.0f}", flush=True)
        if step % EVALUATE == EVALUATE - 1 or last:
            print(f"held-out perplexity {math.exp(_held_out_loss(model, held_out)):.3f}", flush=True)
            weights = {name: p.detach().to(torch.float16) for name, p in model.named_parameters()}
            save_file(weights, out)


@torch.no_grad()
def _muon_step(weight: Tensor, momentum: Tensor, rate: float) -> None:
    """One step of Muon with Nesterov momentum; weight, its gradient and momentum are [N, K]."""
    gradient = weight.grad
    assert gradient is not None
    momentum.lerp_(gradient, 1 - MUON_MOMENTUM)
    update = gradient.lerp(momentum, MUON_MOMENTUM)
    rows, columns = update.shape
    x = update.T if rows > columns else update
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x  # Jordan's coefficients
    x = x.T if rows > columns else x
    weight.add_(x, alpha=-rate * math.sqrt(max(1.0, rows / columns)))


def _schedule(step: int, steps: int) -> float:
    """Linear warm-up, constant for half of the steps, then linear down to nothing."""
    return min((step + 1) / WARMUP, 1.0, 2 * (steps - step) / steps)


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
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    options = parser.parse_args()
    train(options.steps, options.batch, options.seed, options.out)
    print(options.out)


if __name__ == "__main__":
    main()
