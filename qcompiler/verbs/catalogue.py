"""``qcompile recipes`` and ``qcompile targets``: what there is to choose from."""

from collections.abc import Sequence

import click

from qcompiler.verbs.options import json_option, traceback_option
from qcompiler.verbs.show import show


@click.command("recipes", epilog="Example: qcompile recipes w4a16-awq > mine.yaml")
@click.argument("name", required=False)
@json_option
@traceback_option
def recipes_verb(name: str | None, as_json: bool) -> None:
    """The built-in recipes; with NAME, that recipe as YAML to start your own from."""
    from qcompiler.recipe import Recipe, builtin_recipes

    if name is not None:
        recipe = Recipe.load(name)
        show(recipe.to_mapping() if as_json else recipe.to_yaml())
        return
    rows = builtin_recipes()
    show([{"name": key, "description": text} for key, text in rows] if as_json else _listed(rows))


@click.command("targets", epilog="Example: qcompile targets")
@json_option
@traceback_option
def targets_verb(as_json: bool) -> None:
    """Where compiled models can run."""
    from qcompiler.targets import TARGETS

    rows = [(target.name, target.description) for target in TARGETS]
    show([{"name": key, "description": text} for key, text in rows] if as_json else _listed(rows))


def _listed(rows: Sequence[tuple[str, str]]) -> str:
    width = max(len(key) for key, _ in rows)
    return "\n".join(f"{key:{width}}  {text}" for key, text in rows)
