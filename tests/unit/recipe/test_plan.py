"""A recipe applied to a model: what of it has no effect is said."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

import qcompiler
from qcompiler.graph import model_file
from qcompiler.graph.census import take_census
from qcompiler.recipe import Recipe, RoleSettings
from qcompiler.recipe.plan import FIXED_BYTES, TRANSFORM_BYTES, Plan, make_plan
from qcompiler.recipe.steps import Step, make_steps
from tests import command_models as models
from tests.small_models import make_model, save_model, weight


def plan_of(model: Path, *settings: str) -> Plan:
    return make_plan(take_census(model_file.load(model)), Recipe.load("w4a16-rtn").with_settings(settings))


def test_a_rule_that_matches_nothing_is_told(tmp_path: Path) -> None:
    plan = plan_of(models.mlp(tmp_path), "rules=[{match: fc1, bits: 8}, {match: '*.fc9', bits: 8}]")
    assert plan.warnings == ["rule 2 (name=*.fc9): matched no weight; qcompile inspect lists the names"]


def test_a_rule_behind_another_is_told(tmp_path: Path) -> None:
    plan = plan_of(models.mlp(tmp_path), "rules=[{match: 'fc*', bits: 8}, {match: fc1, bits: 4}]")
    assert plan.warnings == ["rule 2 (name=fc1): earlier rules decide all that it matches"]


def test_a_rule_for_what_is_left_alone_is_no_mistake(tmp_path: Path) -> None:
    text = "g (float[64,64] x) => (float[64,4] y) { s = MatMul (x, x) y = MatMul (s, w) }"
    model = save_model(make_model(text, {"w": weight(64, 4)}), tmp_path)
    plan = plan_of(model, "rules=[{match: s, quantize: false}]")
    assert [product.op for product in plan.skipped] == ["MatMul"] and plan.warnings == []


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (["embedding.bits=4"], "head of recipe w4a16-rtn holds for both"),
        (["embedding=float"], "head of recipe w4a16-rtn holds for both"),
        (["head=float"], "head: float in recipe w4a16-rtn holds for both"),
        (["head.bits=4", "rules=[{match: table, bits: 8}]"], "rule 1 (name=table) holds for both"),
    ],
)
def test_settings_of_a_tied_embedding_do_not_count(tmp_path: Path, settings: list[str], line: str) -> None:
    (warning,) = plan_of(models.decoder(tmp_path), *settings).warnings
    assert warning.startswith("table: embedding and head are one stored weight; ") and line in warning


def test_all_that_gathered_rows_go_without_is_told(tmp_path: Path) -> None:
    lorc = make_steps(["mse", "lorc"])[1]
    own = Step("own:sparse", lorc.options, replace(lorc.algorithm, name="own:sparse"))
    steps = (*make_steps("rtn"), lorc, own)
    both = RoleSettings(algorithm=steps)
    recipe = replace(Recipe.load("w4a16-rtn"), head=both, embedding=both)
    planned = make_plan(take_census(model_file.load(models.decoder(tmp_path))), recipe).quantized
    table = next(one for one in planned if one.weight.name == "table")
    assert [step.name for step in table.settings.algorithm] == ["rtn"]
    assert any(
        note.startswith("no lorc, own:sparse: rows of the weight are gathered") for note in table.notes
    )


def test_nf4_without_data_as_its_comment_says(tmp_path: Path) -> None:
    comment = (Path(qcompiler.__file__).parent / "recipes" / "w4a16-nf4.yaml").read_text("utf-8")
    (sentence,) = [said for said in comment.replace("\n# ", " ").split(". ") if "no data is needed" in said]
    settings = re.findall(r"--set (\S+)", sentence)
    made = make_plan(
        take_census(model_file.load(models.decoder(tmp_path))),
        Recipe.load("w4a16-nf4").with_settings(settings),
    )
    assert settings and not made.needs_data and made.warnings == []


def test_a_rank_that_no_weight_has_and_what_it_costs_are_told(tmp_path: Path) -> None:
    plan = plan_of(models.mlp(tmp_path), "algorithm=[rtn, {name: lorc, rank: 1000}]")
    (hidden,) = [planned for planned in plan.quantized if planned.weight.name == "fc1"]  # fc2 is the head
    assert any(note.startswith("lorc: rank 1000 is more than the 64") for note in hidden.notes)
    # A and B of rank 64 in float32: 4 * 64 * (128 + 64) bytes, 1.5 times the weight; codes and scales 0.16 times
    (warning,) = plan.warnings
    assert warning.startswith(
        "1 of 2 weights would take more bytes than they do now (fc1: 1.7 times as many)"
    )


def test_a_rank_that_pays_needs_no_word(tmp_path: Path) -> None:
    plan = plan_of(models.mlp(tmp_path), "algorithm=[rtn, {name: lorc, rank: 8}]")
    assert plan.warnings == [] and not any(
        "rank" in note for planned in plan.quantized for note in planned.notes
    )


def test_equal_settings_of_both_need_no_word(tmp_path: Path) -> None:
    assert plan_of(models.decoder(tmp_path)).warnings == []
    assert plan_of(models.decoder(tmp_path), "head.bits=4", "embedding.bits=4").warnings == []


def test_a_rotation_holds_the_largest_weight_once(tmp_path: Path) -> None:
    plan = plan_of(models.mlp(tmp_path), "transform=rotate")
    assert plan.forecast_peak_bytes() == FIXED_BYTES + 4 * 64 * 128 + TRANSFORM_BYTES
