"""Which layers go back to float: the search, on drops that are made up."""

from collections.abc import Callable

import pytest

from qcompiler.errors import PromiseError
from qcompiler.fewest_floats import fewest_floats, with_floats
from qcompiler.recipe import Recipe
from qcompiler.recipe.recipe import Skip


def _attempt(drop: Callable[[int], float]) -> Callable[[int], tuple[str, float]]:
    return lambda count: (f"made with {count}", drop(count))


@pytest.mark.parametrize("needed", range(10))
def test_the_fewest_are_found(needed: int) -> None:
    made, count, tried = fewest_floats(_attempt(lambda k: 0.0 if k >= needed else 0.5), lambda: 10, 0.01)
    assert (made, count) == (f"made with {needed}", needed)
    assert tried[0] == (0, 0.5 if needed else 0.0) and len(tried) <= 8


def test_layers_are_ranked_only_if_they_are_needed() -> None:
    def rank() -> int:
        raise AssertionError

    assert fewest_floats(_attempt(lambda k: 0.01), rank, 0.01)[1] == 0


@pytest.mark.parametrize("layers", [1, 2, 7])
def test_a_bound_that_one_quantized_layer_breaks(layers: int) -> None:
    tried = []

    def attempt(count: int) -> tuple[None, float]:
        tried.append(count)
        return None, 0.5

    with pytest.raises(PromiseError, match=f"--max-drop 1%: cannot be held.*of {layers} layer"):
        fewest_floats(attempt, lambda: layers, 0.01)
    assert tried[-1] == layers - 1 and len(set(tried)) == len(tried)


def test_rules_name_the_weights_exactly() -> None:
    recipe = with_floats(Recipe.load("w8a8-static"), ["a.b[0]", "a+b"], 0.01)
    assert isinstance(recipe.settings_for("a.b[0]", "linear", "MatMul"), Skip)
    assert isinstance(recipe.settings_for("a+b", "conv", "Conv"), Skip)
    assert not isinstance(recipe.settings_for("aXb[0]", "linear", "MatMul"), Skip)
    assert Recipe.from_text(recipe.to_yaml(), "r", "r") == recipe
