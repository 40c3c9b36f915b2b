"""Models that compute the same however they are run, and models that do not."""

import math
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest

import qcompiler
from qcompiler.errors import InputError
from qcompiler.report.check_model import check
from qcompiler.report.evaluate import EvaluationData
from qcompiler.report.parting import Parting
from qcompiler.report.session_variant import LEVELS
from tests import command_models as models
from tests.float_between_integers import float_between_integers
from tests.small_models import make_model, save_model, weight

DATA = EvaluationData()


def test_a_float_model_holds(tmp_path: Path) -> None:
    found = check(models.mlp(tmp_path), DATA)
    assert found.holds and found.reference == "disabled, 1 thread, CPU"
    assert {variant.level for variant in found.variants} == set(LEVELS) - {"disabled"}
    for variant in found.variants:
        (output,) = variant.outputs
        assert output.sqnr_db > 120 and output.top1_agreement == 1.0 and not output.not_numbers
        assert variant.parting is None and not variant.error


def test_a_convolution_that_onnx_runtime_rounds_by_itself_is_named(tmp_path: Path) -> None:
    path = float_between_integers(tmp_path)
    assert check(path, DATA).holds  # 34 dB
    found = check(path, DATA, bound_db=40)
    assert not found.holds and all(not variant.holds for variant in found.variants)
    for variant in found.variants:
        assert isinstance(variant.parting, Parting)
        first = variant.parting.first
        assert (first.node, first.op, first.value) == ("node_c2", "Conv", "c2")
        assert first.before_db == math.inf and 30 < first.sqnr_db < 40
        assert variant.parting.steepest == first


def test_a_level_that_refuses_the_model(tmp_path: Path) -> None:
    """8-bit floats: ONNX Runtime's fusions make an integer product of one, and then find no kernel for it."""
    text = """g (float[M,32] x) => (float[M,16] y) {
        q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z)
        w = DequantizeLinear(codes, t, z)
        y = MatMul(d, w)
    }"""
    float8 = ml_dtypes.float8_e4m3fn
    codes, zero = weight(32, 16, scale=20.0).astype(float8), np.zeros((), float8)
    model = make_model(text, {"s": np.float32(0.02), "t": np.float32(0.01), "codes": codes, "z": zero})
    found = check(save_model(model, tmp_path), DATA)
    failing = [variant for variant in found.variants if variant.error]
    assert not found.holds and failing and all(variant.level != "basic" for variant in failing)
    assert "\n" not in failing[0].error and "onnxruntime_src" not in failing[0].error


def test_a_model_that_nothing_loads(tmp_path: Path) -> None:
    path = save_model(make_model("g (float[M,4] x) => (float[M,4] y) { y = Relu(x) }"), tmp_path)
    model = onnx.load(path)
    model.graph.node[0].op_type, model.graph.node[0].domain = "NoSuchOperator", "nobody.knows"
    model.opset_import.append(onnx.helper.make_opsetid("nobody.knows", 1))
    onnx.save(model, path)
    with pytest.raises(InputError, match=r"cannot run it in any way: .*NoSuchOperator"):
        check(path, DATA)


def test_numbers_that_are_none_are_told_of_the_reference(tmp_path: Path) -> None:
    path = save_model(make_model("g (float[M,4] x) => (float[M,4] y) { y = Sqrt(x) }"), tmp_path)
    found = check(path, DATA)
    assert found.holds and found.not_numbers["y"] > 0  # every way to run has them
    assert "NaN or infinite" in found.notes[0]


def test_an_output_without_any_number_breaks_parity(tmp_path: Path) -> None:
    found = check(models.mlp(tmp_path, spoil=np.nan), DATA)
    assert not found.holds and not found.variants[0].outputs[0].compared
    assert "in the reference already" in found.notes[0] and "qcompile trace" in found.notes[0]
    assert found.variants[0].parting is None  # every way to run gives the same


def test_nodes_without_a_kernel_at_a_provider(tmp_path: Path) -> None:
    """Azure's provider is part of ONNX Runtime's wheels, and has kernels for none of ONNX's operators."""
    found = check(models.mlp(tmp_path), DATA, ["AzureExecutionProvider"])
    (azure,) = [variant for variant in found.variants if variant.provider == "AzureExecutionProvider"]
    assert azure.holds and sum(azure.elsewhere.values()) == 3
    with pytest.raises(InputError, match="NoSuchProvider"):
        check(models.mlp(tmp_path), DATA, ["NoSuchProvider"])


def test_our_operators_are_compared_with_their_bodies(tmp_path: Path) -> None:
    made = qcompiler.compile(models.mlp(tmp_path), "w4a16-rtn", output=tmp_path / "out", target="qcompiler")
    found = check(made.path, DATA)
    assert [variant.label for variant in found.variants][-1] == "all, 1 thread, CPU, without our library"
    assert found.holds


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_provider_that_is_offered_but_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a build for CUDA on a machine without: left out of all there are, an error where it was asked for."""
    path = models.mlp(tmp_path)
    offered = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: offered)
    found = check(path, DATA)
    assert found.holds and {variant.provider for variant in found.variants} == {"CPUExecutionProvider"}
    assert found.notes == [
        "CUDAExecutionProvider: offered by ONNX Runtime, but it does not start here; left out"
    ]
    with pytest.raises(InputError, match="it does not start here"):
        check(path, DATA, ["CUDAExecutionProvider"])


def test_no_rows_and_no_tensors(tmp_path: Path) -> None:
    empty = make_model("g (float[0,8] x) => (float[0,4] y) { y = MatMul(x, w) }", {"w": weight(8, 4)})
    found = check(save_model(empty, tmp_path), DATA)
    assert found.holds and all(variant.outputs[0].top1_agreement is None for variant in found.variants)
    pair = "g (float[M,8] x) => (float[M,4] y, seq(float) s) { y = MatMul(x, w) s = SequenceConstruct(y, y) }"
    found = check(save_model(make_model(pair, {"w": weight(8, 4)}), tmp_path), DATA)
    assert found.holds and all([output.name for output in v.outputs] == ["y"] for v in found.variants)
    assert found.notes == ["output s is no tensor; it was not compared"]
    alone = "g (float[M,8] x) => (seq(float) s) { y = MatMul(x, w) s = SequenceConstruct(y, y) }"
    with pytest.raises(InputError, match="none of its outputs is a tensor"):
        check(save_model(make_model(alone, {"w": weight(8, 4)}), tmp_path), DATA)
