"""The ``calibration:`` section of a recipe: how much data is used."""

from dataclasses import dataclass

from qcompiler.recipe.yaml_text import check_int


@dataclass(frozen=True, slots=True)
class CalibrationSettings:
    """How much calibration data is used: `samples` windows of `length` tokens, or `samples` feeds."""

    samples: int = 16
    length: int = 512

    def __post_init__(self) -> None:
        for key in ("samples", "length"):
            check_int(getattr(self, key), 1, None, key)
