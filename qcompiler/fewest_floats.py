"""Which layers go back to float so that a model loses no more than is allowed: as few as can be, those that it feels most first.

The model is compiled with the k most felt layers float, k doubling until the bound holds, and between the last two k by bisection: some
2 log2(k) compiles. Between the k that were tried it is taken for granted that more float layers lose no more.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from qcompiler.errors import PromiseError
from qcompiler.recipe import Recipe
from qcompiler.recipe.rules import Match, Rule
from qcompiler.report.sizes import counted

Made = TypeVar("Made")


def fewest_floats(
    attempt: Callable[[int], tuple[Made, float]], layers: Callable[[], int], max_drop: float
) -> tuple[Made, int, list[tuple[int, float]]]:
    """What was made with the fewest layers float that holds the bound, how many those are, and (layers, drop) of all that was tried.

    Args:
        attempt: makes a model with so many layers float, and measures its drop.
        layers: how many there are; asked only if none float is too much of a drop.
    Raises:
        PromiseError: one quantized layer alone is too much.
    """
    made, drop = attempt(0)
    tried = [(0, drop)]
    if drop <= max_drop:
        return made, 0, tried
    most = layers() - 1  # with none quantized there is nothing to compile
    failed, count = 0, min(1, most)
    while count > failed:
        made, drop = attempt(count)
        tried.append((count, drop))
        if drop <= max_drop:
            break
        failed, count = count, min(2 * count, most)
    else:
        drops = ", ".join(f"{as_percent(one)} with {number}" for number, one in tried)
        raise PromiseError(
            f"--max-drop {as_percent(max_drop)}: cannot be held: the drop is {drops} of {counted(most + 1, 'layer')} float; "
            "allow more, or take a recipe with more bits"
        )
    held = made
    while count - failed > 1:
        middle = (failed + count) // 2
        made, drop = attempt(middle)
        tried.append((middle, drop))
        if drop <= max_drop:
            held, count = made, middle
        else:
            failed = middle
    return held, count, tried


def with_floats(recipe: Recipe, names: Sequence[str], max_drop: float) -> Recipe:
    """The recipe with these weights left alone, by rules before all others."""
    why = f"--max-drop {as_percent(max_drop)}: back to float"
    rules = [Rule(Match(name="re:" + _exactly(name)), quantize=False, reason=why) for name in names]
    return replace(recipe, rules=(*rules, *recipe.rules))


def as_percent(share: float) -> str:
    """``1%``."""
    return f"{100 * share:.3g}%"


def _exactly(name: str) -> str:
    """A regular expression for this name; only what means something in one is escaped, so that it can be read."""
    return "".join(f"\\{letter}" if letter in r"\.^$*+?{}[]|()" else letter for letter in name)
