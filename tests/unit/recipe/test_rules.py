"""What decides for one weight: a rule, its role, or the recipe."""

from pathlib import Path

import pytest

from qcompiler.errors import RecipeError
from qcompiler.recipe import Match, Recipe, Skip, WeightSettings
from tests.recipe_text import AWQ, recipe

EXAMPLE = Path(__file__).parents[3] / "examples" / "recipe.yaml"


def test_the_example_decides_as_its_comments_say() -> None:
    example = Recipe.load(EXAMPLE)
    last = example.settings_for("n1", "linear", "MatMul", aliases=["model.layers.29.mlp.down_proj.weight"])
    assert isinstance(last, WeightSettings) and (last.bits, last.group_size, last.symmetric) == (8, 32, False)
    assert last.decided_by == "rule 1 (name=*layers.29.mlp.down_proj*)"
    first = example.settings_for("layers.1.q", "linear", "MatMul")
    assert isinstance(first, WeightSettings) and (first.bits, first.group_size) == (4, 32)
    assert example.settings_for("fc", "head", "Gemm") == Skip(
        "rule 3 (role=head, op=Gemm): a few classes weigh nothing"
    )
    value = example.settings_for("layers.5.v_proj", "linear", "MatMul")
    assert (
        isinstance(value, WeightSettings)
        and value.symmetric
        and [step.name for step in value.algorithm] == ["mse"]
    )


def test_what_decides_without_a_rule() -> None:
    linear = AWQ.settings_for("a", "linear", "MatMul")
    head = AWQ.settings_for("a", "head", "MatMul")
    assert isinstance(linear, WeightSettings) and linear.decided_by == "recipe w4a16-awq"
    assert (
        isinstance(head, WeightSettings) and head.decided_by == "head of recipe w4a16-awq" and head.bits == 8
    )
    left = AWQ.settings_for("a", "conv", "Conv")
    assert isinstance(left, Skip) and "no weight-only kernel" in left.reason
    assert recipe("head: float").settings_for("a", "head", "MatMul") == Skip("head: float in recipe r")


def test_first_rule_wins_and_all_its_conditions_must_hold() -> None:
    loaded = recipe(
        "rules:\n"
        "  - {match: {name: 'a*', op: Gemm}, bits: 2}\n"
        "  - {match: {name: 'a*'}, bits: 3}\n"
        "  - {match: {role: linear}, bits: 8}\n"
    )
    cases = {("a1", "linear", "Gemm"): 0, ("a1", "linear", "MatMul"): 1, ("b", "linear", "MatMul"): 2}
    for question, index in cases.items():
        assert loaded.rule_for(*question) == index
    assert loaded.rule_for("b", "head", "MatMul") is None


@pytest.mark.parametrize(
    ("pattern", "name", "holds"),
    [
        ("*.q", "layer.q", True),
        ("*.q", "layer.qq", False),
        ("*.Q", "layer.q", False),
        ("layer.[01].q", "layer.1.q", True),
        (r"re:layer\.\d+", "layer.12", True),
        (r"re:layer\.\d+", "layer.12.q", False),
        (r"re:\d+", "layer.12", False),
    ],
)
def test_a_pattern_matches_the_whole_name(pattern: str, name: str, holds: bool) -> None:
    assert Match(name=pattern).holds([name], "linear", "MatMul") is holds


def test_a_rule_on_a_role_completes_itself_from_that_role() -> None:
    loaded = recipe(
        "{group_size: 64, symmetric: false, algorithm: [awq, mse], head: float, "
        "rules: [{match: {role: head}, bits: 4}, {match: {role: conv}, bits: 8}]}"
    )
    head = loaded.settings_for("h", "head", "MatMul")
    assert isinstance(head, WeightSettings)
    assert (head.bits, head.group_size, head.symmetric, len(head.algorithm)) == (4, 32, True, 1)
    conv = loaded.settings_for("c", "conv", "Conv")
    assert isinstance(conv, WeightSettings) and (conv.bits, conv.group_size) == (8, 64)
    assert [step.name for step in conv.transforms] == ["awq"] and conv.quantizer.name == "mse"


def test_quantize_false_without_a_reason_still_says_why() -> None:
    loaded = recipe("rules: [{match: 'x*', quantize: false}]")
    assert loaded.settings_for("xy", "linear", "MatMul") == Skip("rule 1 (name=x*): quantize: false")


def test_quantize_true_exempts_from_later_rules() -> None:
    loaded = recipe("rules: [{match: 'x', quantize: true}, {match: '*', quantize: false}]")
    assert isinstance(loaded.settings_for("x", "linear", "MatMul"), WeightSettings)
    assert isinstance(loaded.settings_for("y", "linear", "MatMul"), Skip)


def test_an_embedding_takes_no_transform_whatever_rule_gives_it() -> None:
    loaded = recipe("rules: [{match: '*', algorithm: [awq, mse]}]")
    with pytest.raises(RecipeError, match=r"emb: rule 1 .*awq works on a linear's inputs"):
        loaded.settings_for("emb", "embedding", "Gather")


def test_a_rule_that_does_not_go_with_the_recipe_names_both() -> None:
    chosen = recipe(
        "{bits: 4, dtype: nf4, rules: [{match: '*down*', bits: 8}, {match: '*up*', bits: 8, dtype: int}]}"
    )
    with pytest.raises(RecipeError, match=r"down: rule 1 \(name=\*down\*\): dtype: nf4 has 4 bits, not 8"):
        chosen.settings_for("down", "linear", "MatMul")
    up = chosen.settings_for("up", "linear", "MatMul")
    assert isinstance(up, WeightSettings) and up.scheme("float32").label == "int8 g32 sym"


@pytest.mark.parametrize(
    ("base", "rule", "label"),
    [
        (
            "two_level: true, algorithm: kquant",
            "algorithm: {name: kquant, steps: 20}",
            "int4 g32 sym two-level",
        ),
        (
            "bits: 4, algorithm: rtn",
            "two_level: true, algorithm: kquant",
            "int4 g32 sym two-level",
        ),
        ("symmetric: false", "zero_point: float", "int4 g32 asym float-zp"),
    ],
)
def test_a_rule_is_completed_by_the_recipe_before_it_is_judged(base: str, rule: str, label: str) -> None:
    chosen = recipe(f"{{{base}, rules: [{{match: a, {rule}}}]}}").settings_for("a", "linear", "MatMul")
    assert isinstance(chosen, WeightSettings) and chosen.scheme("float32").label == label


def test_a_rule_whose_algorithm_the_recipe_does_not_suit_names_both() -> None:
    chosen = recipe("{bits: 4, rules: [{match: a, algorithm: kquant}]}")
    with pytest.raises(RecipeError, match=r"a: rule 1 \(name=a\): algorithm: kquant .* set two_level: true"):
        chosen.settings_for("a", "linear", "MatMul")


def test_a_rule_without_zero_points_leaves_their_type_behind() -> None:
    loaded = Recipe.load("w4a16-hqq").with_settings(["rules=[{match: fc, symmetric: true}]"])
    found = loaded.settings_for("fc", "linear", "MatMul")
    assert isinstance(found, WeightSettings) and found.scheme("float32").label == "int4 g64 sym"


def test_a_rule_with_float_zero_points_that_its_base_has_not_is_refused() -> None:
    loaded = recipe("{bits: 4, rules: [{match: fc, zero_point: float}]}")
    with pytest.raises(RecipeError, match=r"fc: rule 1 \(name=fc\): zero_point: float, but there are none"):
        loaded.settings_for("fc", "linear", "MatMul")


def test_a_rule_for_one_bit_says_what_is_not_its_own() -> None:
    recipe = Recipe.load("w4a16-hqq").with_settings(["rules=[{match: fc*, bits: 1}]"])
    found = recipe.settings_for("fc", "linear", "MatMul")
    assert not isinstance(found, Skip) and found.scheme("float32").label == "int1 g64 asym float-zp"
    with pytest.raises(RecipeError, match="fc: rule 1 .*bits: 1 has no middle"):
        recipe.settings_for("fc", "head", "MatMul")
    with pytest.raises(RecipeError, match="bits: 1; give some of 2, 3, 4, 8"):
        recipe.with_settings(["mixed={bits: [1, 4], budget: 4bpw}"])
