"""The ``mixed:`` section: what it takes, what it refuses, what a budget means."""

import pytest

from qcompiler.errors import RecipeError
from qcompiler.recipe import Recipe
from qcompiler.recipe.mixed import MixedSettings


def test_a_budget_turns_any_recipe_into_a_mixed_one() -> None:
    plain = Recipe.load("w4a16-rtn")
    assert plain.mixed is None
    mixed = plain.with_settings(["mixed.budget=4.5bpw"])
    assert mixed.mixed == MixedSettings((2, 4, 8), "4.5bpw")
    assert Recipe.from_text(mixed.to_yaml(), "r", "r") == mixed
    assert mixed.with_settings(["mixed=none"]) == plain
    assert Recipe.load("mixed-auto").with_settings(
        ["mixed.max_kl=0.05", "mixed.budget="]
    ).mixed == MixedSettings((2, 4, 8), "", 0.05)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "give a budget"),
        ({"budget": "4.5"}, "write 4.5bpw"),
        ({"budget": 4.5}, "write 4.5bpw"),
        ({"budget": "90 MiB"}, "write 4.5bpw"),
        ({"max_kl": -1.0}, "max_kl"),
        ({"max_kl": float("nan")}, "max_kl"),
        ({"max_kl": True}, "max_kl"),
        ({"budget": "5bpw", "bits": [4]}, "at least two"),
        ({"budget": "5bpw", "bits": [4, 5]}, "bits: 5"),
        ({"budget": "5bpw", "bits": 4}, "at least two"),
        ({"budget": "5bpw", "samples": 0}, "samples"),
    ],
)
def test_what_makes_no_sense_is_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        MixedSettings(**settings)  # type: ignore[arg-type]  # what YAML may hold
    with pytest.raises(RecipeError, match=r"^r: mixed: "):
        Recipe.from_mapping({"mixed": settings}, "r")


def test_what_a_budget_allows() -> None:
    assert MixedSettings(budget="4.5bpw").budget_bytes(1000, 77) == 562
    assert MixedSettings(budget="90MB").budget_bytes(1000, 10_000_000) == 80_000_000
    assert MixedSettings(budget="1.5 GB").budget_bytes(1, 0) == 1_500_000_000
    assert MixedSettings(max_kl=0.1).budget_bytes(1, 0) is None
