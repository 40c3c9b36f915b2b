"""The scheme that settings ask for, and settings that ask for none."""

import pytest

from qcompiler.errors import RecipeError
from qcompiler.quant.scheme import Granularity
from qcompiler.recipe import Recipe, Skip, WeightSettings
from tests.recipe_text import AWQ, recipe


@pytest.mark.parametrize(
    ("setting", "granularity", "group"),
    [
        ("64", Granularity.GROUP, 64),
        ("channel", Granularity.CHANNEL, None),
        ("tensor", Granularity.TENSOR, None),
    ],
)
def test_scheme_of_the_settings(setting: str, granularity: Granularity, group: int | None) -> None:
    settings = AWQ.with_settings([f"group_size={setting}"]).settings_for("a", "linear", "MatMul")
    assert isinstance(settings, WeightSettings)
    scheme = settings.scheme("float16")
    assert (scheme.bits, scheme.symmetric, scheme.granularity, scheme.group_size) == (
        4,
        False,
        granularity,
        group,
    )
    assert scheme.scale_dtype == "float16"


@pytest.mark.parametrize("double", [False, True])
def test_a_codebook_is_the_dtype_of_a_weight(double: bool) -> None:
    chosen = recipe(f"{{bits: 4, dtype: nf4, group_size: 64, double_quant: {double}, scale_dtype: bfloat16}}")
    settings = chosen.settings_for("a", "linear", "MatMul")
    assert isinstance(settings, WeightSettings)
    scheme = settings.scheme("float32")
    assert (scheme.label, scheme.double_quant) == (f"nf4 g64{' dq' * double}", double)
    assert scheme.scale_dtype == ("float32" if double else "bfloat16")
    head = chosen.settings_for("b", "head", "MatMul")
    assert isinstance(head, WeightSettings)
    assert head.scheme("float32").label == "int8 g32 sym"


def test_scale_dtype_given_wins_over_the_model() -> None:
    settings = AWQ.with_settings(["scale_dtype=bfloat16"]).settings_for("a", "linear", "MatMul")
    assert isinstance(settings, WeightSettings) and settings.scheme("float32").scale_dtype == "bfloat16"


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["algorithm=mse"], "mse finds one level of scales, and two_level is true; use kquant"),
        (
            ["two_level=false"],
            "kquant finds two levels of scales, and two_level is false; set two_level: true",
        ),
        (["algorithm=[kquant, autoround]"], "autoround works on scales of one level"),
        (
            ["bits=8"],
            "two_level: scales of two levels are not stored with 8 bits; set dtype: int and bits: 2, 3, 4",
        ),
        (["zero_point=float"], "minima take the place of zero points"),
        (["zero_point=half"], "zero_point: 'half' is unknown"),
    ],
)
def test_two_level_scales_want_their_quantizer(settings: list[str], told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        Recipe.load("w4a16-kquant").with_settings(settings)


@pytest.mark.parametrize("setting", ["symmetric=true", "head.zero_point=float"])
def test_float_zero_points_where_there_are_none_are_refused(setting: str) -> None:
    with pytest.raises(RecipeError, match="zero_point: float, but there are none; set symmetric: false"):
        Recipe.load("w4a16-hqq").with_settings([setting])


@pytest.mark.parametrize("algorithm", ["gptq", "spqr", "[awq, rtn]", "[rtn, lorc]", "[mse, autoround]"])
def test_groups_of_rows_want_a_quantizer_that_knows_them(algorithm: str) -> None:
    recipe = Recipe.load("w4a16-hqq").with_settings(["group_axis=output", "zero_point=int"])
    with pytest.raises(RecipeError, match="works on groups of input channels, .* group_axis: input"):
        recipe.with_settings([f"algorithm={algorithm}"])
    found = recipe.settings_for("fc", "linear", "MatMul")
    assert not isinstance(found, Skip) and found.scheme("float32").label == "int4 g64-out asym"
    head = recipe.settings_for("lm_head", "head", "MatMul")
    assert not isinstance(head, Skip) and head.group_axis == "input"


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["group_axis=rows"], "group_axis: 'rows' is unknown; use one of: input, output"),
        (["zero_point=int", "group_axis=output", "group_size=channel"], "group_axis: output is for groups"),
        (["zero_point=int", "symmetric=true", "bits=1"], "bits: 1 has no middle"),
    ],
)
def test_what_no_group_can_be(settings: list[str], told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        Recipe.load("w4a16-hqq").with_settings(settings)
