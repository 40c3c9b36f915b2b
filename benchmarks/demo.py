"""The whole way in a minute, nothing to download: the language model of this repository in 4 bits.

python -m benchmarks.demo [--out FOLDER]

Builds models.tiny_lm (1.6 M parameters, byte by byte), compiles it with w4a16-awq as an application would,
compares it with the float model on text that neither training nor calibration saw, lets both speak, and says
which commands do the same by hand. What recipes cost on a real model: benchmarks/quality.py.
"""

import argparse
import shlex
import shutil
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

import qcompiler
from benchmarks.measure.evaluation import evaluate, float_perplexity, model_bytes, reference_logits
from benchmarks.measure.results import OUT
from models import tiny_lm
from models.built_model import ModelFiles

WINDOWS = 16  # of 512 bytes each, for the comparison
PROMPT = "The value of the expression "
SPOKEN = 120  # bytes
RECIPE = "w4a16-awq"
KEPT = OUT.parent / "demo"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, help=f"folder for all files, new or empty; default {KEPT}, replaced at each run"
    )
    given = parser.parse_args()
    console = Console()
    console.print("Export, compile, compare, speak: about a minute.")
    if given.out is None:
        shutil.rmtree(KEPT, ignore_errors=True)
    folder = given.out or KEPT
    files, seconds = _build(console, folder)
    compiled = _compile(console, files, folder / "out")
    _show(console, files, compiled, seconds)
    _say_how(console, files, compiled)


def _build(console: Console, folder: Path) -> tuple[ModelFiles, float]:
    start = time.perf_counter()
    with console.status("exporting the float model to ONNX"):
        built = tiny_lm.build()
    files = ModelFiles(built, tiny_lm.calibration_data(), tiny_lm.evaluation_data())
    return files.copy_to(folder), time.perf_counter() - start


def _compile(console: Console, files: ModelFiles, out: Path) -> Path:
    bar = Progress(TextColumn("{task.description}"), BarColumn(), console=console, transient=True)
    with bar:
        task = bar.add_task("compiling")

        def progress(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)

        compiled = qcompiler.compile(
            files.model.path,
            recipe=RECIPE,
            calibration=files.calibration,
            tokenizer=files.model.tokenizer,
            output=out,
            progress=progress,
        )
    report = compiled.report
    console.print(
        f"Compiled with {RECIPE} in {report.seconds:.1f} s: {len(report.layers)} weights quantized, "
        f"{len(report.skipped)} products left alone, peak memory {report.peak_anonymous_bytes / 1e6:.0f} MB."
    )
    return compiled.path


def _show(console: Console, files: ModelFiles, compiled: Path, build_seconds: float) -> None:
    model = files.model
    assert model.tokenizer is not None
    ids = tiny_lm.evaluation_windows(model.tokenizer)[:WINDOWS]
    with console.status("comparing"), tempfile.TemporaryDirectory() as scratch:
        reference = reference_logits(model.path, ids, Path(scratch) / "reference.npy")
        quality = evaluate(compiled, ids, reference)
        float_score = float_perplexity(ids, reference)
    sizes = model_bytes(model.path), model_bytes(compiled)
    table = Table(title=f"tiny_lm on {ids.size:,} bytes of text it has not seen")
    for head in ("", "float", RECIPE):
        table.add_column(head, justify="left" if not head else "right")
    table.add_row("perplexity per byte", f"{float_score:.3f}", f"{quality.perplexity:.3f}")
    table.add_row("KL to float, nats per byte", "0", f"{quality.kl:.4f}")
    table.add_row("same likeliest byte", "100 %", f"{100 * quality.agreement:.1f} %")
    table.add_row("size", f"{sizes[0] / 1e6:.2f} MB", f"{sizes[1] / 1e6:.2f} MB")
    console.print(table)
    for name, path in (("float", model.path), (RECIPE, compiled)):
        said = tiny_lm.generate(qcompiler.create_session(path), PROMPT, SPOKEN)
        console.print(f"[bold]{name}[/bold]: ", end="")
        console.print(PROMPT + said, markup=False, highlight=False)
    console.print(
        f"(The float model was exported in {build_seconds:.1f} s, or came from the cache.)", style="dim"
    )


def _say_how(console: Console, files: ModelFiles, compiled: Path) -> None:
    """Where everything is, and the commands that give the same model and the same figures."""
    folder = files.model.path.parent
    again = folder / "again"
    compile_it = [
        "qcompile", files.model.path, "--recipe", RECIPE, "--calib", files.calibration, "-o", again,
    ]  # fmt: skip
    compare = [
        "qcompile", "eval", compiled, "--reference", files.model.path, "--text", files.evaluation,
        "--windows", WINDOWS,
    ]  # fmt: skip
    lines = [
        "",
        f"The compiled model: {compiled}; model, tokenizer and texts: {folder}/. The same by hand:",
        "    source .venv/bin/activate",
        *(f"    {shlex.join(map(str, words))}" for words in (compile_it, compare)),
    ]
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
