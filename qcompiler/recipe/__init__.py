"""What the user wants, read from YAML: `recipe.py`, its rules, its steps and the YAML text."""

from qcompiler.recipe.calibration import CalibrationSettings
from qcompiler.recipe.recipe import Recipe, Skip, WeightSettings, builtin_recipes
from qcompiler.recipe.rules import Match, RoleSettings, Rule
from qcompiler.recipe.steps import Step

__all__ = [
    "CalibrationSettings",
    "Match",
    "Recipe",
    "RoleSettings",
    "Rule",
    "Skip",
    "Step",
    "WeightSettings",
    "builtin_recipes",
]
