"""compile(target="qcompiler"): products run on our kernels, and on ONNX Runtime's where our library is not."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from qcompiler import runtime
from qcompiler.api import CompiledModel, dry_run
from qcompiler.errors import ResourceError
from qcompiler.graph.operator_body import OUR_DOMAIN
from qcompiler.report.inspect_model import inspect
from qcompiler.runtime import create_session
from tests.compiled_models import EIGHT_BIT, Compile, loaded_model, normal, tied_decoder, two_layers
from tests.small_models import Array, make_model, relative_error, run, save_model, weight

TWO_LAYERS = {"ai.qcompiler::MatMulNBitsRelu": 1, "ai.qcompiler::MatMulNBits": 1}


def _outputs(compiled: CompiledModel, feeds: dict[str, Array]) -> tuple[list[Array], list[Array]]:
    """With our library, and without."""
    stock = ort.InferenceSession(str(compiled.path), providers=["CPUExecutionProvider"])
    return create_session(compiled.path).run(None, feeds), stock.run(None, feeds)


def _check(compiled: CompiledModel, model: onnx.ModelProto, feeds: dict[str, Array]) -> None:
    for found in _outputs(compiled, feeds):
        for expected, value in zip(run(model, feeds).values(), found, strict=True):
            assert relative_error(expected, value) < EIGHT_BIT


@pytest.mark.parametrize("settings", [[], ["symmetric=false"], ["group_size=16"], ["group_size=channel"]])
def test_products_run_on_our_kernels(settings: list[str], quantize: Compile) -> None:
    compiled = quantize(two_layers(), target="qcompiler", settings=settings)
    assert compiled.report.running == TWO_LAYERS
    _check(compiled, two_layers(), {"x": normal(5, 64)})


@pytest.mark.parametrize(
    "settings", [[], ["symmetric=false"], ["group_size=16"], ["group_size=channel"], ["group_size=256"]]
)
def test_three_bits_are_stored_in_three(settings: list[str], quantize: Compile) -> None:
    model, asked = two_layers(), ["bits=3", "head.bits=3", *settings]
    ours, stock = (quantize(model, target=target, settings=asked) for target in ("qcompiler", "ort"))
    assert ours.report.running == {"ai.qcompiler::MatMul3BitsRelu": 1, "ai.qcompiler::MatMul3Bits": 1}
    feeds = {"x": normal(5, 64)}
    (four,) = run(loaded_model(stock), feeds).values()  # the same weights
    for (found,) in _outputs(ours, feeds):
        assert relative_error(four, found) < EIGHT_BIT
    short, held = ([p.bytes for p in inspect(c.path).products] for c in (ours, stock))
    assert all(a < b for a, b in zip(short, held, strict=True))
    assert {(p.bits, p.dtype) for p in inspect(ours.path).products} == {(3, "uint3")}
    assert sum(layer.stored_bytes for layer in ours.report.layers) == sum(short)


def test_a_tied_weight_is_stored_once(quantize: Compile) -> None:
    compiled = quantize(tied_decoder(), target="qcompiler")
    # The head, and a product with its residual.
    products = {"ai.qcompiler::MatMulNBits": 1, "ai.qcompiler::MatMulNBitsAdd": 1}
    assert compiled.report.running == {"ai.qcompiler::GatherNBits": 1, **products}
    _check(compiled, tied_decoder(), {"input_ids": np.array([[1, 7, 79]])})
    stored = [t for t in loaded_model(compiled).graph.initializer if np.prod(t.dims) == 80 * 64]
    assert len(stored) == 1


def test_products_on_one_x_are_one_node_and_each_is_reported(quantize: Compile) -> None:
    model = make_model(
        "g (float[M,64] x) => (float[M,32] y) { q = MatMul(x, a) k = MatMul(x, b) v = MatMul(x, c) s = Add(q, k) y = Mul(s, v) }",
        {name: weight(64, 32, seed=index) for index, name in enumerate("abc")},
    )
    ours, stock = (quantize(model, target=target) for target in ("qcompiler", "ort"))
    assert ours.report.running == {"ai.qcompiler::MatMulNBitsTriple": 3}
    _check(ours, model, {"x": normal(5, 64)})
    reported = [
        [replace(p, share=0, op="", nodes=()) for p in inspect(c.path).products] for c in (ours, stock)
    ]
    assert reported[0] == reported[1] and len(reported[0]) == 3


@pytest.mark.parametrize("double_quant", ["false", "true"])
def test_tables_run_on_our_kernels(double_quant: str, quantize: Compile) -> None:
    settings = ["bits=4", "dtype=nf4", "group_size=32", f"double_quant={double_quant}"]
    ours, stock = (
        quantize(two_layers(), target=target, settings=settings) for target in ("qcompiler", "ort")
    )
    assert ours.report.running == {
        "ai.qcompiler::MatMulCodebook": 1,
        "ai.qcompiler::MatMulNBits": 1,
    }  # its head has 8 bits
    x = {"x": normal(5, 64)}
    with_library, without = _outputs(ours, x)
    np.testing.assert_array_equal(without[0], create_session(stock.path).run(None, x)[0])
    assert relative_error(without[0], with_library[0]) < EIGHT_BIT
    reported = [
        [replace(p, share=0, op="", nodes=()) for p in inspect(c.path).products] for c in (ours, stock)
    ]
    assert reported[0] == reported[1] and len(reported[0]) == 2


def test_tables_stay_with_onnx_runtime_for_float_activations_and_the_report_says_so(
    quantize: Compile,
) -> None:
    settings = ["bits=4", "dtype=nf4", "group_size=32", "accuracy_level=0"]
    compiled = quantize(two_layers(), target="qcompiler", settings=settings)
    assert compiled.report.running["MatMulBnb4"] == 1
    assert any(
        "accuracy_level 0" in line and "ONNX Runtime's own kernel" in line
        for line in compiled.report.warnings
    )


def test_two_level_scales_run_on_our_kernels_and_offsets_stay_beside(quantize: Compile) -> None:
    model = make_model(
        "g (float[M,256] x) => (float[M,32] y) { h = MatMul(x, a) y = MatMul(h, b) }",
        {"a": weight(256, 256), "b": weight(256, 32, seed=1)},
    )
    ours, stock = (
        quantize(
            model,
            target=target,
            settings=["bits=4", "algorithm=kquant", "two_level=true", "symmetric=false", "group_size=32"],
        )
        for target in ("qcompiler", "ort")
    )
    assert ours.report.running == {"ai.qcompiler::MatMulNBits": 2}
    for value in _outputs(ours, {"x": normal(5, 256)}):
        assert (
            relative_error(create_session(stock.path).run(None, {"x": normal(5, 256)})[0], value[0])
            < EIGHT_BIT
        )
    reported = [
        [replace(p, share=0, op="", nodes=()) for p in inspect(c.path).products] for c in (ours, stock)
    ]
    assert reported[0] == reported[1] and len(reported[0]) == 2


def test_the_same_weights_are_reported_as_of_the_target_ort(quantize: Compile) -> None:
    ours, stock = (
        inspect(quantize(two_layers(), target=target).path).products for target in ("qcompiler", "ort")
    )
    assert [p.op for p in ours] == ["MatMulNBitsRelu", "MatMulNBits"]
    assert [replace(p, share=0, op="", nodes=()) for p in ours] == [
        replace(p, share=0, op="", nodes=()) for p in stock
    ]


def test_a_weight_that_multiplies_the_same_activations_twice(quantize: Compile) -> None:
    model = make_model(
        "g (float[M,64] x) => (float[M,32] y) { q = MatMul(x, a) k = MatMul(x, a) v = MatMul(x, b) s = Mul(q, k) y = Mul(s, v) }",
        {"a": weight(64, 32), "b": weight(64, 32, seed=1)},
    )
    compiled = quantize(model, target="qcompiler")
    assert sum(compiled.report.running.values()) == 3
    _check(compiled, model, {"x": normal(5, 64)})


def test_bodies_are_not_counted_as_nodes(quantize: Compile) -> None:
    whole, bare = (
        inspect(quantize(two_layers(), target="qcompiler", function_body=bodies).path)
        for bodies in (True, False)
    )
    assert whole.nodes == bare.nodes and whole.operators == bare.operators


@pytest.mark.parametrize(
    "settings", [["accuracy_level=0"], ["accuracy_level=1"], ["accuracy_level=1", "bits=3"]]
)
def test_float_activations_run_on_our_kernels(settings: list[str], quantize: Compile) -> None:
    ours, stock = (
        quantize(two_layers(), target=target, settings=settings) for target in ("qcompiler", "ort")
    )
    assert all(operator.startswith("ai.qcompiler::") for operator in ours.report.running)
    assert not [line for line in ours.report.warnings if "our kernels" in line]
    x = {"x": normal(5, 64)}
    (expected,) = run(loaded_model(stock), x).values()  # the same weights, in float32
    for (found,) in _outputs(ours, x):
        # Two products of 64 numbers, each rounded to float32 in an order of its own: not the 0.007 of 8 bits.
        assert relative_error(expected, found) < 1e-6


def test_half_precision_activations_stay_with_onnx_runtime_and_the_report_says_so(quantize: Compile) -> None:
    compiled = quantize(two_layers(), target="qcompiler", settings=["accuracy_level=2"])
    assert compiled.report.running == {"MatMulNBits": 2}
    (line,) = [line for line in compiled.report.warnings if "our kernels" in line]
    assert "(and 1 more)" in line and "set accuracy_level: 4 or 1" in line


def test_without_the_library_a_compile_is_refused_before_its_work(
    quantize: Compile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "_library_file", lambda: tmp_path / "libqcompiler_ops.so")
    done: list[str] = []
    with pytest.raises(ResourceError, match="libqcompiler_ops.so is missing.*scripts/install"):
        quantize(two_layers(), target="qcompiler", progress=lambda stage, *_: done.append(stage))
    assert not done
    with pytest.raises(ResourceError, match="libqcompiler_ops.so is missing"):
        dry_run(save_model(two_layers(), tmp_path), "w8a16-rtn", target="qcompiler")


def test_a_model_of_an_old_opset(quantize: Compile) -> None:
    model = make_model(
        "g (float[M,64] x) => (float[M,32] y) { y = MatMul(x, w) }", {"w": weight(64, 32)}, opset=13
    )
    compiled = quantize(model, target="qcompiler")
    assert compiled.report.running == {"ai.qcompiler::MatMulNBits": 1}
    assert OUR_DOMAIN in {opset.domain for opset in loaded_model(compiled).opset_import}


def test_without_bodies_a_model_needs_our_library(quantize: Compile) -> None:
    compiled = quantize(two_layers(), target="qcompiler", function_body=False)
    assert compiled.report.running == TWO_LAYERS
    assert not loaded_model(compiled).functions
    feeds = {"x": normal(5, 64)}
    with_body = quantize(two_layers(), target="qcompiler")
    assert with_body.path.stat().st_size > compiled.path.stat().st_size
    (expected,), (found,) = (create_session(made.path).run(None, feeds) for made in (with_body, compiled))
    np.testing.assert_array_equal(expected, found)
    assert inspect(compiled.path).products == inspect(with_body.path).products
    manifests = [json.loads((made.folder / "manifest.json").read_text()) for made in (with_body, compiled)]
    assert [manifest["function_body"] for manifest in manifests] == [True, False]


@pytest.mark.parametrize(
    "settings", [[], ["symmetric=false"], ["bits=3", "head.bits=3"], ["group_size=channel"]]
)
def test_mapped_weights_are_the_same_numbers(settings: list[str], quantize: Compile) -> None:
    compiled = [
        quantize(tied_decoder(), target="qcompiler", settings=settings, mapped_weights=mapped)
        for mapped in (False, True)
    ]
    rows, lines = compiled
    assert rows.report.running == lines.report.running and not loaded_model(lines).functions
    feeds = {"input_ids": np.array([[0, 79, 3, 17, 15, 16]])}
    (expected,), (found,) = (create_session(made.path).run(None, feeds) for made in compiled)
    np.testing.assert_array_equal(expected, found)
    before, after = ([replace(p, bytes=0) for p in inspect(made.path).products] for made in compiled)
    assert before == after
    stored = sum(p.bytes for p in inspect(lines.path).products)
    assert sum(layer.stored_bytes for layer in lines.report.layers) == stored
    manifests = [json.loads((made.folder / "manifest.json").read_text()) for made in compiled]
    assert [(m["function_body"], m["mapped_weights"]) for m in manifests] == [(True, False), (False, True)]


def test_without_library_and_bodies_the_error_says_what_to_do(quantize: Compile) -> None:
    compiled = quantize(two_layers(), target="qcompiler", function_body=False)
    with pytest.raises(
        ResourceError, match=r"that are not registered; call qcompiler\.register on your session options"
    ):
        create_session(compiled.path, session_options=ort.SessionOptions())


def test_outliers_run_on_our_kernel(quantize: Compile) -> None:
    spqr = ["algorithm=[{name: spqr, share: 0.01}]", "calib.samples=1"]
    compiled = quantize(two_layers(), "w4a16-spqr", target="qcompiler", settings=spqr)
    assert compiled.report.running == {
        "ai.qcompiler::MatMulNBits": 2,
        "ai.qcompiler::SparseMatMul": 1,
    }  # not the head
    assert not [line for line in compiled.report.warnings if "SparseMatMul" in line]
    feeds = {"x": normal(5, 64)}
    (ours,), (stock,) = _outputs(compiled, feeds)
    assert relative_error(stock, ours) < EIGHT_BIT
    bare = quantize(two_layers(), "w4a16-spqr", target="qcompiler", settings=spqr, function_body=False)
    assert not loaded_model(bare).functions
    np.testing.assert_array_equal(create_session(bare.path).run(None, feeds)[0], ours)
