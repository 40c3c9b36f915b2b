"""compile() with float zero points and two-level scales: what runs, that it computes what is stored, and what inspect, diff and resume make of it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qcompiler.api import CompiledModel, Options, compile, dry_run
from qcompiler.graph import model_file
from qcompiler.graph.census import take_census
from qcompiler.graph.weight_form import read_weight
from qcompiler.report.inspect_model import inspect
from tests.small_models import (
    Array,
    assert_equal_outputs,
    make_model,
    relative_error,
    run,
    save_model,
    weight,
)
from tests.stopped_compile import assert_goes_on_with_the_same_bytes, decoder_and_data

# The same products summed in another order; float16 results are rounded at each linear.
ROUNDING = {np.float32: 1e-5, np.float16: 4e-3}
NAMES: dict[Any, str] = {np.float32: "float", np.float16: "float16"}
KINDS = {  # scheme: recipe, settings, head
    "int4 g{} asym float-zp": (
        "w4a16-hqq",
        ["symmetric=false"],
        "symmetric: false, zero_point: float, algorithm: rtn",
    ),
    "int4 g{} asym two-level": (
        "w4a16-kquant",
        ["symmetric=false"],
        "symmetric: false, two_level: true, algorithm: kquant",
    ),
    "int4 g{} sym two-level": (
        "w4a16-kquant",
        ["symmetric=true"],
        "symmetric: true, two_level: true, algorithm: kquant",
    ),
}
FLOAT_POINTS = ["zero_point=float", "bits=4", "symmetric=false", "accuracy_level=0"]


def _x(*shape: int, dtype: Any = np.float32) -> Array:
    return np.random.default_rng(1).standard_normal(shape).astype(dtype)


@pytest.mark.parametrize(
    ("kind", "scale_dtype"), [*((kind, "auto") for kind in KINDS), ("int4 g{} asym float-zp", "float16")]
)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("k", [64, 72])
def test_lowered_middle_form_and_numpy_agree(
    k: int, dtype: Any, kind: str, scale_dtype: str, tmp_path: Path
) -> None:
    """A linear with a bias, a Gemm, and two linears that read one input, of which one is the head."""
    name = NAMES[dtype]
    model = make_model(
        f"g ({name}[B,M,{k}] x) => ({name}[B,M,24] y) {{ h = MatMul(x, w) b = Add(h, c) r = Relu(b) "
        "s = MatMul(r, u) t = MatMul(r, e) a = Add(s, t) y = MatMul(a, v) }",
        {
            "w": weight(k, 48, dtype=dtype), "c": weight(48, dtype=dtype, scale=1.0),
            "u": weight(48, 40, seed=2, dtype=dtype), "e": weight(48, 40, seed=3, dtype=dtype), "v": weight(40, 24, seed=1, dtype=dtype),
        },
    )  # fmt: skip
    path = save_model(model, tmp_path)
    recipe, given, inner = KINDS[kind]
    settings = [
        *given,
        "group_size=32",
        "group_fallback=pad",
        f"scale_dtype={scale_dtype}",
        "accuracy_level=0",
    ]
    settings.append(f"head={{bits: 4, group_size: 16, {inner}}}")
    results = {}
    for stop in ("quantize_weights", None):
        made = compile(
            path,
            recipe,
            settings=settings,
            output=tmp_path / f"{stop}",
            calibration=[{"x": _x(4, 8, k, dtype=dtype)}],
            options=Options(verify_each=True, stop_after=stop),
        )
        results[stop] = run(made.path, {"x": _x(2, 5, k, dtype=dtype)})
        assert [layer.scheme for layer in made.report.layers] == [kind.format(32)] * 3 + [kind.format(16)]
        seen = inspect(made.path)
        quantized = [product for product in seen.products if product.granularity is not None]
        assert [product.label for product in quantized] == [layer.scheme for layer in made.report.layers]
        assert [product.role for product in quantized] == ["linear"] * 3 + ["head"]
        assert [product.bytes for product in quantized] == [
            layer.stored_bytes for layer in made.report.layers
        ]
        assert len(seen.products) == 4
        if stop is None:
            assert made.report.running == {"MatMulNBits": 4}
            assert not take_census(model_file.load(made.path)).weights
            continue
        loaded = model_file.load(made.path)
        stored = [read_weight(node.inputs[1].producer()) for node in loaded.graph if node.op_type == "MatMul"]
        w, u, e, v = (found[0].dequantize().T for found in stored if found is not None)
        c = weight(48, dtype=dtype, scale=1.0).astype(np.float32)
        r = np.maximum(_x(2, 5, k, dtype=dtype).astype(np.float32) @ w + c, 0)
        assert relative_error((r @ u + r @ e) @ v, results[stop]["y"]) <= ROUNDING[dtype]
    assert_equal_outputs(results["quantize_weights"], results[None], ROUNDING[dtype])


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("algorithm", ["rtn", "mse", "hqq", "gptq"])
def test_every_quantizer_and_width_runs(bits: int, algorithm: str, tmp_path: Path) -> None:
    path = save_model(
        make_model(
            "g (float[M,64] x) => (float[M,24] z) { y = MatMul(x, w) z = Relu(y) }",
            {"w": weight(64, 24) + np.float32(0.3)},
        ),
        tmp_path,
    )
    settings = [*FLOAT_POINTS, f"bits={bits}", f"algorithm={algorithm}", "group_size=16"]
    feed = {"x": _x(48, 64)}
    made = compile(path, "w4a16-hqq", settings=settings, output=tmp_path / "out", calibration=[feed])
    assert made.report.running == {"MatMulNBits": 1}
    # half of one of 2^bits - 1 steps over about 3.5 deviations of 1/8, beside weights of 0.33
    limit = 0.25 * 3.5 / 8 / (2**bits - 1) / 0.33 * 2
    assert relative_error(run(path, feed)["z"], run(made.path, feed)["z"]) < limit


def test_sums_of_an_activation_are_one_reduction(tmp_path: Path) -> None:
    model = make_model(
        "g (float[M,64] x) => (float[M,24] z) { y = MatMul(x, w) z = Relu(y) }", {"w": weight(64, 24)}
    )
    path = save_model(model, tmp_path)
    made = compile(path, "w4a16-hqq", settings=FLOAT_POINTS, output=tmp_path / "out")
    whole = run(made.path, {"x": _x(3, 64)})
    assert "ReduceSum" in inspect(made.path).operators
    assert relative_error(run(path, {"x": _x(3, 64)})["z"], whole["z"]) < 0.2


def test_an_embedding_stays_plain_and_says_why(tmp_path: Path) -> None:
    model = make_model(
        "g (int64[B,S] i) => (float[B,S,64] y) { e = Gather(t, i) y = Relu(e) }", {"t": weight(40, 64)}
    )
    path = save_model(model, tmp_path)
    settings = ["embedding={bits: 4, symmetric: false, zero_point: float, group_size: 32, algorithm: rtn}"]
    made = compile(path, "w4a16-rtn", settings=settings, output=tmp_path / "out")
    (layer,) = made.report.layers
    assert any("no kernel looks up rows" in note for note in layer.notes)
    feed = {"i": np.arange(6, dtype=np.int64)[None]}
    assert relative_error(run(path, feed)["y"], run(made.path, feed)["y"]) < 0.2  # 4 bits
    ahead = dry_run(path, "w4a16-rtn", settings=settings)
    assert any("no kernel looks up rows" in note for note in ahead.plan.quantized[0].notes)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("symmetric", ["true", "false"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("k", [64, 72])  # of 72 the last group is short
def test_an_embedding_of_two_levels_stays_plain_and_computes(
    k: int, dtype: Any, symmetric: str, tied: bool, tmp_path: Path
) -> None:
    name = NAMES[dtype]
    head = "h = Transpose <perm = [1, 0]> (t) y = MatMul(e, h)" if tied else "y = Relu(e)"
    model = make_model(
        f"g (int64[B,S] i) => ({name}[B,S,{40 if tied else k}] y) {{ e = Gather(t, i) {head} }}",
        {"t": weight(40, k, dtype=dtype)},
    )
    inner = f"{{bits: 4, symmetric: {symmetric}, two_level: true, group_size: 32, algorithm: kquant}}"
    settings = [f"head={inner}", f"embedding={inner}", "group_fallback=pad"]
    made = compile(
        save_model(model, tmp_path),
        "w4a16-kquant",
        settings=settings,
        output=tmp_path / "out",
        calibration=[{"i": np.arange(8, dtype=np.int64)[None]}],
    )
    (layer,) = made.report.layers
    assert any("no kernel looks up rows" in note for note in layer.notes)
    assert made.report.running == {}
    (seen,) = inspect(made.path).products
    assert (seen.label, seen.bytes) == (layer.scheme, layer.stored_bytes)
    gather = next(node for node in model_file.load(made.path).graph if node.op_type == "Gather")
    table = read_weight(gather.inputs[0].producer())
    assert table is not None
    rows = table[0].dequantize()
    ids = np.arange(6, dtype=np.int64)[None]
    expected = rows[ids] @ rows.T if tied else np.maximum(rows[ids], 0)
    assert relative_error(expected, run(made.path, {"i": ids})["y"]) <= ROUNDING[dtype]


@pytest.mark.parametrize("recipe", ["w4a16-awq", "w4a16-kquant"])
@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_stopped_compile_goes_on_with_the_same_bytes(
    at: int, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, data = decoder_and_data(tmp_path)
    settings = ["group_size=16", *(["zero_point=float"] if recipe == "w4a16-awq" else [])]

    def compile_to(name: str, options: Options) -> CompiledModel:
        return compile(
            path, recipe, settings=settings, calibration=data, output=tmp_path / name, options=options
        )

    assert_goes_on_with_the_same_bytes(compile_to, at, monkeypatch)


def test_a_low_rank_part_is_beside_the_offsets(tmp_path: Path) -> None:
    path = save_model(
        make_model(
            "g (float[M,64] x) => (float[M,24] z) { y = MatMul(x, w) z = Relu(y) }", {"w": weight(64, 24)}
        ),
        tmp_path,
    )
    settings = [*FLOAT_POINTS, "algorithm=[hqq, {name: lorc, rank: 4}]", "group_size=16"]
    made = compile(
        path, "w4a16-hqq", settings=settings, output=tmp_path / "out", calibration=[{"x": _x(48, 64)}]
    )
    (product,) = inspect(made.path).products
    assert product.label == "int4 g16 asym float-zp + rank 4"
    assert product.bytes == made.report.layers[0].stored_bytes
    assert (
        relative_error(run(path, {"x": _x(3, 64)})["z"], run(made.path, {"x": _x(3, 64)})["z"]) < 0.2
    )  # 4 bits


def test_a_weight_of_zeros_stays_zero_where_activations_are_rounded(tmp_path: Path) -> None:
    """The offset undoes the middle of the codes only as well as the kernel's rounded activations do: the scale has to be small."""
    model = make_model(
        "g (float[M,64] x) => (float[M,32] y, float[M,32] z) { y = MatMul(x, w) h = Relu(y) z = MatMul(h, v) }",
        {"w": np.zeros((64, 32), np.float32), "v": weight(32, 32)},
    )
    result = compile(
        save_model(model, tmp_path), "w4a16-hqq", output=tmp_path / "out", settings=["accuracy_level=4", "head.zero_point=float",
        "head.bits=4", "head.symmetric=false"],
    )  # fmt: skip
    assert np.abs(run(result.path, {"x": _x(7, 64)})["y"]).max() < 1e-3  # 0.4 where the scale is 1
