"""The node that runs each product, and floats between integers, of models that ONNX Runtime's own tools made."""

from pathlib import Path

import numpy as np
import onnxruntime.quantization as ort_quantization
import pytest
from onnxruntime.quantization import QuantType

import qcompiler
from qcompiler.errors import InputError
from qcompiler.report.inspect_model import Inspection, inspect
from qcompiler.report.inspect_session import inspect_session
from qcompiler.report.session_lines import session_lines
from tests import command_models as models
from tests.small_models import make_model, save_model, weight


class _OneFeed(ort_quantization.CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, **arrays: np.ndarray) -> None:  # type: ignore[type-arg]
        self._left = [arrays]

    def get_next(self) -> dict[str, np.ndarray] | None:  # type: ignore[type-arg]
        return self._left.pop() if self._left else None


def _static(source: Path, **options: object) -> Inspection:
    out = source.with_name("static.onnx")
    x = np.random.default_rng(0).standard_normal((2, 64), np.float32)
    ort_quantization.quantize_static(source, out, _OneFeed(x=x), **options)
    return inspect_session(inspect(out))


def _kernels(found: Inspection) -> list[list[str]]:
    return [product.running.kernels for product in found.products if product.running is not None]


def test_integers_throughout(tmp_path: Path) -> None:
    found = _static(models.mlp(tmp_path))
    assert _kernels(found) == [["QLinearMatMul"], ["QLinearMatMul"]]
    running = [product.running for product in found.products if product.running is not None]
    assert all(each.providers == ["CPUExecutionProvider"] and not each.island for each in running)
    assert sum(each.share for each in running) <= 1 and all(each.microseconds > 0 for each in running)
    assert found.session is not None and not found.session.islands


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"activation_type": QuantType.QUInt16}, "no integer kernel takes uint16 activations"),
        ({"weight_type": QuantType.QInt4}, "no kernel takes weights below 8 bits with rounded activations"),
    ],
)
def test_a_quantized_weight_that_is_unpacked_in_every_run(
    tmp_path: Path, options: dict[str, object], reason: str
) -> None:
    found = _static(models.mlp(tmp_path), **options)
    assert _kernels(found) == [["MatMul"], ["MatMul"]]
    for product in found.products:
        assert product.running is not None
        assert (
            product.running.island
            == f"MatMul multiplies floats: the weight is unpacked in every run ({reason})"
        )


def test_floats_between_integers(tmp_path: Path) -> None:
    """No integer kernel takes Tanh; Relu in its place is part of the rounding."""
    text = "g (float[M,64] x) => (float[M,64] y) {{ a = MatMul(x, fc1) b = {op}(a) y = MatMul(b, fc2) }}"
    weights = {"fc1": weight(64, 96), "fc2": weight(96, 64, seed=1)}
    islands = {}
    for op in ("Tanh", "Relu"):
        folder = tmp_path / op
        folder.mkdir()
        source = save_model(make_model(text.format(op=op), weights), folder)
        # Tanh's result is rounded since fc2 reads it, and its input since fc1 yields it.
        found = _static(source)
        assert _kernels(found) == [["QLinearMatMul"], ["QLinearMatMul"]]
        assert found.session is not None
        islands[op] = [(island.ops, island.reason) for island in found.session.islands]
        lines = [line for line in session_lines(found.session) if "Tanh between integers" in line]
        assert len(lines) == len(islands[op])
    assert islands == {"Tanh": [(["Tanh"], "no integer kernel takes Tanh")], "Relu": []}


def test_a_tied_weight_that_runs_twice(tmp_path: Path) -> None:
    made = qcompiler.compile(models.decoder(tmp_path), "w4a16-rtn", output=tmp_path / "out")
    assert _kernels(inspect_session(inspect(made.path)))[:2] == [
        ["GatherBlockQuantized", "MatMulNBits (level 4)"],
        ["MatMulNBits (level 4)"],
    ]


def test_weights_that_are_unpacked_at_load(tmp_path: Path) -> None:
    """The head's codes lie behind a Transpose: ONNX Runtime folds the two into a float constant."""
    out = tmp_path / "dynamic.onnx"
    ort_quantization.quantize_dynamic(models.decoder(tmp_path), out)
    table = inspect_session(inspect(out)).products[0].running
    assert table is not None and table.kernels == ["Gather", "MatMul"]
    assert "unpacked when the session was created" in table.island


def test_a_convolution_whose_name_and_weight_are_gone(tmp_path: Path) -> None:
    """ONNX Runtime lays channels out in blocks, weights too, and names the node for what it yields."""
    text = "g (float[1,16,8,8] x) => (float[1,16,8,8] y) { c = Conv<pads=[1,1,1,1]>(x, k) y = Relu(c) }"
    found = inspect_session(inspect(save_model(make_model(text, {"k": weight(16, 16, 3, 3)}), tmp_path)))
    assert found.products[0].running is not None
    (kernel,) = found.products[0].running.kernels
    assert "Conv" in kernel


def test_a_provider_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="NoSuchProvider: this ONNX Runtime does not offer it"):
        inspect_session(inspect(models.mlp(tmp_path)), ["NoSuchProvider"])


def test_inputs_of_the_user(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.ones((7, 64), np.float32))
    found = inspect_session(inspect(models.mlp(tmp_path)), data=str(tmp_path / "x.npz"))
    assert found.session is not None and found.session.inputs == {"x": [7, 64]}
