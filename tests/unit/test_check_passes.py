"""What passes would refuse once there are data is refused before any is read, by --dry-run too."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import qcompiler
from qcompiler.api import dry_run
from qcompiler.errors import CalibrationError, QCompilerError, RecipeError, ResourceError, SchemeError
from qcompiler.recipe import Recipe
from tests.small_models import Feed, make_model, save_model, weight

WEIGHTS = {"u": weight(32, 64), "v": weight(64, 32, seed=1), "w": weight(32, 16, seed=2)}
# Softplus: the model ends in no head.
TEXT = "g (float[M,32] x) => (float[M,16] y) { a = MatMul(x, u) b = OPERATOR(a) c = MatMul(b, v) d = Add(x, c) z = MatMul(d, w) y = END(z) }"
FISHER = Recipe.from_text("mixed: {budget: 5bpw, sensitivity: fisher}", "r", "r")
AUTOROUND = Recipe.from_text("algorithm: [mse, {name: autoround, steps: 2}]", "r", "r")


class _UnreadError(Exception):
    """Data were asked for."""


def _unread() -> Iterator[Feed]:
    raise _UnreadError
    yield {}


def _refused(
    kind: type[QCompilerError], recipe: Recipe, folder: Path, operator: str = "Tanh", end: str = "Softplus"
) -> str:
    """What a compile and a dry run say alike, without data."""
    model = save_model(make_model(TEXT.replace("OPERATOR", operator).replace("END", end), WEIGHTS), folder)
    with pytest.raises(kind) as refused:
        qcompiler.compile(model, recipe, calibration=_unread(), output=folder / "out")
    with pytest.raises(kind) as told:
        dry_run(model, recipe, output=folder / "out")
    assert str(told.value) == str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize(
    ("recipe", "remedy"), [(FISHER, "set mixed.sensitivity: output"), (AUTOROUND, "without autoround")]
)
def test_an_operator_without_a_gradient(recipe: Recipe, remedy: str, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    said = _refused(CalibrationError, recipe, tmp_path, operator="Hardmax")
    assert "the operator Hardmax" in said and remedy in said


@pytest.mark.parametrize("recipe", [FISHER, AUTOROUND])
def test_torch_that_is_missing(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "need torch; pip install torch" in _refused(ResourceError, recipe, tmp_path)


@pytest.mark.parametrize("recipe", [FISHER, AUTOROUND, Recipe.from_text("mixed: {max_kl: 0.1}", "r", "r")])
def test_what_can_be_done_goes_on_to_the_data(recipe: Recipe, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    text = TEXT.replace("OPERATOR", "Tanh").replace("END", "Identity")
    model = save_model(make_model(text, WEIGHTS), tmp_path)
    with pytest.raises(_UnreadError):
        qcompiler.compile(model, recipe, calibration=_unread(), output=tmp_path / "out")
    dry_run(model, recipe, output=tmp_path / "out")


def test_a_bound_on_the_kl_of_a_model_without_a_head(tmp_path: Path) -> None:
    recipe = Recipe.from_text("mixed: {max_kl: 0.1}", "r", "r")
    said = _refused(RecipeError, recipe, tmp_path)
    assert (
        said.startswith("mixed.max_kl: 0.1 bounds a KL divergence") and "relative error is measured" in said
    )
    assert said.endswith("give a budget (4.5bpw, 90MB) and leave max_kl out")


def test_nothing_to_give_bits_to(tmp_path: Path) -> None:
    recipe = Recipe.from_text("mixed: {budget: 5bpw}\nrules: [{match: '*', bits: 4}]", "r", "r")
    assert "rules decide all" in _refused(CalibrationError, recipe, tmp_path)


def test_weights_of_a_segment_with_other_options(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    rule = "{match: v, algorithm: [mse, {name: autoround, steps: 3}]}"
    recipe = Recipe.from_text(f"algorithm: [mse, {{name: autoround, steps: 2}}]\nrules: [{rule}]", "r", "r")
    assert "is tuned together with" in _refused(SchemeError, recipe, tmp_path)
