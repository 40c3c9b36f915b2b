"""``--set KEY=VALUE``: what it changes, and what it refuses."""

import re

import pytest

from qcompiler.errors import RecipeError
from qcompiler.recipe import (
    CalibrationSettings,
    Match,
    Recipe,
    RoleSettings,
    Rule,
)
from qcompiler.recipe.transform import TransformSettings
from tests.recipe_text import AWQ


def test_transform() -> None:
    """A name, a mapping, a switch on the command line; written out in full."""
    assert AWQ.transform is None and AWQ.to_mapping()["transform"] == "none"
    rotated = AWQ.with_settings(["transform=rotate"])
    assert rotated.to_mapping()["transform"] == {"name": "rotate", "stream": True, "heads": True}
    assert Recipe.from_text(rotated.to_yaml(), "r.yaml", "r") == rotated
    assert AWQ.with_settings(["transform.heads=false"]).transform == TransformSettings(heads=False)
    assert rotated.with_settings(["transform=none"]) == AWQ


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("transform=rotat", "transform: name: 'rotat' is unknown; did you mean 'rotate'?"),
        ("transform.heads=1", "transform: heads: expected true or false, got 1"),
        ("transform={stream: false, heads: false}", "write transform: none"),
        (
            "algorithm=[rotate, gptq]",
            "rotate is done to the whole model, not to one weight; write transform: rotate",
        ),
    ],
)
def test_a_transform_that_is_none(setting: str, message: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(message)):
        AWQ.with_settings([setting])


def test_with_settings_applies_in_order() -> None:
    changed = AWQ.with_settings(
        [
            "group_size=128",
            "calib.samples=8",
            "calibration.length=64",
            "head=float",
            "accuracy_level=0",
            "head.bits=4",
        ]
    )
    assert (changed.group_size, changed.accuracy_level) == (128, 0)
    assert changed.calibration == CalibrationSettings(8, 64)
    assert changed.head == RoleSettings(bits=4)
    assert Recipe.load("w4a16-awq") == AWQ


@pytest.mark.parametrize(
    "settings",
    [
        ["two_level=true", "algorithm=kquant", "symmetric=true"],
        ["algorithm=kquant", "two_level=true"],
        ["zero_point=float", "symmetric=false"],
        ["mixed.bits=[4, 8]", "mixed.budget=5bpw"],
        ["transform=rotate", "transform.heads=false"],
        ["calibration={samples: 3}", "calib.length=9"],
    ],
)
def test_settings_need_only_go_together_at_the_end(settings: list[str]) -> None:
    start = Recipe.load("w4a16-rtn")
    assert start.with_settings(settings) != start


def test_settings_that_do_not_go_together_are_all_named() -> None:
    with pytest.raises(RecipeError) as caught:
        AWQ.with_settings(["bits=8", "dtype=nf4"])
    assert str(caught.value).startswith("--set bits=8 --set dtype=nf4: dtype: nf4 has 4 bits, not 8")


def test_with_settings_takes_yaml_values() -> None:
    changed = AWQ.with_settings(
        ["algorithm=[awq, {name: mse, steps: 3}]", "rules=[{match: '*', quantize: false}]"]
    )
    assert getattr(changed.algorithm[1].options, "steps") == 3  # noqa: B009  # options is typed object
    assert changed.rules == (Rule(Match(name="*"), quantize=False),)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("bits", "--set bits: expected KEY=VALUE"),
        ("bist=4", "--set bist=4: unknown key 'bist'; did you mean 'bits'?"),
        ("calib.sampels=4", "unknown key 'sampels'; did you mean 'samples'?"),
        ("head.bit=4", "unknown key 'bit'; did you mean 'bits'?"),
        ("bits.x=4", "bits has no keys inside; set it whole, bits=VALUE"),
        ("awq.steps=20", "write --set 'algorithm=[{name: awq, steps: 20}, mse]'"),
        ("rtm.device=cpu", "unknown key 'rtm'"),
        (
            "gptq.damping=0.2",
            "the recipe does not use gptq; write --set 'algorithm=[awq, {name: gptq, damping: 0.2}]'",
        ),
        (
            "autoround.steps=4",
            "the recipe does not use autoround; write --set 'algorithm=[awq, mse, {name: autoround, steps: 4}]'",
        ),
        ("lorc.rank=4", "write --set 'algorithm=[awq, mse, {name: lorc, rank: 4}]'"),
        ("rules.0.bits=4", "rules has no keys inside"),
        ("bits=[1", "--set bits=[1: line 1: not readable YAML"),
        ("bits=9", "--set bits=9: bits: expected a whole number from 1 to 8, got 9"),
        ("group_size=", "group_size: expected a number, channel or tensor, got None"),
    ],
)
def test_set_refused(setting: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        AWQ.with_settings([setting])
    assert message in str(caught.value)
