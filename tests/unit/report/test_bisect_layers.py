"""The first layer where two models part."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from qcompiler.api import compile
from qcompiler.errors import InputError
from qcompiler.recipe import Recipe
from qcompiler.recipe.rules import Match, Rule
from qcompiler.report.bisect_layers import Bound, bisect_layers
from qcompiler.report.evaluate import EvaluationData
from tests import command_models as models
from tests.quantized_by_ort import float_model, images, quantized
from tests.small_models import make_model, save_model

QUICK = EvaluationData(windows=2, length=24)


def spoilt(path: Path, weight: str, noise: float = 1.0) -> Path:
    """The same with one weight changed by noise of so much of its own size."""
    model = onnx.load(path)
    (tensor,) = (t for t in model.graph.initializer if t.name == weight)
    array = onnx.numpy_helper.to_array(tensor)
    wrong = np.random.default_rng(0).standard_normal(array.shape).astype(np.float32) * array.std() * noise
    tensor.CopyFrom(onnx.numpy_helper.from_array(array + wrong, weight))
    onnx.save(model, path.with_name("spoilt.onnx"))
    return path.with_name("spoilt.onnx")


@pytest.mark.parametrize(
    ("weight", "value"), [("wv0", "v0"), ("wo1", "o1"), ("wd2", "d2"), ("head", "logits")]
)
def test_a_spoilt_weight_is_found(weight: str, value: str, tmp_path: Path) -> None:
    path = models.deep_decoder(tmp_path)
    found = bisect_layers(path, spoilt(path, weight), Bound(), QUICK)
    assert found.first is not None and found.first.sharp
    assert found.first.layer.name == value and found.first.layer.layers == (weight,)
    assert found.noisiest[0].layer.name == value
    assert found.first.input_sqnr_db == np.inf  # all that it reads is the same


def test_one_coarse_layer_of_a_recipe_is_found(tmp_path: Path) -> None:
    path = models.deep_decoder(tmp_path)
    coarse = Rule(Match(name="wo1"), bits=2, group_size=64)
    recipe = Recipe(name="bad", bits=8, rules=(coarse,))
    made = compile(path, recipe, output=tmp_path / "out").path
    found = bisect_layers(path, made, Bound(), QUICK)
    assert found.first is not None and found.first.layer.layers == ("wo1",) and found.first.sharp
    assert found.noisiest[0].layer.layers == ("wo1",)


def test_alike_models_do_not_part(tmp_path: Path) -> None:
    source, made = quantized(tmp_path, "QDQ")
    np.savez(tmp_path / "data.npz", **images(1, seed=9)[0])
    data = EvaluationData(data=str(tmp_path / "data.npz"))
    assert bisect_layers(source, made, Bound(min_sqnr=20), data).first is None
    strict = bisect_layers(source, made, Bound(min_sqnr=60), data).first  # 8 bits leave 38 dB
    assert strict is not None and strict.layer.name == "r" and strict.input_sqnr_db == np.inf


def test_largest_error_as_the_bound(tmp_path: Path) -> None:
    path = models.deep_decoder(tmp_path)
    other = spoilt(path, "wo1", noise=0.01)
    found = bisect_layers(path, other, Bound(max_error=1e-6), QUICK)
    assert found.first is not None and found.first.layer.name == "o1"
    assert bisect_layers(path, other, Bound(max_error=1e6), QUICK).first is None


def test_models_without_a_product_in_common(tmp_path: Path) -> None:
    other = make_model("g (float[B,3,12,12] x) => (float[B,3,12,12] z) { z = Neg(x) }")
    with pytest.raises(InputError, match="no product in common"):
        bisect_layers(save_model(float_model(), tmp_path), save_model(other, tmp_path, "o.onnx"), Bound())
