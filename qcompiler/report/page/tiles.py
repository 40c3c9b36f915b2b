"""Figures that sum up a model, for the top of its page and for notebooks."""

from dataclasses import dataclass

from qcompiler.report.model_report import ModelReport, SpeedFigure
from qcompiler.report.sizes import (
    counted,
    format_bytes,
    format_decibel,
    format_memory,
    format_rate,
    format_seconds,
    size_change,
)


@dataclass(frozen=True)
class Tile:
    """One figure that sums up something."""

    label: str
    value: str
    note: str = ""


def tiles(report: ModelReport) -> list[Tile]:
    """What sums the model up, the most asked for first."""
    found, compiled, judged = report.inspection, report.compiled, report.evaluation
    made = [_size_tile(report)]
    if found.bits_per_weight is not None:
        made.append(
            Tile(
                "bits per weight",
                f"{found.bits_per_weight:.2f}",
                f"{counted(found.quantized, 'weight')} quantized",
            )
        )
    if judged is not None:
        if judged.kl is not None and judged.ppl is not None and judged.reference_ppl is not None:
            made.append(Tile("KL to float", f"{judged.kl:.4f}", f"nats a token, {judged.tokens} tokens"))
            made.append(Tile("perplexity", f"{judged.ppl:.2f}", f"float {judged.reference_ppl:.2f}"))
        if judged.top1_agreement is not None:
            made.append(Tile("same first choice", f"{judged.top1_agreement:.1%}", "as the float model"))
        made.append(Tile("SQNR of the output", format_decibel(judged.sqnr_db), f"cosine {judged.cosine:.5f}"))
    made += [_speed_tile(figure) for figure in report.speed]
    if compiled is not None:
        if compiled.running:
            kinds = sorted(compiled.running.items(), key=lambda kind: -kind[1])
            note = ", ".join(f"{count} {op.rpartition('::')[2]}" for op, count in kinds[:2])
            note += f" and {counted(len(kinds) - 2, 'other kind')}" if kinds[2:] else ""
            made.append(Tile("runs as", counted(sum(compiled.running.values()), "quantized node"), note))
        made.append(Tile("compiled in", format_seconds(compiled.seconds), f"target {compiled.target}"))
        made.append(
            Tile("peak memory", format_memory(compiled.peak_anonymous_bytes), "anonymous, of the compile")
        )
    return made


def _speed_tile(figure: SpeedFigure) -> Tile:
    tokens = figure.tokens_per_second
    value = f"{figure.milliseconds:.3g} ms" if tokens is None else f"{format_rate(tokens)} tokens/s"
    times = figure.times_as_fast
    return Tile(
        figure.workload, value, "" if times is None else f"{times:.2f} times as fast as the float model"
    )


def _size_tile(report: ModelReport) -> Tile:
    before = None
    if report.reference is not None:
        before = report.reference.file_bytes
    elif report.compiled is not None:
        before = report.compiled.float_bytes
    size = report.inspection.file_bytes
    note = "" if not before else f"{format_bytes(before)} before: {size_change(before, size, 2)}"
    return Tile("size", format_bytes(size), note)
