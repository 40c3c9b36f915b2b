"""The whole way in a minute, nothing to download: the language model of this repository in 4 bits.

python -m benchmarks.demo [--out FOLDER]

Builds models.tiny_lm (1.6 M parameters, byte by byte), compiles it with w4a16-awq as an application would,
compares it with the float model on text that neither training nor calibration saw, and lets both speak. What
recipes cost on a real model: benchmarks/quality.py.
"""

import argparse
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

import qcompiler
from benchmarks.measure.evaluation import evaluate, float_perplexity, model_bytes, reference_logits
from models import tiny_lm
from models.built_model import BuiltModel

WINDOWS = 16  # of 512 bytes each, for the comparison
PROMPT = "The value of the expression "
SPOKEN = 120  # bytes


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, help="keep the compiled model in this folder, which must not exist"
    )
    given = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory() as scratch:
        out = given.out or Path(scratch) / "tiny_lm-w4a16-awq"
        built, seconds = _build(console)
        compiled = _compile(console, built, out)
        _show(console, built, compiled, Path(scratch), seconds)
    if given.out:
        console.print(f"The compiled model: {given.out}")


def _build(console: Console) -> tuple[BuiltModel, float]:
    start = time.perf_counter()
    with console.status("exporting the float model to ONNX"):
        built = tiny_lm.build()
    return built, time.perf_counter() - start


def _compile(console: Console, built: BuiltModel, out: Path) -> Path:
    bar = Progress(TextColumn("{task.description}"), BarColumn(), console=console, transient=True)
    with bar:
        task = bar.add_task("compiling")

        def progress(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)

        compiled = qcompiler.compile(
            built.path,
            recipe="w4a16-awq",
            calibration=tiny_lm.calibration_data(),
            tokenizer=built.tokenizer,
            output=out,
            progress=progress,
        )
    report = compiled.report
    console.print(
        f"Compiled with w4a16-awq in {report.seconds:.1f} s: {len(report.layers)} weights quantized, "
        f"{len(report.skipped)} products left alone, peak memory {report.peak_anonymous_bytes / 1e6:.0f} MB."
    )
    return compiled.path


def _show(console: Console, built: BuiltModel, compiled: Path, scratch: Path, build_seconds: float) -> None:
    assert built.tokenizer is not None
    ids = tiny_lm.evaluation_windows(built.tokenizer)[:WINDOWS]
    with console.status("comparing"):
        reference = reference_logits(built.path, ids, scratch / "reference.npy")
        quality = evaluate(compiled, ids, reference)
    sizes = model_bytes(built.path), model_bytes(compiled)
    table = Table(title=f"tiny_lm on {ids.size:,} bytes of text it has not seen")
    for head in ("", "float", "w4a16-awq"):
        table.add_column(head, justify="left" if not head else "right")
    table.add_row(
        "perplexity per byte", f"{float_perplexity(ids, reference):.3f}", f"{quality.perplexity:.3f}"
    )
    table.add_row("KL to float, nats per byte", "0", f"{quality.kl:.4f}")
    table.add_row("same likeliest byte", "100 %", f"{100 * quality.agreement:.1f} %")
    table.add_row("size", f"{sizes[0] / 1e6:.2f} MB", f"{sizes[1] / 1e6:.2f} MB")
    console.print(table)
    for name, path in (("float", built.path), ("w4a16-awq", compiled)):
        said = tiny_lm.generate(qcompiler.create_session(path), PROMPT, SPOKEN)
        console.print(f"[bold]{name}[/bold]: ", end="")
        console.print(PROMPT + said, markup=False, highlight=False)
    console.print(
        f"(The float model was exported in {build_seconds:.1f} s, or came from the cache.)", style="dim"
    )


if __name__ == "__main__":
    main()
