"""The part of the page on bits and what they cost: the trade of a mixed recipe, and what ``--max-drop`` left float."""

from dataclasses import dataclass

from markupsafe import Markup

from qcompiler.passes.assign_bits import MixedResult
from qcompiler.report import figures
from qcompiler.report.compile_report import CompileReport
from qcompiler.report.fallback import Fallback


@dataclass(frozen=True)
class Budget:
    """Figures of a mixed recipe, empty without one, and the fallback, if there was one."""

    trade: str
    sensitivity: str
    reference_bits: int
    fallback: Fallback | None


def budget(compiled: CompileReport) -> Budget | None:
    """None where the recipe fixes all bits and no layer went back."""
    mixed = compiled.mixed
    if mixed is None:
        return None if compiled.fallback is None else Budget("", "", 0, compiled.fallback)
    return Budget(
        Markup(figures.trade(mixed.trade, (mixed.bytes, mixed.loss), mixed.measure)),
        Markup(figures.bars(_sensitivities(mixed), mixed.measure, "layer")),
        mixed.reference_bits,
        compiled.fallback,
    )


def _sensitivities(mixed: MixedResult) -> list[figures.Bar]:
    return [
        figures.Bar(layer.measured, f"{bits} bits", f"{layer.name}: {layer.measured:.3g}, {bits} bits")
        for layer, bits in zip(mixed.layers, mixed.chosen, strict=True)
    ]
