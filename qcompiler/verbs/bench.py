"""``qcompile bench``: how fast a model is, beside another."""

from dataclasses import asdict
from pathlib import Path

import click

from qcompiler.option_values import Dimension
from qcompiler.verbs.options import json_option, traceback_option
from qcompiler.verbs.show import show


@click.command("bench", epilog="Example: qcompile bench out/model.onnx --tokens 512 --threads 2")
@click.argument("model")
@click.option(
    "--against", metavar="MODEL2",
    help="Default: the same file without our library, where it has operators of ours.",
)  # fmt: skip
@click.option(
    "--tokens", type=click.IntRange(1), help="Of a prefill, where the model takes tokens; default 512."
)
@click.option(
    "--past",
    type=click.IntRange(0),
    help="Tokens before the one of a decode, where the model takes a past; default 128.",
)
@click.option(
    "--dim", "dims", metavar="NAME=SIZE", type=Dimension(), multiple=True,
    help="Size of a symbolic dimension: --dim batch=4. Repeat for more.",
)  # fmt: skip
@click.option(
    "--data",
    metavar="PATH",
    help="Inputs of your own, the first feed: .npz, folder of .npz, .jsonl or module:function.",
)
@click.option("--threads", type=click.IntRange(1), metavar="N", help="Default: as ONNX Runtime chooses.")
@click.option(
    "--runs",
    type=click.IntRange(1),
    metavar="N",
    help="Of each model on each workload, in place of --seconds.",
)
@click.option(
    "--seconds", type=click.FloatRange(0, min_open=True), help="About, for each workload; default 10.",
)  # fmt: skip
@click.option(
    "--loads",
    type=click.IntRange(0),
    default=5,
    show_default=True,
    help="In fresh processes, of each model; 0 for none.",
)
@click.option("--operators", is_flag=True, help="Also profile some runs: where the time goes, by operator.")
@click.option("--plot", metavar="FILE.svg", help="Draw how runs spread.")
@click.option(
    "--since", metavar="OLD.json", help="Beside an earlier qcompile bench --json, of another version, say."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of made-up inputs.")
@json_option
@traceback_option
def bench_verb(
    model: str, against: str | None, tokens: int | None, past: int | None, dims: tuple[tuple[str, int], ...], data: str | None,
    threads: int | None, runs: int | None, seconds: float | None, loads: int, operators: bool, plot: str | None, since: str | None,
    seed: int, as_json: bool,
) -> None:  # fmt: skip
    """Latency, tokens/s, load time and peak memory of MODEL, in turn with another."""
    if runs is not None and seconds is not None:
        raise click.UsageError("--runs and --seconds exclude each other; give one")
    from qcompiler.bench.bench_table import bench_table
    from qcompiler.bench.benchmark import BenchSettings, measure
    from qcompiler.bench.since import beside_earlier, read_earlier
    from qcompiler.bench.workloads import Sizes
    from qcompiler.graph.model_file import check_no_model_file
    from qcompiler.report.progress import progress_shown

    sizes = Sizes(tokens, past, dict(dims), data, seed)
    settings = BenchSettings(sizes, threads, runs, 10.0 if seconds is None else seconds, loads, operators)
    earlier = None if since is None else read_earlier(Path(since))
    if plot is not None:
        check_no_model_file(Path(plot), model, against)
    with progress_shown(quiet=as_json) as progress:
        found = measure(model, against, settings, progress)
    if since is not None and earlier is not None:
        found = beside_earlier(found, Path(since), earlier)
    if plot is not None:
        from qcompiler.bench.bench_plot import write_plot

        write_plot(found, Path(plot))
    show(asdict(found) if as_json else bench_table(found))
