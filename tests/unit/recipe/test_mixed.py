"""The ``mixed:`` section: what it takes, what it refuses, what a budget means."""

from pathlib import Path

import pytest

from qcompiler.errors import RecipeError
from qcompiler.graph import model_file
from qcompiler.graph.census import take_census
from qcompiler.recipe import Recipe
from qcompiler.recipe.mixed import MixedSettings
from qcompiler.recipe.plan import make_plan
from tests import command_models


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
        ({"budget": "4.5"}, "write 4.5bpw"),
        ({"budget": 4.5}, "write 4.5bpw"),
        ({"budget": "90 MiB"}, "write 4.5bpw"),
        ({"budget": "90mib"}, "write 4.5bpw"),
        ({"max_kl": -1.0}, "max_kl"),
        ({"max_kl": float("nan")}, "max_kl"),
        ({"max_kl": float("inf")}, "max_kl: inf; must be a positive number"),
        ({"max_kl": True}, "max_kl"),
        ({"budget": "5bpw", "bits": [4]}, "at least two"),
        ({"budget": "5bpw", "bits": [4, 5]}, "bits: 5"),
        ({"budget": "5bpw", "bits": 4}, "at least two"),
        ({"budget": "5bpw", "samples": 0}, "samples"),
        ({"budget": "5bpw", "sensitivity": "fischer"}, "give one of output, fisher"),
        ({"budget": "5bpw", "sensitivity": []}, "give one of output, fisher"),
    ],
)
def test_what_makes_no_sense_is_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        MixedSettings(**settings)  # type: ignore[arg-type]  # what YAML may hold
    with pytest.raises(RecipeError, match=r"^r: mixed: "):
        Recipe.from_mapping({"mixed": settings}, "r")


@pytest.mark.parametrize("section", ["{}", "{sensitivity: fisher}", "{max_kl: 0}"])
def test_a_bound_may_come_later_and_is_asked_for_with_the_plan(section: str, tmp_path: Path) -> None:
    recipe = Recipe.from_text(f"mixed: {section}", "r", "r")
    census = take_census(model_file.load(command_models.mlp(tmp_path)))
    with pytest.raises(RecipeError, match=r"^mixed: budget: missing; give a budget .* or a max_kl above 0"):
        make_plan(census, recipe)
    assert make_plan(census, recipe.with_settings(["mixed.budget=5bpw"])).mixed


TWO_LEVEL = "two_level: true, algorithm: kquant"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (TWO_LEVEL, "r: mixed.bits: [2, 4, 8]: write mixed.bits: [2, 4]; two_level: scales of two levels"),
        (
            f"head: {{bits: 4, {TWO_LEVEL}}}",
            "mixed.bits: [2, 4, 8]: write mixed.bits: [2, 4]; head: two_level",
        ),
        ("dtype: nf4", "mixed: chooses among widths of integers; leave it out, or dtype: nf4"),
        (
            "head: {bits: 4, dtype: nf4}",
            "mixed: chooses among widths of integers; leave it out, or head: dtype: nf4",
        ),
    ],
)
def test_a_width_that_the_settings_cannot_have_is_refused_with_the_recipe(text: str, told: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.from_text(f"{{{text}, mixed: {{budget: 5bpw}}}}", "r", "r")
    assert told in str(caught.value)


def test_two_levels_are_given_out_among_the_widths_that_have_them() -> None:
    kquant = Recipe.load("w4a16-kquant").with_settings(["mixed.bits=[2, 4]", "mixed.budget=4bpw"])
    assert kquant.mixed is not None and kquant.mixed.bits == (2, 4)


@pytest.mark.parametrize(
    ("budget", "least", "told"),
    [
        ("2.5bpw", 313, "takes 2.51bpw"),  # 8 * 313 / 1000 = 2.504, rounded up so that it is enough
        ("2.51bpw", 313, None),
        ("0.5KB", 401, "takes 0.51KB, of which 0.10KB are not quantized"),
        ("0.51kb", 401, None),
        ("90MB", 90_000_000, "takes 90.01MB, of which 0.01MB are not quantized"),
    ],
)
def test_a_budget_that_is_too_small_is_told_in_its_unit(budget: str, least: int, told: str | None) -> None:
    said = MixedSettings(budget=budget).shortfall(least, weights=1000, rest=100)
    if told is None:
        assert said is None
    else:
        assert said == f"mixed: a budget of {budget} cannot be met; the least there is {told}"


def test_what_a_budget_allows() -> None:
    assert MixedSettings(budget="4.5bpw").budget_bytes(1000, 77) == 562
    assert MixedSettings(budget="90MB").budget_bytes(1000, 10_000_000) == 80_000_000
    assert MixedSettings(budget="1.5 GB").budget_bytes(1, 0) == 1_500_000_000
    assert MixedSettings(budget="90mb").budget_bytes(1000, 10_000_000) == 80_000_000
    assert MixedSettings(budget="4.5BPW").budget_bytes(1000, 77) == 562
    assert MixedSettings(max_kl=0.1).budget_bytes(1, 0) is None
