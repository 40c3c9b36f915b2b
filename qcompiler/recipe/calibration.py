"""The ``calibration:`` section of a recipe: how much data is used."""

from dataclasses import dataclass
from typing import Literal, get_args

from qcompiler.calibration.range_observers import RangeMethod
from qcompiler.recipe.yaml_text import check_choice, check_int, check_text

BiasCorrection = Literal["measured", "analytical", "none"]


@dataclass(frozen=True, slots=True)
class CalibrationSettings:
    """How much data is used, `samples` windows of `length` tokens, or `samples` feeds, and what `activations: static` makes of it.

    Attributes:
        ranges: how a tensor's range comes of what was seen (see ``range_observers``).
        ranges_from: a calibration.json whose ranges are used, and none observed; "" for none.
        correct_biases: what biases make up for: the mean error of rounding on the data (``measured``, of convolutions: see
            ``correct_biases``), that of weights by what BatchNormalizations let expect (``analytical``: see
            ``correct_biases_analytically``), or ``none``.
    """

    samples: int = 16
    length: int = 512
    ranges: RangeMethod = "minmax"
    ranges_from: str = ""
    correct_biases: BiasCorrection = "measured"

    def __post_init__(self) -> None:
        for key in ("samples", "length"):
            check_int(getattr(self, key), 1, None, key)
        check_text(self.ranges_from, "ranges_from")
        check_choice(self.correct_biases, get_args(BiasCorrection), "correct_biases")
        check_choice(self.ranges, get_args(RangeMethod), "ranges")
