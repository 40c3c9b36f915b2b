"""Settings of single tensors, in a recipe and in ONNX Runtime's JSON."""

import json
from pathlib import Path

import numpy as np
import pytest

from qcompiler.errors import RecipeError
from qcompiler.quant.activation_codes import ActivationCodes
from qcompiler.quant.ranges import Range
from qcompiler.recipe import Recipe

STATIC = "activations: static\nbits: 8\ngroup_size: channel\n"


def _recipe(tensors: str) -> Recipe:
    return Recipe.from_text(f"{STATIC}{tensors}", "r.yaml", "r")


def test_the_first_that_matches_decides() -> None:
    recipe = _recipe(
        "tensors: {conv_1: {range: [0, 6]}, 're:.*_[0-9]': {type: int16}, '*': {scale: 0.5, zero_point: 3}, x: {quantize: false}}"
    )
    settings = recipe.activation_settings
    assert settings.fixed("conv_1") == Range(0, 6) and settings.form_of("conv_1") == ("uint8", False)
    assert settings.fixed("conv_2") is None and settings.form_of("conv_2") == ("int16", True)
    assert settings.fixed("x") == ActivationCodes("uint8", np.float32(0.5), 3)


@pytest.mark.parametrize(
    ("keys", "form"),
    [
        ("", ("uint8", False)),
        ("activation_type: int8", ("int8", True)),
        ("activation_type: int8\nactivation_symmetric: false", ("int8", False)),
        ("activation_type: uint16\nactivation_symmetric: true", ("uint16", True)),
        ("activation_type: int8\ntensors: {x: {symmetric: false}}", ("int8", False)),
        ("tensors: {x: {type: int16}}", ("int16", True)),
    ],
)
def test_signed_codes_are_symmetric_unless_told(keys: str, form: tuple[str, bool]) -> None:
    assert _recipe(keys).activation_settings.form_of("x") == form


def test_a_recipe_with_tensors_is_written_and_read() -> None:
    recipe = _recipe(
        "activation_type: int16\ntensors: {a: {range: [-1, 2.5], type: uint8}, 'b*': {quantize: false}, c: {scale: 0.1, zero_point: 0}}"
    )
    assert Recipe.from_text(recipe.to_yaml(), "again", "r") == recipe


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            "tensors: 3",
            "tensors: expected a mapping from names to settings, or the path of a JSON file, got 3",
        ),
        ("tensors: {3: {type: int8}}", "tensors: expected a tensor's name, got 3"),
        ("tensors: {a: {}}", "tensors: a: must say something: one of type, symmetric, range"),
        ("tensors: {a: {tpye: int8}}", "tensors: a: unknown key 'tpye'; did you mean 'type'"),
        ("tensors: {a: {type: int4}}", "tensors: a: type: 'int4' is unknown"),
        ("tensors: {a: {symmetric: 1}}", "tensors: a: symmetric: expected true or false"),
        ("tensors: {a: {range: [1, 0]}}", r"tensors: a: range: expected \[LOWEST, HIGHEST\]"),
        ("tensors: {a: {range: [0, .nan]}}", "tensors: a: range: expected"),
        ("tensors: {a: {range: 6}}", "tensors: a: range: expected"),
        ("tensors: {a: {scale: 1}}", "tensors: a: scale and zero_point go together"),
        ("tensors: {a: {scale: 0, zero_point: 0}}", "tensors: a: scale: expected a number above 0, got 0"),
        ("tensors: {a: {scale: 1, zero_point: 0.5}}", "tensors: a: zero_point: expected a whole number"),
        ("tensors: {a: {scale: 1, zero_point: 300}}", "tensors: a: the zero point 300 is no code of uint8"),
        ("tensors: {a: {scale: 1, zero_point: 0, range: [0, 1]}}", "say the range already; drop range"),
        ("tensors: {a: {quantize: false, type: int8}}", "leaves it float, so type means nothing"),
        ("tensors: {'re:(': {type: int8}}", r"tensors: re:\(: is not a regular expression"),
        ("activation_type: int7", "activation_type: 'int7' is unknown"),
        ("activation_symmetric: 1", "activation_symmetric: expected true or false"),
    ],
)
def test_what_makes_no_sense_is_refused(tensors: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        _recipe(tensors)


@pytest.mark.parametrize(
    "key", ["activation_type: int8", "activation_symmetric: true", "tensors: {a: {type: int8}}"]
)
def test_they_are_for_static_ranges(key: str) -> None:
    with pytest.raises(RecipeError, match="is for activations: static, which nothing in the recipe asks for"):
        Recipe.from_text(key, "r.yaml", "r")


def _file(folder: Path, body: object) -> Path:
    path = folder / "overrides.json"
    path.write_text(json.dumps(body))
    return path


def test_overrides_of_onnx_runtime_say_the_same(tmp_path: Path) -> None:
    path = _file(
        tmp_path,
        {
            "a": [{"quant_type": "QUInt16", "rmin": -1.0, "rmax": 2.0}],
            "b": [{"quant_type": "QInt8", "symmetric": False}],
            "c[0]": [{"scale": 0.25, "zero_point": 7}],
            "d": [],
            "e": [{}],
        },
    )
    read = Recipe.load("w8a8-static").with_settings([f"tensors={path}"])
    written = (
        "tensors: {a: {type: uint16, range: [-1, 2]}, b: {type: int8, symmetric: false}, "
        "'re:c\\[0\\]': {scale: 0.25, zero_point: 7}}"
    )
    assert read.tensors == _recipe(written).tensors
    assert read.activation_settings.fixed("c[0]") == ActivationCodes("uint8", np.float32(0.25), 7)
    assert Recipe.from_text(read.to_yaml(), "again", "r") == read  # the file's content, not its place


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ([], "expected a mapping from names to lists"),
        ({"a": {}}, "a: expected a list with a mapping"),
        ({"a": [{"axis": 0}]}, "a: axis is not supported: a scale for each channel is for weights"),
        ({"a": [{"scale": 1.0}, {"scale": 2.0}]}, "a: 2 entries: a scale for each channel"),
        ({"a": [{"reduce_range": True}]}, "a: reduce_range is not supported"),
        ({"a": [{"convert": {"quant_type": "QInt8"}}]}, "a: convert is not supported: a tensor has one type"),
        (
            {"a": [{"quant_type": "QInt4"}]},
            "a: quant_type 'QInt4' is not supported for activations; did you mean 'QInt8'",
        ),
        ({"a": [{"rmin": 0.0}]}, "a: rmin and rmax go together"),
        ({"a": [{"zero_pint": 0}]}, "a: unknown key 'zero_pint'; did you mean 'zero_point'"),
        (
            {"a": [{"scale": 1.0, "zero_point": 0, "symmetric": True}]},
            "say the range already; drop symmetric",
        ),
    ],
)
def test_overrides_that_are_not_supported_are_named(tmp_path: Path, body: object, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Recipe.load("w8a8-static").with_settings([f"tensors={_file(tmp_path, body)}"])


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="none.json: cannot be read"):
        Recipe.load("w8a8-static").with_settings([f"tensors={tmp_path / 'none.json'}"])
    path = tmp_path / "broken.json"
    path.write_text("{")
    with pytest.raises(RecipeError, match="not JSON"):
        Recipe.load("w8a8-static").with_settings([f"tensors={path}"])
