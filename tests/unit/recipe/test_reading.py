"""Recipes: read by name or from a file, with defaults, and written back."""

import dataclasses
from pathlib import Path

import pytest

from qcompiler import algorithms
from qcompiler.algorithms import rtn
from qcompiler.errors import RecipeError
from qcompiler.quant.scheme import GroupFallback
from qcompiler.recipe import (
    CalibrationSettings,
    Recipe,
    RoleSettings,
    builtin_recipes,
)
from qcompiler.recipe.steps import make_steps
from tests.recipe_text import AWQ, recipe

EXAMPLE = Path(__file__).parents[3] / "examples" / "recipe.yaml"


def test_builtins_are_listed_with_a_description() -> None:
    names = [name for name, _ in builtin_recipes()]
    assert {"w4a16-awq", "w4a16-best", "w8a16-rtn"} <= set(names)
    assert all(description for _, description in builtin_recipes())


@pytest.mark.parametrize(
    ("name", "bits", "group", "symmetric", "steps"),
    [
        ("w4a16-rtn", 4, 32, True, ["rtn"]),
        ("w4a16-awq", 4, 64, False, ["awq", "mse"]),
        ("w8a16-rtn", 8, 32, True, ["rtn"]),
        ("w4a16-nf4", 4, 64, True, ["awq", "mse"]),
    ],
)
def test_builtin_settings(name: str, bits: int, group: int, symmetric: bool, steps: list[str]) -> None:
    loaded = Recipe.load(name)
    assert (loaded.name, loaded.bits, loaded.group_size, loaded.symmetric) == (name, bits, group, symmetric)
    assert [step.name for step in loaded.algorithm] == steps
    assert loaded.head is not None and (loaded.head.bits, loaded.head.group_size, loaded.head.symmetric) == (
        8,
        32,
        True,
    )
    assert loaded.head == loaded.embedding
    assert loaded.calibration == CalibrationSettings(16, 512)
    assert loaded.accuracy_level == 4


@pytest.mark.parametrize("source", [*(name for name, _ in builtin_recipes()), str(EXAMPLE)])
def test_yaml_round_trip_is_stable(source: str) -> None:
    loaded = Recipe.load(source)
    again = recipe(loaded.to_yaml())
    assert again == loaded
    assert again.to_yaml() == loaded.to_yaml()


def test_a_copy_without_its_name_is_named_by_its_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(AWQ.to_yaml(named=False))
    assert Recipe.load(path) == dataclasses.replace(AWQ, name="mine")


def test_defaults_fill_what_the_yaml_leaves_out() -> None:
    loaded = recipe("bits: 8")
    assert loaded == Recipe(name="r", bits=8)
    assert (loaded.group_size, loaded.symmetric, loaded.algorithm) == (32, True, make_steps("rtn"))
    assert (loaded.head, loaded.group_fallback, loaded.scale_dtype) == (
        RoleSettings(),
        GroupFallback.ADJUST,
        "auto",
    )


def test_float_head_survives_the_round_trip() -> None:
    loaded = recipe("head: float\nembedding: float")
    assert loaded.head is None and loaded.embedding is None
    assert "head: float\n" in loaded.to_yaml()
    assert recipe(loaded.to_yaml()) == loaded


def test_a_function_of_the_user_is_an_algorithm(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = recipe("algorithm: qcompiler.algorithms.rtn:quantize")
    with monkeypatch.context() as patch:
        patch.setattr(algorithms, "find", None)  # it was looked up once
        assert loaded.algorithm[0].algorithm.run is rtn.quantize
    assert loaded.algorithm[0].algorithm.kind == "quantizer"
    assert recipe(loaded.to_yaml()) == loaded


def test_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(RecipeError, match="recipe 'w4a16-akq': not built in; did you mean 'w4a16-awq'"):
        Recipe.load("w4a16-akq")


def test_unknown_recipe_lists_all_where_none_is_near() -> None:
    for name in ("w3a16-smooth", "nothing"):
        with pytest.raises(RecipeError) as caught:
            Recipe.load(name)
        assert all(built_in in str(caught.value) for built_in, _ in builtin_recipes())


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="No such file or directory; qcompile recipes lists the built-in"):
        Recipe.load(tmp_path / "none.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="not UTF-8"):
        Recipe.load(tmp_path / "bytes.yaml")


def test_a_file_gives_the_recipe_its_name(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("bits: 8\nalgorithm: {name: mse, shrink: 5e-1}\n")
    loaded = Recipe.load(path)
    assert loaded.name == "mine"
    assert getattr(loaded.algorithm[0].options, "shrink") == 0.5  # noqa: B009  # options is typed object
