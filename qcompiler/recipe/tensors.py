"""The ``tensors:`` section of a recipe: what single tensors of activations get in place of what calibration and recipe say.

    tensors:
      conv_3: {range: [0, 6]}
      "*softmax*": {type: uint16}
      're:.*/mul_[0-9]+': {quantize: false}

or the name of a JSON file of ONNX Runtime's ``TensorQuantOverrides``, which ``ort_overrides`` reads.
"""

import fnmatch
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal, get_args

import numpy as np

from qcompiler.errors import RecipeError
from qcompiler.quant.activation_codes import ActivationCodes, ActivationType, is_signed
from qcompiler.quant.ranges import Range
from qcompiler.recipe.ort_overrides import read_overrides
from qcompiler.recipe.yaml_text import check_bool, check_choice, check_keys

Symmetry = bool | Literal["auto"]


@dataclass(frozen=True, slots=True)
class TensorSettings:
    """What the tensors that ``name`` matches get; None is as the recipe has it.

    Attributes:
        name: a tensor's name, a glob, or a regular expression after ``re:``.
        type: of the codes.
        symmetric: whether the middle code is 0.
        range: lowest and highest number, in place of what calibration sees.
        scale, zero_point: what a step is worth and which code is 0; both, or neither.
        quantize: False leaves the tensor float.
    Raises:
        RecipeError: a value that makes no sense, or two that do not go together.
    """

    name: str
    type: ActivationType | None = None
    symmetric: bool | None = None
    range: tuple[float, float] | None = None
    scale: float | None = None
    zero_point: int | None = None
    quantize: bool | None = None

    def __post_init__(self) -> None:
        where = f"tensors: {self.name}"
        if self.name.startswith("re:"):
            try:
                re.compile(self.name[3:])
            except re.error as error:
                raise RecipeError(f"{where}: is not a regular expression: {error}") from error
        given = self.given()
        if not given:
            raise RecipeError(f"{where}: must say something: one of {', '.join(KEYS)}")
        if self.quantize is not None:
            check_bool(self.quantize, f"{where}: quantize")
        if self.quantize is False and len(given) > 1:
            others = ", ".join(key for key in given if key != "quantize")
            raise RecipeError(
                f"{where}: quantize: false leaves it float, so {others} means nothing; drop one"
            )
        if self.type is not None:
            check_choice(self.type, get_args(ActivationType), f"{where}: type")
        if self.symmetric is not None:
            check_bool(self.symmetric, f"{where}: symmetric")
        if self.range is not None:
            object.__setattr__(self, "range", _ends(self.range, where))
        self._check_scale(where)

    def _check_scale(self, where: str) -> None:
        if (self.scale is None) is not (self.zero_point is None):
            raise RecipeError(
                f"{where}: scale and zero_point go together; give both, or range: [LOWEST, HIGHEST]"
            )
        if self.scale is None:
            return
        for key in ("range", "symmetric"):
            if getattr(self, key) is not None:
                raise RecipeError(f"{where}: scale and zero_point say the range already; drop {key}")
        if not _is_number(self.scale) or not self.scale > 0:
            raise RecipeError(f"{where}: scale: expected a number above 0, got {self.scale!r}")
        if type(self.zero_point) is not int:
            raise RecipeError(f"{where}: zero_point: expected a whole number, got {self.zero_point!r}")

    def given(self) -> dict[str, object]:
        """The keys that say something."""
        return {key: getattr(self, key) for key in KEYS if getattr(self, key) is not None}

    def codes(self, kind: ActivationType) -> ActivationCodes | None:
        """Those that scale and zero point say, of this type where no other is said.

        Raises:
            RecipeError: the zero point is no code of the type.
        """
        if self.scale is None or self.zero_point is None:
            return None
        try:
            return ActivationCodes(self.type or kind, np.float32(self.scale), self.zero_point)
        except ValueError as error:
            raise RecipeError(f"tensors: {self.name}: {error}") from error

    @property
    def is_pattern(self) -> bool:
        """Whether it may match several names."""
        return self.name.startswith("re:") or any(mark in self.name for mark in "*?[")

    def holds(self, name: str) -> bool:
        """Whether the tensor is meant."""
        if self.name.startswith("re:"):
            return re.fullmatch(self.name[3:], name) is not None
        return name == self.name or fnmatch.fnmatchcase(name, self.name)


KEYS = tuple(entry.name for entry in fields(TensorSettings) if entry.name != "name")


@dataclass(frozen=True)
class ActivationSettings:
    """How ranges of activations become codes.

    Attributes:
        kind: the type of all codes.
        symmetric: whether their middle code is 0; ``auto``: where they are signed.
        tensors: the first that matches a name says what is different.
    """

    kind: ActivationType = "uint8"
    symmetric: Symmetry = "auto"
    tensors: tuple[TensorSettings, ...] = ()

    def of(self, name: str) -> TensorSettings | None:
        """What is said of a tensor."""
        return next((settings for settings in self.tensors if settings.holds(name)), None)

    def form_of(self, name: str) -> tuple[ActivationType, bool]:
        """The type of a tensor's codes, and whether they are symmetric."""
        said = self.of(name)
        kind = self.kind if said is None or said.type is None else said.type
        if said is not None and said.symmetric is not None:
            return kind, said.symmetric
        return kind, is_signed(kind) if self.symmetric == "auto" else self.symmetric

    def fixed(self, name: str) -> Range | ActivationCodes | None:
        """What the recipe gives in place of an observed range."""
        said = self.of(name)
        if said is None:
            return None
        return said.codes(self.kind) if said.range is None else Range(*said.range)


def make_tensors(value: object) -> tuple[TensorSettings, ...]:
    """From what YAML says: a mapping by name, or the path of a JSON file of ONNX Runtime's overrides.

    Raises:
        RecipeError: no such thing; names the tensor.
    """
    if isinstance(value, str):
        value = read_overrides(value)
    if not isinstance(value, dict):
        raise RecipeError(
            f"tensors: expected a mapping from names to settings, or the path of a JSON file, got {value!r}"
        )
    return tuple(_make(name, said) for name, said in value.items())


def plain_tensors(tensors: Sequence[TensorSettings]) -> dict[str, object]:
    """As YAML has them."""
    return {
        settings.name: {
            key: list(value) if isinstance(value, tuple) else value for key, value in settings.given().items()
        }
        for settings in tensors
    }


def _make(name: object, said: object) -> TensorSettings:
    if not isinstance(name, str) or name in ("", "re:"):
        raise RecipeError(f"tensors: expected a tensor's name, got {name!r}; put it in quotes")
    return TensorSettings(name, **check_keys(said, KEYS, f"tensors: {name}"))  # type: ignore[arg-type]  # checked inside


def _ends(value: object, where: str) -> tuple[float, float]:
    if isinstance(value, (list, tuple)) and len(value) == 2 and all(_is_number(end) for end in value):
        lowest, highest = map(float, value)
        if lowest < highest:
            return lowest, highest
    raise RecipeError(f"{where}: range: expected [LOWEST, HIGHEST], two numbers in this order, got {value!r}")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
