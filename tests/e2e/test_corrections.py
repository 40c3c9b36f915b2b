"""compile() with floats beside the codes (low rank, outliers) in every kind of model, what is said of them, and a user's own refinement."""

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest

from qcompiler.algorithms import Algorithm, NoOptions
from qcompiler.api import CompiledModel, Options, compile, dry_run
from qcompiler.errors import InputError, SchemeError
from qcompiler.quant.affine_tensor import AffineTensor
from qcompiler.quant.tensor import base_of
from qcompiler.report.inspect_model import inspect
from tests import command_models as models
from tests.compiled_models import BODIES
from tests.small_models import Array, make_model, relative_error, run, save_model, weight
from tests.stopped_compile import assert_goes_on_with_the_same_bytes, decoder_and_data

LORC = "algorithm=[mse, {name: lorc, rank: 16}]"
SPQR = "algorithm={name: spqr, share: 0.02}"
BOTH = "algorithm=[{name: spqr, share: 0.02}, {name: lorc, rank: 4}]"
FULL = "algorithm=[mse, {name: lorc, rank: 64, rounds: 0}]"  # of a 64 x 64 weight: nothing is left
ENDS = ("bits=2", "group_size=32", "accuracy_level=0", "head={bits: 8, group_size: 32, algorithm: rtn}")
# Linears at full rank are exact but for the roundings of their factors; the head is rounded to 8 bits, 0.4 % of a normal weight's spread.
EIGHT_BIT = 0.02


def _x(*shape: int, dtype: Any = np.float32) -> Array:
    return np.random.default_rng(1).standard_normal(shape).astype(dtype)


def _compile(
    model: onnx.ModelProto | Path, folder: Path, *settings: str, name: str = "out", **given: Any
) -> CompiledModel:
    path = model if isinstance(model, Path) else save_model(model, folder)
    given.setdefault("options", Options(verify_each=True))
    return compile(path, "w4a16-rtn", settings=[*ENDS, *settings], output=folder / name, **given)


def _mlp(dtype: Any = np.float32) -> onnx.ModelProto:
    kind = {np.float32: "float", np.float16: "float16", ml_dtypes.bfloat16: "bfloat16"}[dtype]
    text = (
        "g ({t}[M,64] x) => ({t}[M,32] y) {{ h = MatMul(x, w) b = Add(h, c) r = Relu(b) y = MatMul(r, v) }}"
    )
    return make_model(
        text.format(t=kind),
        {
            "w": weight(64, 64, dtype=dtype),
            "c": weight(64, dtype=dtype),
            "v": weight(64, 32, seed=1, dtype=dtype),
        },
    )


@pytest.mark.parametrize("scales", ["auto", "float16"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_full_rank_gives_the_float_layer_back(dtype: Any, scales: str, tmp_path: Path) -> None:
    made = _compile(
        _mlp(dtype), tmp_path, FULL, f"scale_dtype={scales}", calibration=[{"x": _x(90, 64, dtype=dtype)}]
    )
    feed = {"x": _x(5, 64, dtype=dtype)}
    wanted, got = run(tmp_path / "float.onnx", feed)["y"], run(made.path, feed)["y"]
    assert got.dtype == dtype and relative_error(wanted, got) <= EIGHT_BIT
    plain = _compile(
        _mlp(dtype), tmp_path, "algorithm=mse", name="plain", calibration=[{"x": _x(90, 64, dtype=dtype)}]
    )
    assert relative_error(wanted, run(plain.path, feed)["y"]) > 5 * EIGHT_BIT, "2 bits alone"


def test_bfloat16(tmp_path: Path) -> None:
    bfloat16 = ml_dtypes.bfloat16
    made = _compile(_mlp(bfloat16), tmp_path, FULL)
    x = _x(5, 64)
    w, c, v = (
        np.asarray(array).astype(bfloat16).astype(np.float32)
        for array in (weight(64, 64), weight(64), weight(64, 32, seed=1))
    )
    wanted = np.maximum(x.astype(bfloat16).astype(np.float32) @ w + c, 0) @ v
    session = ort.InferenceSession(str(made.path), providers=["CPUExecutionProvider"])
    fed = ort.OrtValue.ortvalue_from_numpy_with_onnx_type(
        x.astype(bfloat16).view(np.uint16), onnx.TensorProto.BFLOAT16
    )
    (output,) = session.run_with_ort_values(["y"], {"x": fed})
    assert output.element_type() == onnx.TensorProto.BFLOAT16
    import torch

    got = torch.from_dlpack(output._ortvalue.to_dlpack()).view(torch.bfloat16).float().numpy()
    assert relative_error(wanted, got) <= EIGHT_BIT


@pytest.mark.parametrize("kind", BODIES)
def test_weights_inside_control_flow(kind: str, tmp_path: Path) -> None:
    model = make_model(BODIES[kind], {"v": weight(64, 64), "w": weight(64, 64, seed=1)})
    made = _compile(model, tmp_path, FULL, "head=float")
    for c in (True, False):
        feed = {"x": _x(5, 64), "c": np.array(c)}
        wanted, got = run(tmp_path / "float.onnx", feed)["y"], run(made.path, feed)["y"]
        assert relative_error(wanted, got) <= EIGHT_BIT


def test_more_rank_is_better_and_counted(tmp_path: Path) -> None:
    errors, sizes = [], []
    for rank in (4, 16, 32):
        setting = f"algorithm=[mse, {{name: lorc, rank: {rank}}}]"
        made = _compile(_mlp(), tmp_path, setting, name=str(rank), calibration=[{"x": _x(90, 64)}])
        linear, head = made.report.layers
        assert (linear.beside, head.beside) == (f"rank {rank}", "")
        errors.append(linear.output_error)
        sizes.append(linear.stored_bytes)
        product = inspect(made.path).products[0]
        assert product.label == f"int2 g32 sym + rank {rank}" and product.bytes == linear.stored_bytes
        ahead = dry_run(tmp_path / "float.onnx", "w4a16-rtn", settings=[*ENDS, setting])
        assert ahead.plan.quantized[0].stored_bytes == linear.stored_bytes
    assert errors == sorted(errors, reverse=True)
    assert np.diff(sizes).tolist() == [12 * 128 * 4, 16 * 128 * 4]


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("setting", [SPQR, BOTH])
@pytest.mark.parametrize("symmetric", ["true", "false"])
def test_outliers_run_as_they_are_stored(symmetric: str, setting: str, dtype: Any, tmp_path: Path) -> None:
    """Few rows and many, the middle form and the lowered one; what runs is what the report judged."""
    results = {}
    data = [{"x": _x(90, 64, dtype=dtype)}]
    for stop in ("quantize_weights", None):
        options = Options(verify_each=True, stop_after=stop)
        made = _compile(
            _mlp(dtype),
            tmp_path,
            setting,
            f"symmetric={symmetric}",
            name=str(stop),
            calibration=data,
            options=options,
        )
        for rows in (2, 90):
            results[stop, rows] = run(made.path, {"x": _x(rows, 64, dtype=dtype)}, optimize=stop is None)["y"]
        linear = made.report.layers[0]
        assert linear.beside.endswith("2 % outliers")
        assert any("SparseMatMul" in note and "no stock kernel" in note for note in linear.notes)
        product = inspect(made.path).products[0]
        kind = "sym" if symmetric == "true" else "asym"
        assert set(product.label.split(" + ")) == {f"int2 g32 {kind}", *linear.beside.split(" + ")}
        # DequantizeLinear packs zero points of 2 bits without a gap, the kernel begins each row with a byte.
        assert product.bytes == linear.stored_bytes or stop is not None
    onnx.checker.check_model(onnx.load(tmp_path / "None" / "model.onnx"))
    for rows in (2, 90):
        # The same weights in other nodes; float16 is rounded at each.
        assert relative_error(results["quantize_weights", rows], results[None, rows]) <= (
            1e-5 if dtype is np.float32 else 4e-3
        )
    plain = _compile(
        _mlp(dtype), tmp_path, "algorithm=gptq", f"symmetric={symmetric}", name="plain", calibration=data
    )
    feed = {"x": _x(90, 64, dtype=dtype)}
    wanted = run(tmp_path / "float.onnx", feed)["y"]
    assert relative_error(wanted, results[None, 90]) < relative_error(wanted, run(plain.path, feed)["y"])


@pytest.mark.parametrize("kind", BODIES)
def test_outliers_inside_control_flow(kind: str, tmp_path: Path) -> None:
    model = make_model(BODIES[kind], {"v": weight(64, 64), "w": weight(64, 64, seed=1)})
    half = "algorithm={name: spqr, share: 0.5}"  # at 8 bits: the others are nearly exact
    made = _compile(model, tmp_path, half, "head=float", "bits=8")
    for c in (True, False):
        feed = {"x": _x(5, 64), "c": np.array(c)}
        wanted, got = run(tmp_path / "float.onnx", feed)["y"], run(made.path, feed)["y"]
        assert relative_error(wanted, got) <= EIGHT_BIT


def test_outliers_of_a_tied_weight_are_refused(tmp_path: Path) -> None:
    head = "head={bits: 8, group_size: 32, algorithm: spqr}"
    with pytest.raises(SchemeError, match=r"spqr: rows of the weight are gathered.*such as mse"):
        _compile(models.decoder(tmp_path), tmp_path, head)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("setting", [LORC, SPQR])
def test_inspect_knows_the_middle_form_too(setting: str, tmp_path: Path) -> None:
    made = _compile(_mlp(), tmp_path, setting, options=Options(stop_after="quantize_weights"))
    beside = "rank 16" if setting == LORC else "2 % outliers"
    found = inspect(made.path)
    assert [product.label for product in found.products] == [f"int2 g32 sym + {beside}", "int8 g32 sym"]


@pytest.mark.parametrize("setting", [LORC, SPQR, BOTH])
def test_a_compiled_model_has_nothing_left(setting: str, tmp_path: Path) -> None:
    made = _compile(_mlp(), tmp_path, setting)
    with pytest.raises(InputError, match="already quantized"):
        compile(made.path, "w4a16-rtn", output=tmp_path / "again")


def test_a_tied_weight_goes_without_and_says_why(tmp_path: Path) -> None:
    path = models.decoder(tmp_path)
    made = _compile(path, tmp_path, LORC, "head={bits: 8, group_size: 32, algorithm: [mse, lorc]}")
    tied = next(layer for layer in made.report.layers if layer.role == "head")
    assert tied.beside == "" and tied.algorithm == "mse"
    assert any("no lorc: rows of the weight are gathered" in note for note in tied.notes)
    assert [layer.beside for layer in made.report.layers if layer.role == "linear"] == ["rank 16"] * 2


@pytest.mark.parametrize("steps", ["awq, gptq, {name: lorc, rank: 4}", "awq, spqr"])
@pytest.mark.parametrize("at", [1, 3])
def test_a_stopped_compile_goes_on_with_the_same_bytes(
    at: int, steps: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, data = decoder_and_data(tmp_path)
    settings = (f"algorithm=[{steps}]", "symmetric=false", "scale_dtype=float16")

    def compile_to(name: str, options: Options) -> CompiledModel:
        return _compile(path, tmp_path, *settings, name=name, calibration=data, options=options)

    assert_goes_on_with_the_same_bytes(compile_to, at, monkeypatch)


# ---- a user's refinement ----


def _halved(weight: Array, quantized: Any, statistics: Any, options: Any) -> AffineTensor:
    """Every scale half of what it was."""
    base = base_of(quantized)
    return AffineTensor(base.scheme, base.codes, base.scale / 2, base.zero_point)


def _other_scheme(weight: Array, quantized: Any, statistics: Any, options: Any) -> Any:
    return quantized.codes


halved = Algorithm("halved", "refinement", frozenset(), NoOptions, _halved)
wrong = Algorithm("wrong", "refinement", frozenset(), NoOptions, _other_scheme)


def test_a_users_refinement_works_on_what_the_quantizer_gave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    own = f"{Path(__file__).stem}:halved"
    outputs = []
    for name, steps in enumerate(("mse", f"mse, '{own}'", f"mse, '{own}', '{own}'")):
        made = _compile(
            _mlp(),
            tmp_path,
            f"algorithm=[{steps}]",
            "rules=[{match: {name: v}, quantize: false}]",
            name=str(name),
        )
        assert made.report.layers[0].algorithm.count("halved") == name
        model = onnx.load(made.path)
        (product,) = [node for node in model.graph.node if node.op_type == "MatMulNBits"]
        (scale,) = [entry for entry in model.graph.initializer if entry.name == product.input[2]]
        outputs.append(onnx.numpy_helper.to_array(scale))
    np.testing.assert_array_equal(outputs[1], outputs[0] / 2)
    np.testing.assert_array_equal(outputs[2], outputs[0] / 4)


def test_what_a_users_refinement_returns_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    with pytest.raises(SchemeError, match=r"w: .*wrong: returned ndarray; return an AffineTensor"):
        _compile(_mlp(), tmp_path, f"algorithm=[mse, '{Path(__file__).stem}:wrong']")
