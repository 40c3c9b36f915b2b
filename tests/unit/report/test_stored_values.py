"""What is read of a quantized weight is what its product multiplies by, whatever its format."""

from pathlib import Path

import numpy as np
import onnxruntime.quantization as ort_quantization
import pytest

import qcompiler
from qcompiler.errors import InputError
from qcompiler.graph import model_file
from qcompiler.graph.census import take_census
from qcompiler.passes.normalize import Normalize
from qcompiler.quant.similarity import Similarity
from qcompiler.report import stored_values as stored_module
from qcompiler.report import stored_values as stored_values_module
from qcompiler.report.quantized_products import read_products
from qcompiler.report.stored_values import MOST_NUMBERS, sampled, stored_values
from qcompiler.report.weight_histograms import BINS, HistogramPair, histogram_pair, weight_histogram
from tests import command_models as models
from tests.compiled_models import BODIES
from tests.small_models import make_model, save_model, weight


def _sqnr_of_each(source: Path, made: Path) -> dict[str, float]:
    reference, model = (model_file.load(path) for path in (source, made))
    Normalize()(reference)
    Normalize()(model)
    floats = {weight.name: weight for weight in take_census(reference).weights}
    found = {}
    for product in read_products(model):
        stored = stored_values(model, product)
        similarity = Similarity()
        similarity.add(floats[product.name].array()[np.ix_(stored.rows, stored.channels)], stored.values)
        found[product.name] = similarity.sqnr_db
    return found


# Of random normal weights: an 8-bit code leaves about 40 dB and more, a 4-bit one of a group of 32 about 20.
@pytest.mark.parametrize(
    ("recipe", "settings", "least"),
    [
        ("w4a16-rtn", ["group_size=32"], 17),
        ("w8a16-rtn", [], 38),
        ("w4a16-nf4", [], 17),
        ("w4a16-kquant", [], 17),
        ("w8a8-dynamic", [], 38),
    ],
)
@pytest.mark.parametrize("target", ["ort", "qcompiler"])
def test_every_format_reads_as_the_float_weight_but_for_its_rounding(
    tmp_path: Path, recipe: str, settings: list[str], least: float, target: str
) -> None:
    source = models.decoder(tmp_path)
    made = qcompiler.compile(source, recipe, settings=settings, target=target, output=tmp_path / "out")
    found = _sqnr_of_each(source, made.path)
    assert found.keys() >= {"table", "fc1", "fc2"}
    assert all(sqnr > least for sqnr in found.values()), found


def test_dynamically_quantized_by_onnx_runtime(tmp_path: Path) -> None:
    source, made = models.decoder(tmp_path), tmp_path / "dynamic.onnx"
    ort_quantization.quantize_dynamic(source, made, extra_options={"MatMulConstBOnly": True})
    model = model_file.load(made)
    Normalize()(model)
    weights = {weight.name: weight for weight in read_products(model)}
    with pytest.raises(InputError, match="scales are in nodes behind it"):
        stored_values(model, next(w for w in weights.values() if w.nodes[0].op_type == "MatMulInteger"))


@pytest.mark.parametrize("recipe", ["w4a16-rtn", "w8a8-dynamic", "w4a16-nf4"])
def test_the_channels_that_are_asked_for(tmp_path: Path, recipe: str) -> None:
    made = qcompiler.compile(models.decoder(tmp_path), recipe, output=tmp_path / "out")
    model = model_file.load(made.path)
    Normalize()(model)
    product = next(each for each in read_products(model) if each.name == "fc1")
    channels = np.array([1, 5, 6])
    asked = stored_values(model, product, channels)
    assert asked.channels.tolist() == [1, 5, 6]
    np.testing.assert_allclose(asked.values, stored_values(model, product).values[:, channels], atol=1e-6)


def test_of_a_large_weight_some_channels_are_read() -> None:
    matrix = np.arange(4 * MOST_NUMBERS, dtype=np.float32).reshape(MOST_NUMBERS // 2, 8)
    found = sampled(matrix)
    assert found.channels.tolist() == [0, 4] and np.array_equal(found.values, matrix[:, [0, 4]])


def test_histograms_share_bins_and_count_every_number(tmp_path: Path) -> None:
    source = models.decoder(tmp_path)
    made = qcompiler.compile(source, "w4a16-rtn", settings=["group_size=32"], output=tmp_path / "out")
    reference, model = (model_file.load(path) for path in (source, made.path))
    Normalize()(reference)
    Normalize()(model)
    floats = {weight.name: weight for weight in take_census(reference).weights}
    weight = next(weight for weight in read_products(model) if weight.name == "fc1")
    found = weight_histogram(model, weight, floats)
    assert isinstance(found, HistogramPair) and len(found.edges) == BINS + 1
    assert sum(found.before) == sum(found.after) == weight.size
    nameless = weight_histogram(model, weight, {})
    assert (
        isinstance(nameless, HistogramPair) and nameless.before == [] and sum(nameless.after) == weight.size
    )


def test_products_inside_branches(tmp_path: Path) -> None:
    weights = {"w": weight(64, 64), "v": weight(64, 64, seed=1)}
    source = save_model(make_model(BODIES["if"], weights), tmp_path)
    made = qcompiler.compile(source, "w8a16-rtn", output=tmp_path / "out")
    model = model_file.load(made.path)
    Normalize()(model)
    found = read_products(model)
    assert [product.name for product in found] == ["w", "v"]
    for product in found:
        original = weights[product.name].T
        # w is read in the main graph and in a branch, v in a branch alone.
        assert np.abs(stored_values(model, product).values - original).max() <= np.abs(original).max() / 127


def test_numbers_that_are_not_finite_are_counted_and_not_drawn() -> None:
    before = np.array([[0.5, np.nan], [np.inf, -1.0]], np.float32)
    found = histogram_pair("w", before, np.full((2, 2), np.nan, np.float32))
    assert np.isfinite(found.edges).all() and (sum(found.before), sum(found.after)) == (2, 0)
    assert found.note == "6 NaN or infinite numbers are not drawn"


@pytest.mark.parametrize("product", ["MatMul(x, w)", "Gemm(x, w)", "Gemm<transB = 1>(x, w)"])
def test_of_a_large_weight_of_codes_no_more_is_made_floats_than_is_read(
    product: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turned = "trans" not in product
    codes = np.random.default_rng(0).integers(-128, 128, (8, 32)).astype(np.int8)
    scale, zero = weight(8, seed=1) ** 2 + 0.01, np.arange(8, dtype=np.int8)
    text = f"""g (float[M,32] x) => (float[M,8] y) {{
        w = DequantizeLinear<axis = {int(turned)}>(codes, s, z) y = {product} }}"""
    arrays = {"codes": codes.T if turned else codes, "s": scale.astype(np.float32), "z": zero}
    model = model_file.load(save_model(make_model(text, arrays), tmp_path))
    Normalize()(model)
    (stored,) = read_products(model)
    made: list[int] = []
    real = stored_values_module.dequantize_rows
    monkeypatch.setattr(stored_values_module, "MOST_NUMBERS", 64)
    monkeypatch.setattr(
        stored_values_module, "dequantize_rows", lambda c, *rest: made.append(c.size) or real(c, *rest)
    )
    found = stored_values(model, stored)
    assert made == [64] and found.channels.tolist() == [0, 4, 8, 12, 16, 20, 24, 28]
    wanted = (codes.astype(np.float32) - zero[:, None]) * arrays["s"][:, None]
    np.testing.assert_array_equal(found.values, wanted[:, ::4])


@pytest.mark.parametrize("target", ["ort", "qcompiler"])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("symmetric", ["true", "false"])
def test_packed_codes_read_as_the_kernel_computes_with_them(
    tmp_path: Path, bits: int, target: str, symmetric: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [f"bits={bits}", f"symmetric={symmetric}", "group_size=32"]
    made = qcompiler.compile(
        models.mlp(tmp_path), "w4a16-rtn", settings=settings, target=target, output=tmp_path / "out"
    )
    model = model_file.load(made.path)
    Normalize()(model)
    found = [each for each in read_products(model) if not each.nodes[0].op_type.endswith("Relu")]
    assert found
    for each in found:
        unpacked = stored_values(model, each)
        monkeypatch.setattr(stored_module, "_is_codes_alone", lambda weight: False)
        ran = stored_values(model, each)
        monkeypatch.undo()
        # Kernels round a row of the unit matrix to 8 bits, of which 1 is 127 times 1/127.
        np.testing.assert_allclose(unpacked.values, ran.values, atol=1e-6 * np.abs(ran.values).max())


def test_a_weight_inside_an_activation_is_read(tmp_path: Path) -> None:
    made = qcompiler.compile(models.mlp(tmp_path), "w4a16-rtn", target="qcompiler", output=tmp_path / "out")
    model = model_file.load(made.path)
    Normalize()(model)
    inside = [weight for weight in read_products(model) if weight.nodes[0].op_type.endswith("Relu")]
    assert inside and all(stored_values(model, weight).values.size == weight.size for weight in inside)
