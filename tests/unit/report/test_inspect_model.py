import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import onnxruntime.quantization as ort_quantization
import pytest
from onnxruntime.quantization.matmul_bnb4_quantizer import MatMulBnb4Quantizer
from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

import qcompiler
from qcompiler.api import Options
from qcompiler.errors import InputError
from qcompiler.graph import model_file
from qcompiler.passes.normalize import Normalize
from qcompiler.report.input_codes import InputCodes
from qcompiler.report.inspect_model import NOBODY_SAYS, inspect
from qcompiler.report.json_text import to_json
from qcompiler.report.quantized_products import read_products
from qcompiler.report.stored_values import stored_values
from tests import command_models as models
from tests.small_models import make_model, save_model, weight


def test_float_decoder_shows_the_tied_weight_once(tmp_path: Path) -> None:
    found = inspect(models.decoder(tmp_path))
    table, *linears = found.products
    assert (table.name, table.role, table.op) == ("table", "embedding/head", "Gather/MatMul")
    assert (table.shape, table.label, table.bytes) == ((96, 64), "float32", 96 * 64 * 4)
    assert [(p.name, p.role, p.shape) for p in linears] == [
        ("fc1", "linear", (128, 64)),
        ("fc2", "linear", (64, 128)),
    ]
    assert found.quantized == 0 and found.bits_per_weight is None
    assert sum(product.share for product in found.products) == pytest.approx(1.0)


@pytest.mark.parametrize("stop_after", [None, "quantize_weights"])
def test_what_we_compiled_reads_the_same_in_both_forms(tmp_path: Path, stop_after: str | None) -> None:
    source = models.decoder(tmp_path)
    settings = ["symmetric=false", "rules=[{match: fc2, quantize: false, reason: too dear}]"]
    made = qcompiler.compile(
        source,
        "w4a16-rtn",
        output=tmp_path / "out",
        settings=settings,
        options=Options(stop_after=stop_after),
    )
    table, fc1, fc2 = inspect(made.path).products
    assert (table.name, table.role, table.shape, table.label) == (
        "table", "embedding/head", (96, 64), "int8 g32 sym",
    )  # fmt: skip
    assert (fc1.name, fc1.shape, fc1.label, fc1.algorithm) == ("fc1", (128, 64), "int4 g32 asym", "rtn")
    assert fc1.bytes == 128 * 64 // 2 + 128 * 2 * 4 + 128
    assert fc1.reason == "recipe w4a16-rtn"
    assert (fc2.label, fc2.reason) == ("float32", "rule 1 (name=fc2): too dear")


def test_a_turned_weight_is_read_once_by_each_of_its_products(tmp_path: Path) -> None:
    """A symmetric one whose head reads it behind a Transpose: two ways lead to it."""
    options = Options(stop_after="quantize_weights")
    made = qcompiler.compile(models.decoder(tmp_path), "w4a16-rtn", output=tmp_path / "out", options=options)
    table = read_products(model_file.load(made.path))[0]
    assert [node.op_type for node in table.nodes] == ["Gather", "MatMul"]


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("stop_after", [None, "quantize_weights"])
def test_codebooks_read_the_same_in_both_forms(tmp_path: Path, stop_after: str | None, double: bool) -> None:
    settings = ["dtype=nf4", "group_size=64", f"double_quant={double}", "rules=[{match: fc2, dtype: e2m1}]"]
    made = qcompiler.compile(
        models.decoder(tmp_path),
        "w4a16-rtn",
        output=tmp_path / "out",
        settings=settings,
        options=Options(stop_after=stop_after),
    )
    table, fc1, fc2 = inspect(made.path).products
    assert table.label == "int8 g32 sym"
    assert [(p.label, p.shape, p.algorithm, p.bits) for p in (fc1, fc2)] == [
        (f"nf4 g64{' dq' * double}", (128, 64), "rtn", 4),
        (f"e2m1 g64{' dq' * double}", (64, 128), "rtn", 4),
    ]
    blocks = 128 * 64 // 64
    # 8-bit codes of scales come in blocks of 256, here one that is half full
    assert fc1.bytes == 128 * 64 // 2 + (256 + 4 if double else blocks * 4)
    assert fc1.op == ("MatMul" if stop_after else "MatMulBnb4") and fc2.op == "MatMul"
    assert fc1.reason == "recipe w4a16-rtn"
    with pytest.raises(InputError, match="already quantized"):
        qcompiler.compile(made.path, "w4a16-rtn", output=tmp_path / "again")


def test_bnb4_of_another_tool(tmp_path: Path) -> None:
    source = onnx.load(models.mlp(tmp_path))
    quantizer = MatMulBnb4Quantizer(source, quant_type=MatMulBnb4Quantizer.NF4, block_size=64)
    quantizer.process()
    out = tmp_path / "bnb4.onnx"
    quantizer.model.save_model_to_file(str(out))
    products = inspect(out).products
    assert [(p.shape, p.label, p.bytes) for p in products] == [
        ((128, 64), "nf4 g64", 128 * 64 // 2 + 128 * 4),
        ((64, 128), "nf4 g64", 128 * 64 // 2 + 128 * 4),
    ]


CNN = "c = Conv<pads=[1,1,1,1]>(x, k, b) r = Relu(c) f = Flatten(r) y = MatMul(f, w)"


class _OneFeed(ort_quantization.CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, **arrays: np.ndarray) -> None:  # type: ignore[type-arg]
        self._left = [arrays]

    def get_next(self) -> dict[str, np.ndarray] | None:  # type: ignore[type-arg]
        return self._left.pop() if self._left else None


FORMS = {
    ort_quantization.QuantFormat.QDQ: ("MatMul", "Conv", "Gemm"),
    ort_quantization.QuantFormat.QOperator: ("QLinearMatMul", "QLinearConv", "QGemm"),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("per_channel", [False, True])
def test_static_of_another_tool(
    tmp_path: Path, form: ort_quantization.QuantFormat, per_channel: bool
) -> None:
    source = models.mlp(tmp_path)
    out = tmp_path / "static.onnx"
    reader = _OneFeed(x=np.ones((2, 64), np.float32))
    ort_quantization.quantize_static(source, out, reader, quant_format=form, per_channel=per_channel)
    products = inspect(out).products
    granularity = "channel" if per_channel else "tensor"
    assert [(p.op, p.shape, p.label) for p in products] == [
        (FORMS[form][0], (128, 64), f"int8 {granularity} sym"),
        (FORMS[form][0], (64, 128), f"int8 {granularity} sym"),
    ]
    assert all(p.activations is not None and p.activations.dtype == "int8" for p in products)
    # Codes, and a scale of 4 bytes and a zero point of 1 for each column or for all.
    sides = (128, 64) if per_channel else (1, 1)
    assert [p.bytes for p in products] == [128 * 64 + 5 * side for side in sides]


@pytest.mark.parametrize("form", FORMS)
def test_static_convolutions_of_another_tool(tmp_path: Path, form: ort_quantization.QuantFormat) -> None:
    text = f"g (float[1,3,8,8] x) => (float[1,10] y) {{ {CNN.replace('MatMul(f, w)', 'Gemm(f, w, d)')} }}"
    constants = {"k": weight(4, 3, 3, 3), "b": weight(4), "w": weight(256, 10), "d": weight(10)}
    source = save_model(make_model(text, constants), tmp_path)
    out = tmp_path / "static.onnx"
    reader = _OneFeed(x=np.ones((1, 3, 8, 8), np.float32))
    ort_quantization.quantize_static(source, out, reader, quant_format=form)
    assert [(p.op, p.shape, p.label) for p in inspect(out).products] == [
        (FORMS[form][1], (4, 3, 3, 3), "int8 tensor sym"),
        (FORMS[form][2], (10, 256), "int8 tensor sym"),
    ]


@pytest.mark.parametrize("symmetric", [False, True])
def test_nbits_of_another_tool(tmp_path: Path, symmetric: bool) -> None:
    source = onnx.load(models.decoder(tmp_path))
    config = DefaultWeightOnlyQuantConfig(
        block_size=32, is_symmetric=symmetric, op_types_to_quantize=("MatMul", "Gather")
    )
    quantizer = MatMulNBitsQuantizer(source, algo_config=config)
    quantizer.process()
    out = tmp_path / "nbits.onnx"
    quantizer.model.save_model_to_file(str(out))
    table, fc1, fc2, head = inspect(out).products
    label = f"int4 g32 {'sym' if symmetric else 'asym'}"
    assert [(p.op, p.shape, p.label) for p in (table, fc1, fc2)] == [
        ("GatherBlockQuantized", (96, 64), label), ("MatMulNBits", (128, 64), label), ("MatMulNBits", (64, 128), label),
    ]  # fmt: skip
    # It leaves the head, whose weight lies behind a Transpose; nothing in the file tells why.
    assert (head.op, head.label, head.reason) == ("MatMul", "float32", NOBODY_SAYS)


def test_dynamic_of_another_tool(tmp_path: Path) -> None:
    out = tmp_path / "dynamic.onnx"
    ort_quantization.quantize_dynamic(models.mlp(tmp_path), out, weight_type=ort_quantization.QuantType.QInt8)
    products = inspect(out).products
    assert [(p.op, p.shape, p.dtype) for p in products] == [
        ("MatMulInteger", (128, 64), "int8"),
        ("MatMulInteger", (64, 128), "int8"),
    ]


def test_a_dynamic_table_of_another_tool(tmp_path: Path) -> None:
    """Its rows are looked up in codes and unpacked behind that; the head reads the same codes."""
    out = tmp_path / "dynamic.onnx"
    source = models.decoder(tmp_path)
    ort_quantization.quantize_dynamic(source, out)
    table, _, fc2 = inspect(out).products
    assert (table.role, table.op, table.shape, table.dtype) == (
        "embedding/head",
        "Gather/MatMul",
        (96, 64),
        "uint8",
    )
    assert table.is_tied and table.bytes == 96 * 64 + 5
    assert fc2.activations == InputCodes("uint8", "tensor")
    model = model_file.load(out)
    Normalize()(model)
    values = stored_values(model, read_products(model)[0])
    original = onnx.numpy_helper.to_array(onnx.load(source).graph.initializer[0])
    step = (original.max() - original.min()) / 254
    assert np.abs(values.values - original).max() <= step


def test_products_without_a_weight_have_a_reason(tmp_path: Path) -> None:
    path = tmp_path / "attention.onnx"
    text = (
        '<ir_version: 10, opset_import: ["" : 21]> g (float[M,64] a, float[64,M] b) => (float[M,M] y) '
        "{ y = MatMul (a, b) }"
    )
    onnx.save(onnx.parser.parse_model(text), path)
    (product,) = inspect(path).products
    assert (product.role, product.reason, product.bytes) == ("attention", "both factors are activations", 0)


def test_json_has_no_infinity() -> None:
    assert json.loads(to_json({"a": float("inf"), "b": [float("nan"), 1.5]})) == {"a": None, "b": [None, 1.5]}


@pytest.mark.parametrize("stop_after", [None, "correct_biases"])
@pytest.mark.parametrize(("kind", "symmetric"), [("uint8", True), ("int8", True), ("uint16", False)])
def test_convolutions_and_linears_with_static_ranges(
    tmp_path: Path, stop_after: str | None, kind: str, symmetric: bool
) -> None:
    constants = {"k": weight(8, 3, 3, 3, scale=0.3), "b": weight(8, seed=1), "w": weight(128, 10, seed=2)}
    source = save_model(
        make_model(f"g (float[B,3,4,4] x) => (float[B,10] y) {{ {CNN} }}", constants), tmp_path
    )
    settings = [
        f"activation_type={kind}", f"head.symmetric={str(symmetric).lower()}",
        "tensors={x: {scale: 0.025, zero_point: 100}, r: {range: [0, 2.55]}}",
    ]  # fmt: skip
    x = np.random.default_rng(0).standard_normal((8, 3, 4, 4)).astype(np.float32)
    made = qcompiler.compile(
        source, "w8a8-static", calibration=[{"x": x}], output=tmp_path / "out", settings=settings,
        options=Options(stop_after=stop_after),
    )  # fmt: skip
    conv, linear = inspect(made.path).products
    assert (conv.role, conv.shape, conv.label) == ("conv", (8, 3, 3, 3), "int8 channel sym")
    assert (linear.role, linear.shape) == ("head", (10, 128))
    assert linear.label == f"int8 channel {'sym' if symmetric else 'asym'}"
    assert conv.activations == InputCodes(kind, "tensor", float(np.float32(0.025)), 100)
    steps = {"uint8": 255, "int8": 127, "uint16": 65535}[kind]
    assert linear.activations == InputCodes(kind, "tensor", float(np.float32(2.55 / steps)), 0)


@pytest.mark.parametrize(
    ("settings", "label"),
    [([], "int8 row"), (["activations=tensor", "head.activations=tensor"], "uint8 dynamic")],
)
@pytest.mark.parametrize("stop_after", [None, "round_activations"])
def test_activations_with_scales_of_every_run(
    tmp_path: Path, settings: list[str], label: str, stop_after: str | None
) -> None:
    made = qcompiler.compile(
        models.mlp(tmp_path), "w8a8-dynamic", output=tmp_path / "out", settings=settings,
        options=Options(stop_after=stop_after),
    )  # fmt: skip
    first = inspect(made.path).products[0]
    assert first.activations is not None and first.activations.label == label


def test_what_onnx_runtime_fused_reads_the_same(tmp_path: Path) -> None:
    constants = {"k": weight(8, 3, 3, 3, scale=0.3), "b": weight(8, seed=1), "w": weight(128, 10, seed=2)}
    source = save_model(
        make_model(f"g (float[B,3,4,4] x) => (float[B,10] y) {{ {CNN} }}", constants), tmp_path
    )
    x = np.random.default_rng(0).standard_normal((8, 3, 4, 4)).astype(np.float32)
    made = qcompiler.compile(source, "w8a8-static", calibration=[{"x": x}], output=tmp_path / "out")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(made.folder / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(made.path), options, providers=["CPUExecutionProvider"])
    before, after = inspect(made.path).products, inspect(made.folder / "optimized.onnx").products
    assert [(p.role, p.label, p.activations) for p in before] == [
        (p.role, p.label, p.activations) for p in after
    ]
    assert after[0].op == "QLinearConv"
