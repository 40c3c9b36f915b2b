"""What is done to the whole model before any weight is quantized (``transform:``), as a recipe says it."""

from dataclasses import dataclass

from qcompiler.errors import RecipeError
from qcompiler.recipe.yaml_text import check_bool, check_choice

TRANSFORMS = ("rotate",)


@dataclass(frozen=True, slots=True)
class TransformSettings:
    """A change of basis of the activations, folded into the weights.

    Attributes:
        name: rotate, the only one.
        stream: rotate the residual streams (R1 of QuaRot).
        heads: rotate the values inside each attention head (R2).
    Raises:
        RecipeError: another name, a switch that is none, or nothing to rotate.
    """

    name: str = "rotate"
    stream: bool = True
    heads: bool = True

    def __post_init__(self) -> None:
        check_choice(self.name, TRANSFORMS, "name")
        check_bool(self.stream, "stream")
        check_bool(self.heads, "heads")
        if not (self.stream or self.heads):
            raise RecipeError("stream and heads: both false leave nothing to rotate; write transform: none")
