"""How well Fisher scores predict what rounding one weight alone does to the model, and what either costs.

python -m benchmarks.sensitivity                                SmolLM2-135M off-grid, one window of 256 tokens: ten minutes
python -m benchmarks.sensitivity --form tiny --length 512       the embedded model: a minute
python -m benchmarks.sensitivity --text FILE --runs 2           another text; the mean of two backward runs for the scores that ``mixed``
                                                                does not take

Each weight's measured loss (KL in nats a token, at 4 bits by round to nearest) beside its prediction by the diagonal, as ``mixed`` takes
it, and by three other ways to make a score of the same gradients: Spearman's correlation over the weights, and the median of predicted over
measured.
"""

import argparse
import tempfile
import time
from collections import defaultdict
from functools import partial
from pathlib import Path
from statistics import fmean

import numpy as np
import onnx_ir as ir
import torch

from benchmarks.measure.results import markdown
from benchmarks.quality import FORMS, subject
from qcompiler.algorithms import fisher, rtn
from qcompiler.calibration.backpropagation import Backpropagation, Product
from qcompiler.calibration.feeds import Feed, make_feeds
from qcompiler.calibration.segments import cut_segments
from qcompiler.graph import model_file
from qcompiler.pass_manager import run_passes
from qcompiler.passes.fisher_sensitivity import by_fisher
from qcompiler.passes.measured_outputs import find_ends
from qcompiler.passes.output_sensitivity import by_output
from qcompiler.passes.quantize_weights import CalibrationRun
from qcompiler.passes.sensitivity import anchors_of, operand_of, scheme_at, uses_of
from qcompiler.pipeline import plan_weights, preparing_passes
from qcompiler.recipe import Recipe
from qcompiler.recipe.planned_weight import PlannedWeight

BITS = 4


def other_scores(
    model: ir.Model, weights: list[PlannedWeight], feed: Feed, folder: Path, seed: int
) -> dict[str, dict[PlannedWeight, float]]:
    """By name: each weight's loss by other parts of the Fisher information than its diagonal; d = E x at a token, g the gradient there.

    Args:
        seed: of the labels; 0 has those of ``by_fisher``.
    """
    owner = {
        Product(use.node, use.input_index, partial(operand_of, planned, use)): planned
        for planned in weights
        for use in uses_of(planned)
    }
    ends = find_ends(model)
    segments = cut_segments(model.graph, set(anchors_of(model)))
    through = Backpropagation(model, segments, list(owner), [end.output for end in ends], "")
    tokens = 0

    def start(index: int, value: ir.Value, output: torch.Tensor) -> torch.Tensor:
        nonlocal tokens
        tokens = output.numel() // output.shape[-1]
        return fisher.drawn_score(output, torch.Generator().manual_seed(seed + index))

    found: dict[str, dict[PlannedWeight, float]] = defaultdict(lambda: defaultdict(float))
    for _, seen in through.run([feed], folder, 1 << 30, start):
        for at in seen:
            planned = owner[at.product]
            values = planned.weight.array()
            error = rtn.quantize(values, None, scheme_at(planned, BITS)).dequantize() - values
            e = torch.from_numpy(error)
            x = at.reads.reshape(-1, e.shape[1]) if at.reads.is_floating_point() else None
            d = e[at.reads.reshape(-1).long()] if x is None else x @ e.T
            products = at.gradient.reshape(d.shape) * d
            for name, value in (
                ("token by token and output by output, sum of (g_i d_i)²", products.square().sum()),
                ("token by token, sum of <g, d>²", products.sum(1).square().sum()),
                ("all at once, (sum of <g, d>)²", products.sum().square()),
            ):
                found[name][planned] += 0.5 / tokens * float(value)
    return found


def _spearman(a: np.typing.NDArray[np.float64], b: np.typing.NDArray[np.float64]) -> float:
    ranks = [np.argsort(np.argsort(each)) for each in (a, b)]
    return float(np.corrcoef(*ranks)[0, 1])


def table(form: str, length: int, text: Path | None = None, runs: int = 1) -> str:
    """Markdown: a row for each way to predict.

    Args:
        length: tokens of the one window.
        text: in place of the model's own.
        runs: backward runs, of which the scores that ``mixed`` does not take are the mean.
    """
    source = subject(form, None)
    recipe = Recipe.load("mixed-auto")
    assert recipe.mixed is not None
    model = model_file.load(source.built.path)
    run_passes(model, preparing_passes(recipe), [])
    weights = plan_weights(model, recipe).quantized
    data = make_feeds(
        model, text or source.calibration, source.built.tokenizer, 1, length, 0, lambda *_: None
    )
    with tempfile.TemporaryDirectory() as folder:
        run = CalibrationRun(data.feeds, Path(folder), 1 << 30)
        start = time.perf_counter()
        scored = by_fisher(model, weights, recipe.mixed, run, lambda *_: None, 0)
        half = time.perf_counter()
        measured = by_output(model, weights, recipe.mixed, run, lambda *_: None)
        seconds = (half - start, time.perf_counter() - half)
        each_run = [other_scores(model, weights, data.feeds[0], Path(folder), seed) for seed in range(runs)]
    others = {
        name: {p: fmean(run_of[name][p] for run_of in each_run) for p in weights} for name in each_run[0]
    }
    assert scored.reference == measured.reference == BITS
    truth = np.array([measured.of[planned].measured for planned in weights])
    ways = {"the diagonal, sum of F_ij E_ij²": {p: each.measured for p, each in scored.of.items()}, **others}
    body = []
    for name, losses in ways.items():
        guess = np.array([losses[planned] for planned in weights])
        body.append([name, f"{_spearman(guess, truth):.2f}", f"{np.median(guess / truth):.2f}"])
    head = ["score", "Spearman", "predicted / measured, median"]
    window = f"one window of {length} tokens of {(text or source.calibration).name}"
    return (
        f"{markdown(head, body)}\n\n{form}: {len(weights)} weights, {window}, runs: {runs}; measuring {seconds[1]:.0f} s, "
        f"the diagonal {seconds[0]:.0f} s (ratio {seconds[1] / seconds[0]:.1f})"
    )


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--form", choices=FORMS, default="off-grid")
    parser.add_argument("--length", type=int, default=256, help="tokens (256)")
    parser.add_argument("--text", type=Path, help="the window's text (the model's calibration data)")
    parser.add_argument("--runs", type=int, default=1, help="backward runs of the other scores (1)")
    given = parser.parse_args()
    print(table(given.form, given.length, given.text, given.runs))


if __name__ == "__main__":
    main()
