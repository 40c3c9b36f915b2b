"""A small decoder with mixtures of experts, its weights from a seed, in the three forms in which exports write experts.

    python -m models.tiny_moe [--form dense|gathered|loop] [--copy-to DIR] [--measure]

All experts of a layer lie in one parameter [E, K, N]. What multiplies with it:

    dense      every expert sees every token: MatMul of x [E, T, K] with [E, K, N]; the others' results get weight 0
    gathered   each token brings the matrices of its experts: MatMul of x [T * TOP, 1, K] with [T * TOP, K, N]
    loop       one expert after the other, a slice of the parameter each, on the tokens that chose it

The three compute the same function. Nothing is trained; the router never chooses the last expert of a layer, as calibration
data may do to experts of real models. Data: random tokens. Metric: KL to the float model, nats a token.
"""

from enum import Enum
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from models import cache, language
from models.built_model import BuiltModel, Graph, ModelFiles, exit_from, parser, print_built
from models.llama import Llama, LlamaConfig, export
from qcompiler.quant import metrics

EXPERTS, TOP = 4, 2
CONFIG = LlamaConfig(
    vocab=256, hidden=64, inner=96, layers=2, heads=4, kv_heads=4, rope_base=10_000.0, norm_eps=1e-5
)
WINDOWS, LENGTH = 8, 48


class Form(str, Enum):
    """How the graph writes its experts."""

    DENSE = "dense"
    GATHERED = "gathered"
    LOOP = "loop"


class Mixture(nn.Module):
    """SwiGLU experts, the TOP likeliest for each token, weighted by the router's softmax over these."""

    def __init__(self, config: LlamaConfig, form: Form) -> None:
        super().__init__()
        k, n = config.hidden, config.inner
        self.form = form
        self.router = nn.Linear(k, EXPERTS)
        self.gate_up_proj = nn.Parameter(torch.randn(EXPERTS, k, 2 * n) * k**-0.5)
        self.down_proj = nn.Parameter(torch.randn(EXPERTS, n, k) * n**-0.5)
        with torch.no_grad():
            self.router.bias[-1] = -1e4  # below any other's logit

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, sequence, K] -> the same shape."""
        rows = x.reshape(-1, x.shape[-1])
        share, ids = torch.topk(torch.softmax(self.router(rows), dim=-1), TOP, dim=-1)
        share = share / share.sum(dim=-1, keepdim=True)
        of_form = {Form.DENSE: self._dense, Form.GATHERED: self._gathered, Form.LOOP: self._loop}
        return of_form[self.form](rows, share, ids).reshape(x.shape)

    def _dense(self, rows: Tensor, share: Tensor, ids: Tensor) -> Tensor:
        everyone = rows[None].expand(EXPERTS, -1, -1)
        results = torch.bmm(_swiglu(torch.bmm(everyone, self.gate_up_proj)), self.down_proj)
        return (results * self._shares(rows, share, ids).T[:, :, None]).sum(dim=0)

    def _gathered(self, rows: Tensor, share: Tensor, ids: Tensor) -> Tensor:
        picked = ids.reshape(-1)
        each = rows.repeat_interleave(TOP, dim=0)[:, None]
        inner = _swiglu(torch.bmm(each, self.gate_up_proj[picked]))
        results = torch.bmm(inner, self.down_proj[picked]).reshape(-1, TOP, rows.shape[-1])
        return (results * share[:, :, None]).sum(dim=1)

    def _loop(self, rows: Tensor, share: Tensor, ids: Tensor) -> Tensor:
        shares = self._shares(rows, share, ids)
        total = torch.zeros_like(rows)
        for expert in range(EXPERTS):
            chosen = (ids == expert).any(dim=-1).nonzero()[:, 0]
            results = _swiglu(rows[chosen] @ self.gate_up_proj[expert]) @ self.down_proj[expert]
            total = total.index_add(0, chosen, results * shares[chosen, expert, None])
        return total

    def _shares(self, rows: Tensor, share: Tensor, ids: Tensor) -> Tensor:
        """[rows, EXPERTS], 0 for experts that were not chosen."""
        return rows.new_zeros(rows.shape[0], EXPERTS).scatter(1, ids, share)


def _swiglu(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return functional.silu(gate) * up


def build(form: Form) -> BuiltModel:
    """The exported model, from the cache."""
    here = Path(__file__)
    sources = [here, here.with_name("llama.py"), here.with_name("torch_export.py")]

    def fill(folder: Path) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = Llama(CONFIG)
            nn.init.normal_(model.model.embed_tokens.weight, std=0.2)  # small beside what layers add to it
            for layer in model.model.layers:
                layer.mlp = Mixture(CONFIG, form)
        export(model.eval(), Graph.PREFILL, folder / "model.onnx")

    facts = {"form": form.value, **cache.versions("torch", "onnxscript")}
    return BuiltModel(cache.entry(f"tiny-moe-{form.value}", facts, sources, fill) / "model.onnx")


def calibration_data() -> Path:
    """calibration.npz: 8 windows of 48 random tokens."""
    return _data() / "calibration.npz"


def evaluation_data() -> Path:
    """8 other windows."""
    return _data() / "evaluation.npz"


def measure(model: Path) -> dict[str, float]:
    """Mean KL to the float model over the evaluation windows, nats a token."""
    with np.load(evaluation_data()) as arrays:
        ids = arrays["input_ids"]
    expected = language.logits(language.session(build(Form.DENSE).path), ids)
    found = language.logits(language.session(model), ids)
    pairs = zip(expected, found, strict=True)
    return {"kl_to_float": float(np.mean([metrics.kl_divergence(*pair) for pair in pairs]))}


def _data() -> Path:
    def fill(folder: Path) -> None:
        random = np.random.default_rng(0)
        for name in ("calibration", "evaluation"):
            np.savez(folder / f"{name}.npz", input_ids=random.integers(0, CONFIG.vocab, (WINDOWS, LENGTH)))

    return cache.entry("tiny-moe-data", {}, [Path(__file__)], fill)


def main() -> None:
    """Command line."""
    options = parser(__doc__)
    options.add_argument("--form", choices=[form.value for form in Form], default=Form.DENSE.value)
    given = options.parse_args()
    built = build(Form(given.form))
    measured = measure(built.path) if given.measure else None
    print_built(ModelFiles(built, calibration_data(), evaluation_data()), measured, given.copy_to)


if __name__ == "__main__":
    exit_from(main)
