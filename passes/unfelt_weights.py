"""What is done with a weight whose rounding no measured output shows: it would seem to cost nothing at any number of bits.

*Given* what each weight costs. *Result* the same, but that an expert which the data never reached costs what those of its stack that were
reached do on average, and any other such weight is offered the reference bits alone; a warning names them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from qcompiler.passes.sensitivity import Sensitivities, Sensitivity
from qcompiler.recipe.planned_weight import PlannedWeight

NAMED = 8  # of them in a warning; the others are in report.json, with measured 0


@dataclass(frozen=True)
class Settled:
    """What bits are given out by.

    Attributes:
        of: what each weight costs.
        offered: places, in the bits on offer, of those that it may get.
        averaged, unfelt: the weights that were settled either way.
        warnings: a line for either.
    """

    of: dict[PlannedWeight, Sensitivity]
    offered: dict[PlannedWeight, Sequence[int]]
    averaged: frozenset[PlannedWeight]
    unfelt: frozenset[PlannedWeight]
    warnings: list[str]


def settle(found: Sensitivities, bits: Sequence[int]) -> Settled:
    """Settle what was not felt."""
    stacks: dict[str, list[Sensitivity]] = {}
    for planned, each in found.of.items():
        if planned.weight.expert is not None and each.measured > 0:
            stacks.setdefault(planned.weight.expert.stack, []).append(each)
    of = dict(found.of)
    offered: dict[PlannedWeight, Sequence[int]] = {planned: range(len(bits)) for planned in of}
    averaged: list[PlannedWeight] = []
    unfelt: list[PlannedWeight] = []
    for planned, each in found.of.items():
        if each.measured > 0 or each.rounding.exact:
            continue
        expert = planned.weight.expert
        felt = stacks.get(expert.stack, []) if expert is not None else []
        if felt:
            of[planned] = replace(
                each, losses=tuple(map(fmean, zip(*(one.losses for one in felt), strict=True)))
            )
            averaged.append(planned)
        else:
            offered[planned] = [list(bits).index(found.reference)]
            unfelt.append(planned)
    where = f"{', '.join(found.outputs[:NAMED])} on these data"
    warnings = []
    if averaged:
        warnings.append(
            f"mixed: {_listed(averaged)}: not felt in {where}; taken to cost what the experts beside do on average; give more data, "
            "or raise mixed.samples"
        )
    if unfelt:
        warnings.append(
            f"mixed: {_listed(unfelt)}: not felt in {where}, so nothing says how many bits to give; {found.reference} bits each"
        )
    return Settled(of, offered, frozenset(averaged), frozenset(unfelt), warnings)


def _listed(weights: Sequence[PlannedWeight]) -> str:
    names = ", ".join(planned.weight.name for planned in weights[:NAMED])
    return names if len(weights) <= NAMED else f"{names} and {len(weights) - NAMED} others"
