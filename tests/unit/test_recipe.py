"""Recipes: read, refused with the nearest name, overridden, written back, and asked about one weight."""

import dataclasses
import re
from pathlib import Path

import pytest

from qcompiler import algorithms
from qcompiler.algorithms import rtn
from qcompiler.errors import RecipeError
from qcompiler.quant.scheme import Granularity, GroupFallback
from qcompiler.recipe import (
    CalibrationSettings,
    Match,
    Recipe,
    RoleSettings,
    Rule,
    Skip,
    WeightSettings,
    builtin_recipes,
)
from qcompiler.recipe.steps import make_steps
from qcompiler.recipe.transform import TransformSettings

EXAMPLE = Path(__file__).parents[2] / "examples" / "recipe.yaml"
AWQ = Recipe.load("w4a16-awq")


def recipe(text: str) -> Recipe:
    return Recipe.from_text(text, where="r.yaml", name="r")


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
    assert AWQ.settings_for("a", "conv", "Conv") == Skip(
        "convolutions stay float unless a rule gives them settings"
    )
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


def test_scale_dtype_given_wins_over_the_model() -> None:
    settings = AWQ.with_settings(["scale_dtype=bfloat16"]).settings_for("a", "linear", "MatMul")
    assert isinstance(settings, WeightSettings) and settings.scheme("float32").scale_dtype == "bfloat16"


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


def test_a_function_of_the_user_is_an_algorithm(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = recipe("algorithm: qcompiler.algorithms.rtn:quantize")
    with monkeypatch.context() as patch:
        patch.setattr(algorithms, "find", None)  # it was looked up once
        assert loaded.algorithm[0].algorithm.run is rtn.quantize
    assert loaded.algorithm[0].algorithm.kind == "quantizer"
    assert recipe(loaded.to_yaml()) == loaded


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "r.yaml: empty"),
        ("- 1", "r.yaml: expected keys and values"),
        ("bits: [", "r.yaml: line 1: not readable YAML"),
        ("a: 1\nbits: \t4\n\tx", "r.yaml: line 2: not readable YAML"),
        ("bits: 4\n\nbits: 8", "r.yaml: line 3: not readable YAML: 'bits' is given twice"),
        ("head: {bits: 4, bits: 8}", "line 1: not readable YAML: 'bits' is given twice"),
        ("name: 2020-13-99", "r.yaml: not readable YAML: month"),
        ("bits: 4\x00", "r.yaml: not readable YAML: unacceptable character"),
        ("bist: 4", "r.yaml: unknown key 'bist'; did you mean 'bits'?"),
        ("zzzzzz: 4", "unknown key 'zzzzzz'; use one of: accuracy_level, "),
        ("1: 4", "unknown key '1'"),
        ("name: a b", "name: 'a b' names the output folder"),
        ("name: a/b", "name: 'a/b' names the output folder"),
        ("description: 3", "description: expected text, got 3"),
        ("bits: 5", "bits: 5 is not supported; use one of 1, 2, 3, 4, 8"),
        ("bits: four", "bits: expected a whole number from 1 to 8, got 'four'"),
        ("bits: true", "bits: expected a whole number"),
        ("group_size: 0", "group_size: 0 is not supported; use a positive number, channel or tensor"),
        ("group_size: chanel", "group_size: expected a number, channel or tensor, got 'chanel'"),
        ("symmetric: 1", "symmetric: expected true or false, got 1"),
        ("algorithm: mze", "algorithm: 'mze' is not known; did you mean 'mse'?"),
        ("algorithm: 3", "algorithm: expected the name of an algorithm"),
        (
            "algorithm: []",
            "exactly one quantizer, then refinements, then at most one reconstruction, got none",
        ),
        (
            "algorithm: awq",
            "exactly one quantizer, then refinements, then at most one reconstruction, got awq (transform); write [awq,mse]",
        ),
        (
            "algorithm: [rtn, mse]",
            "exactly one quantizer, then refinements, then at most one reconstruction, got rtn (quantizer), mse (quantizer); write [mse]",
        ),
        ("algorithm: [mse, awq]", "transforms first"),
        ("algorithm: {name: mse, stps: 3}", "algorithm: mse: unknown key 'stps'; did you mean 'steps'?"),
        ("algorithm: {name: mse, steps: x}", "mse.steps: expected int, got 'x'"),
        ("algorithm: {name: mse, device: gpu}", "mse.device: expected one of cpu, cuda, got 'gpu'"),
        ("algorithm: {name: mse, steps: -1}", "algorithm: mse: steps: -1 is below 1"),
        ("algorithm: {steps: 3}", "algorithm: expected the name"),
        ("algorithm: no_such_package:f", "no module no_such_package"),
        ("group_fallback: pd", "group_fallback: 'pd' is unknown; did you mean 'pad'?"),
        ("scale_dtype: float64", "scale_dtype: 'float64' is unknown; did you mean 'float16'?"),
        ("scale_dtype: 16", "scale_dtype: expected one of auto"),
        ("head: flot", "head: expected float or a mapping"),
        ("head: {bit: 4}", "head: unknown key 'bit'; did you mean 'bits'?"),
        ("head: {bits: 5}", "head: bits: 5 is not supported"),
        ("embedding: {algorithm: [awq, mse]}", "embedding.algorithm: awq works on a linear's inputs"),
        ("accuracy_level: 5", "accuracy_level: expected a whole number from 0 to 4, got 5"),
        ("calibration: 3", "calibration: expected keys and values, got 3"),
        ("calibration: {sample: 3}", "calibration: unknown key 'sample'; did you mean 'samples'?"),
        ("calibration: {samples: 0}", "calibration: samples: expected a whole number of at least 1, got 0"),
        ("rules: 3", "rules: expected a list of rules, got 3"),
        ("rules: [3]", "rule 1: rule: expected keys and values, got 3"),
        ("rules: [{bits: 3}]", "rule 1: match: missing"),
        (
            "rules: [{match: '*', bits: 8}, {mach: a}]",
            "rule 2: rule: unknown key 'mach'; did you mean 'match'?",
        ),
        ("rules: [{match: {}, bits: 3}]", "rule 1: match: give at least one of name, role, op"),
        ("rules: [{match: {nam: a}, bits: 3}]", "match: unknown key 'nam'; did you mean 'name'?"),
        ("rules: [{match: 3, bits: 3}]", "match.name: expected text, got 3"),
        ("rules: [{match: 're:', bits: 3}]", "match.name: expected a glob or re:EXPRESSION, got 're:'"),
        ("rules: [{match: 're:(', bits: 3}]", "match.name: 're:(' is not a regular expression"),
        ("rules: [{match: {role: lin}, bits: 3}]", "match.role: 'lin' is unknown; did you mean 'linear'?"),
        ("rules: [{match: {op: matmul}, bits: 3}]", "match.op: 'matmul' is unknown; "),
        ("rules: [{match: a}]", "rule 1: a rule must say something"),
        ("rules: [{match: a, quantize: false, bits: 3}]", "quantize: false leaves the weight alone, so bits"),
        ("rules: [{match: a, quantize: 0}]", "quantize: expected true or false, got 0"),
        ("rules: [{match: a, quantize: false, reason: 3}]", "reason: expected text, got 3"),
        ("rules: [{match: a, group_size: -5}]", "rule 1: group_size: -5 is not supported"),
        (
            "rules: [{match: {role: embedding}, algorithm: [awq, mse]}]",
            "rule 1: algorithm: awq works on a linear's",
        ),
        ("dtype: nf5", "dtype: 'nf5' is unknown; did you mean 'nf4'?"),
        ("{dtype: nf4, bits: 8}", "dtype: nf4 has 4 bits, not 8; set bits: 4 or dtype: int"),
        (
            "{dtype: fp4, symmetric: false}",
            "dtype: fp4 has no zero points; set symmetric: true or dtype: int",
        ),
        ("{dtype: nf4, group_size: channel}", "not for each channel; set group_size to a number"),
        (
            "{dtype: nf4, algorithm: gptq}",
            "algorithm: gptq finds integers, not codes of a table; use rtn or mse",
        ),
        ("head: {dtype: nf4}", "head: dtype: nf4 has 4 bits, not 8"),
        ("rules: [{match: a, dtype: nf4, bits: 3}]", "rule 1: dtype: nf4 has 4 bits, not 3"),
        (
            "{symmetric: false, zero_point: float, algorithm: spqr}",
            "algorithm: spqr needs a code that means 0, and zero_point: float promises none; set zero_point: int",
        ),
        ("double_quant: 1", "double_quant: expected true or false, got 1"),
    ],
)
def test_refused(text: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe(text)
    assert message in str(caught.value)
    assert "r.yaml:" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("bits", "--set bits: expected KEY=VALUE"),
        ("bist=4", "--set bist=4: unknown key 'bist'; did you mean 'bits'?"),
        ("calib.sampels=4", "unknown key 'sampels'; did you mean 'samples'?"),
        ("head.bit=4", "unknown key 'bit'; did you mean 'bits'?"),
        ("bits.x=4", "bits has no keys inside; set it whole, bits=VALUE"),
        ("awq.steps=20", "write --set 'algorithm=[{name: awq, steps: 20}, mse]'"),
        ("rtn.device=cpu", "unknown key 'rtn'"),
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


def test_a_recipe_built_in_python_is_checked_too() -> None:
    with pytest.raises(RecipeError, match="bits: 5 is not supported"):
        Recipe(name="r", bits=5)
    with pytest.raises(RecipeError, match="accuracy_level"):
        Recipe(name="r", accuracy_level=9)
    assert Recipe(name="r", algorithm=make_steps(["awq", "mse"])).algorithm == AWQ.algorithm


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


def test_a_rule_without_zero_points_leaves_their_type_behind() -> None:
    loaded = Recipe.load("w4a16-hqq").with_settings(["rules=[{match: fc, symmetric: true}]"])
    found = loaded.settings_for("fc", "linear", "MatMul")
    assert isinstance(found, WeightSettings) and found.scheme("float32").label == "int4 g64 sym"


def test_a_rule_with_float_zero_points_that_its_base_has_not_is_refused() -> None:
    loaded = recipe("{bits: 4, rules: [{match: fc, zero_point: float}]}")
    with pytest.raises(RecipeError, match=r"fc: rule 1 \(name=fc\): zero_point: float, but there are none"):
        loaded.settings_for("fc", "linear", "MatMul")


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


def test_a_rule_for_one_bit_says_what_is_not_its_own() -> None:
    recipe = Recipe.load("w4a16-hqq").with_settings(["rules=[{match: fc*, bits: 1}]"])
    found = recipe.settings_for("fc", "linear", "MatMul")
    assert not isinstance(found, Skip) and found.scheme("float32").label == "int1 g64 asym float-zp"
    with pytest.raises(RecipeError, match="fc: rule 1 .*bits: 1 has no middle"):
        recipe.settings_for("fc", "head", "MatMul")
    with pytest.raises(RecipeError, match="bits: 1; give some of 2, 3, 4, 8"):
        recipe.with_settings(["mixed={bits: [1, 4], budget: 4bpw}"])
