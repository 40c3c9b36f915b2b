"""What a recipe cannot say: refused in one line, with the key and the nearest that is known."""

import pytest

from qcompiler.errors import RecipeError
from qcompiler.recipe import Recipe
from qcompiler.recipe.steps import make_steps
from tests.recipe_text import AWQ, recipe


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "r.yaml: empty; qcompile recipes NAME prints one to start from"),
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


def test_a_recipe_built_in_python_is_checked_too() -> None:
    with pytest.raises(RecipeError, match="bits: 5 is not supported"):
        Recipe(name="r", bits=5)
    with pytest.raises(RecipeError, match="accuracy_level"):
        Recipe(name="r", accuracy_level=9)
    assert Recipe(name="r", algorithm=make_steps(["awq", "mse"])).algorithm == AWQ.algorithm
