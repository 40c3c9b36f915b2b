"""compile() with columns in floats beside integer products: both targets, what is shared, what is said, and what goes on after a stop."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from qcompiler.api import CompiledModel, Options, compile
from qcompiler.errors import RecipeError
from qcompiler.quant.activations import rounded_rows
from qcompiler.report.inspect_model import inspect
from qcompiler.runtime import create_session
from tests.small_models import Array, make_model, op_types, relative_error, run, save_model, weight
from tests.stopped_compile import assert_goes_on_with_the_same_bytes, decoder_and_data

K, N = 64, 48
OUTLIERS = (5, 40)
LARGE = 50.0
TWO = "g (float[M,64] x) => (float[M,48] y, float[M,48] z) { a = Identity(x) y_ = MatMul(a, w) y = Relu(y_) z_ = MatMul(a, v) z = Relu(z_) }"
# Integer products sum exactly; what is left is the rounding of scales and of the last sums, in another order.
SAME = 1e-5


def _x(seed: int = 0) -> Array:
    x = np.random.default_rng(seed).uniform(-1, 1, (9, K)).astype(np.float32)
    x[:, list(OUTLIERS)] *= LARGE
    return x


def _model() -> onnx.ModelProto:
    return make_model(TWO, {"w": weight(K, N), "v": weight(K, N, seed=1)})


def _compile(folder: Path, *settings: str, name: str = "out", target: str = "ort") -> CompiledModel:
    path = save_model(_model(), folder)
    return compile(
        path,
        "w8a8-llmint8",
        settings=settings,
        calibration=[{"x": _x()}],
        output=folder / name,
        target=target,
        options=Options(verify_each=True),
    )


def _expected(x: Array, w: Array) -> Array:
    """Equation 8 with both sides rounded as they are stored; the codes of 8 bits by output reach 127."""
    kept = list(OUTLIERS)
    x_rest, w_rest = x.copy(), w.astype(np.float64).T
    x_rest[:, kept], w_rest[:, kept] = 0, 0
    low, high = w_rest.min(axis=1, keepdims=True), w_rest.max(axis=1, keepdims=True)
    scale = np.maximum(-low / 128, high / 127)
    integers = rounded_rows(x_rest) @ (np.rint(w_rest / scale) * scale).T
    return np.maximum(integers + x[:, kept] @ w[kept], 0)


@pytest.mark.parametrize("target", ["ort", "qcompiler"])
def test_the_product_is_that_of_the_paper(target: str, tmp_path: Path) -> None:
    made = _compile(tmp_path, "head=float", target=target)
    session = create_session(made.path)
    x = _x(1)
    y, z = session.run(None, {"x": x})
    for found, w in ((y, weight(K, N)), (z, weight(K, N, seed=1))):
        assert relative_error(_expected(x, w), found) <= SAME


@pytest.mark.parametrize("target", ["ort", "qcompiler"])
def test_products_of_one_input_share_mask_rows_and_channels(target: str, tmp_path: Path) -> None:
    made = _compile(tmp_path, "head=float", target=target)
    ops = op_types(ir.load(made.path))
    assert ops.count("Gather") == 1 and ops.count("MatMul") == 2
    if target == "ort":
        assert (ops.count("QuantizeLinear"), ops.count("MatMulIntegerToFloat"), ops.count("Mul")) == (1, 2, 4)
    else:
        assert (ops.count("DynamicQuantMatMul"), ops.count("Mul")) == (2, 1)


@pytest.mark.parametrize("target", ["ort", "qcompiler"])
def test_the_report_and_inspect_say_how_many(target: str, tmp_path: Path) -> None:
    made = _compile(tmp_path, "head=float", target=target)
    assert [layer.beside for layer in made.report.layers] == ["2 outlier columns"] * 2
    found = inspect(made.path)
    assert [(product.bits, product.beside) for product in found.products] == [(8, "2 outlier columns")] * 2


def test_outliers_in_other_channels_do_not_break_it(tmp_path: Path) -> None:
    """What calibration did not see costs accuracy, as without the columns, and nothing else."""
    made = _compile(tmp_path, "head=float")
    x = _x(1)
    x[:, 11] *= LARGE
    exact = np.maximum(x @ weight(K, N), 0)
    assert (
        relative_error(exact, run(made.path, {"x": x})["y"]) <= 0.05
    )  # a step of a row: 50 / 127, its uniform error over 1


def test_without_outliers_nothing_is_added(tmp_path: Path) -> None:
    made = _compile(tmp_path, "head=float", "algorithm={name: llmint8, threshold: 1000}")
    ops = op_types(ir.load(made.path))
    assert "Gather" not in ops and "MatMul" not in ops
    assert [layer.beside for layer in made.report.layers] == ["", ""]


def test_levels_with_one_scale_for_all_rows(tmp_path: Path) -> None:
    """The channels are kept out of those scales too."""
    x = _x(1)
    exact = np.maximum(x @ weight(K, N), 0)
    for level in ("o2", "o3"):
        made = _compile(tmp_path, "head=float", f"level={level}", name=level)
        assert (
            relative_error(exact, run(made.path, {"x": x})["y"]) <= 0.01
        )  # 8 bits of both sides, over 64 channels


def test_float_activations_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="llmint8 .* activations: none rounds none"):
        _compile(tmp_path, "activations=none")


@pytest.mark.parametrize("at", [1, 3])
def test_a_stopped_compile_goes_on_with_the_same_bytes(
    at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, data = decoder_and_data(tmp_path)
    settings = ("algorithm={name: llmint8, threshold: 1.5}",)

    def compile_to(name: str, options: Options) -> CompiledModel:
        made = compile(
            path, "w8a8-llmint8", settings=settings, calibration=data, output=tmp_path / name, options=options
        )
        assert any(layer.beside for layer in made.report.layers)
        return made

    assert_goes_on_with_the_same_bytes(compile_to, at, monkeypatch)
