"""The ``mixed:`` section of a recipe: bits chosen weight by weight under a budget."""

import math
import re
from dataclasses import dataclass

from qcompiler.errors import RecipeError
from qcompiler.recipe.yaml_text import check_int

BITS = (2, 3, 4, 8)
"""What may be given out: not one bit, which is stored in two."""
OUTPUT, FISHER = "output", "fisher"
SENSITIVITIES = (OUTPUT, FISHER)
_BUDGET = re.compile(r"(\d+(?:\.\d+)?)\s*(bpw|KB|MB|GB)", re.IGNORECASE)
_UNITS = {"KB": 1e3, "MB": 1e6, "GB": 1e9}


@dataclass(frozen=True, slots=True)
class MixedSettings:
    """What bits are given out, and how many.

    Attributes:
        bits: what a weight may get; each with the recipe's group size and symmetry.
        budget: ``4.5bpw``, stored bits of all quantized weights over their number; or ``90MB`` (KB, GB; in any case), the size
            of the model with its data; empty for none.
        max_kl: the most KL divergence (nats a token) that is predicted; 0 for no bound. With a budget too, the budget rules.
        samples: windows of calibration on which each weight's effect is measured.
        sensitivity: how: ``output``, by running the model with each weight rounded; ``fisher``, by gradients of the float model.
    Raises:
        RecipeError: values that make no sense. That one of budget and max_kl is there is ``require_bound``'s to say.
    """

    bits: tuple[int, ...] = (2, 4, 8)
    budget: str | None = ""
    max_kl: float = 0.0
    samples: int = 1
    sensitivity: str = OUTPUT

    def __post_init__(self) -> None:
        bits: object = self.bits  # YAML may hold anything
        given = list(bits) if isinstance(bits, (list, tuple)) else [bits]
        for width in given:
            if isinstance(width, float) or width not in BITS:
                raise RecipeError(f"bits: {width!r}; give some of {', '.join(map(str, BITS))}")
        if len(set(given)) < 2:
            raise RecipeError(f"bits: {given}; give at least two to choose from, [2, 4, 8]")
        object.__setattr__(self, "bits", tuple(sorted(set(given))))
        check_int(self.samples, 1, None, "samples")
        bound: object = self.max_kl
        number = isinstance(bound, (int, float)) and not isinstance(bound, bool)
        if not number or not 0 <= self.max_kl < math.inf:
            raise RecipeError(f"max_kl: {bound!r}; must be a positive number, 0.05")
        if self.sensitivity not in SENSITIVITIES:
            raise RecipeError(f"sensitivity: {self.sensitivity!r}; give one of {', '.join(SENSITIVITIES)}")
        budget: object = "" if self.budget is None else self.budget
        if budget != "" and not (isinstance(budget, str) and _BUDGET.fullmatch(budget)):
            raise RecipeError(f"budget: {budget!r}; write 4.5bpw, or 90MB for the whole model")
        object.__setattr__(self, "budget", budget)

    def require_bound(self) -> None:
        """Raises RecipeError where nothing says how many bits there are: asked once all of a recipe's settings are made."""
        if not self.budget and not self.max_kl:
            raise RecipeError(
                "mixed: budget: missing; give a budget (--budget 4.5bpw or 90MB), or a max_kl above 0 (--max-kl 0.05)"
            )

    def budget_bytes(self, weights: int, rest: int) -> int | None:
        """Bytes that the quantized weights may take, or None without a budget.

        Args:
            weights: how many numbers they hold.
            rest: bytes of everything else in the model.
        """
        found = _BUDGET.fullmatch(self.budget or "")
        if found is None:
            return None
        amount = float(found[1])
        unit = _UNITS.get(found[2].upper())
        return int(amount * weights / 8) if unit is None else int(amount * unit - rest)

    def shortfall(self, least: int, weights: int, rest: int) -> str | None:
        """What to say where the fewest bits are too many for the budget, in its unit; None where they fit.

        Args:
            least: bytes that the quantized weights take at the fewest bits.
            weights, rest: as in ``budget_bytes``.
        """
        allowed = self.budget_bytes(weights, rest)
        if allowed is None or least <= allowed:
            return None
        unit = (_BUDGET.fullmatch(self.budget or "") or [""] * 3)[2]
        scale = _UNITS.get(unit.upper())
        if scale is None:
            takes = f"{_up(8 * least / weights)}bpw"
        else:
            takes = (
                f"{_up((least + rest) / scale)}{unit}, of which {_up(rest / scale)}{unit} are not quantized"
            )
        return f"mixed: a budget of {self.budget} cannot be met; the least there is takes {takes}"


def _up(number: float) -> str:
    """Two decimals, rounded up: as a budget it is enough."""
    return f"{math.ceil(number * 100) / 100:.2f}"
