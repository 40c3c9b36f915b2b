"""Recipes for tests: from a line of YAML, and a built-in one to start from."""

from qcompiler.recipe import Recipe

AWQ = Recipe.load("w4a16-awq")


def recipe(text: str) -> Recipe:
    return Recipe.from_text(text, where="r.yaml", name="r")
