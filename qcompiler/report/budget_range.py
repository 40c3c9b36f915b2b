"""What a compile can make of a plan whose bits are still to be given out: the least and the most that the weights can take."""

from dataclasses import dataclass

from qcompiler.passes.assign_bits import is_free
from qcompiler.passes.sensitivity import scheme_at
from qcompiler.recipe.plan import Plan


@dataclass(frozen=True)
class BudgetRange:
    """What bounds the bits, and what they can come to; sizes in bytes.

    Attributes:
        budget: as the recipe says it; empty for none.
        max_kl: likewise; 0 for none.
        bits: what is on offer.
        weights: how many numbers are quantized.
        least, most: what they can take, at the fewest bits and at the most.
        expected: what they take where the budget is spent; None where the KL decides.
        rest: of everything else in the model.
        shortfall: what to say where even the least does not fit.
    """

    budget: str
    max_kl: float
    bits: tuple[int, ...]
    weights: int
    least: int
    most: int
    expected: int | None
    rest: int
    shortfall: str | None


def budget_range(plan: Plan, rest: int) -> BudgetRange | None:
    """The range of a plan; None where the recipe gives out no bits.

    Args:
        rest: bytes of the model that no quantized weight takes.
    """
    mixed = plan.mixed
    if mixed is None:
        return None
    least = most = 0
    for planned in plan.quantized:
        widths = mixed.bits if is_free(planned) else ()
        sizes = [planned.bytes_of(scheme_at(planned, bits)) for bits in widths] or [planned.stored_bytes]
        least, most = least + min(sizes), most + max(sizes)
    weights = sum(planned.weight.size for planned in plan.quantized)
    allowed = None if mixed.max_kl else mixed.budget_bytes(weights, rest)
    expected = None if allowed is None else min(max(allowed, least), most)
    shortfall = mixed.shortfall(least, weights, rest)
    return BudgetRange(
        mixed.budget or "", mixed.max_kl, mixed.bits, weights, least, most, expected, rest, shortfall
    )
