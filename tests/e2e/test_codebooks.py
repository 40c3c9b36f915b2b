"""compile() with codebooks: what runs, that it computes what is stored, and what is said where no kernel reads it."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from qcompiler.api import CompiledModel, Options, compile, dry_run
from qcompiler.errors import SchemeError
from qcompiler.graph import model_file
from qcompiler.graph.weight_form import read_weight
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

# 4 bits with a scale for 16 to 64 weights: 8 to 11 % of a normal weight's spread.
FOUR_BIT = 0.2
# The same products summed in another order; float16 results are rounded at each linear.
ROUNDING = {np.float32: 1e-5, np.float16: 4e-3}
NAMES: dict[Any, str] = {np.float32: "float", np.float16: "float16"}


def _x(*shape: int, dtype: Any = np.float32) -> Array:
    return np.random.default_rng(1).standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("codebook", ["nf4", "fp4", "e2m1"])
@pytest.mark.parametrize("k", [64, 72, 17])
def test_lowered_middle_form_and_numpy_agree(
    k: int, codebook: str, double: bool, dtype: Any, tmp_path: Path
) -> None:
    """A linear with a bias, a Gemm, and a head, all of one codebook."""
    name = NAMES[dtype]
    model = make_model(
        f"g ({name}[M,{k}] x) => ({name}[M,24] y) {{ h = MatMul(x, w) b = Add(h, c) r = Relu(b) "
        "s = Gemm<transB=1>(r, u, e) y = MatMul(s, v) }",
        {
            "w": weight(k, 48, dtype=dtype), "c": weight(48, dtype=dtype, scale=1.0),
            "u": weight(40, 48, seed=2, dtype=dtype), "e": weight(40, dtype=dtype, scale=1.0), "v": weight(40, 24, seed=1, dtype=dtype),
        },
    )  # fmt: skip
    path = save_model(model, tmp_path)
    head = f"head={{bits: 4, dtype: {codebook}, group_size: 16, algorithm: rtn}}"
    settings = [
        f"dtype={codebook}",
        "group_size=32",
        "algorithm=mse",
        f"double_quant={double}",
        head,
        "calib.samples=2",
    ]
    results = {}
    for stop in ("quantize_weights", None):
        made = compile(
            path, "w4a16-nf4", settings=settings, output=tmp_path / f"{stop}",
            calibration=[{"x": _x(20, k, dtype=dtype)}, {"x": _x(20, k, dtype=dtype) + dtype(1)}],
            options=Options(verify_each=True, stop_after=stop),
        )  # fmt: skip
        results[stop] = run(made.path, {"x": _x(5, k, dtype=dtype)})
        if stop is None:
            assert made.report.running == ({} if codebook == "e2m1" else {"MatMulBnb4": 3})
            assert [layer.scheme for layer in made.report.layers] == [
                f"{codebook} g{group}{' dq' * double}" for group in (32, 32, 16)
            ]
            told = [bool(layer.notes) for layer in made.report.layers]
            assert told == [codebook == "e2m1"] * 3
            continue
        loaded = model_file.load(made.path)
        products = [node for node in loaded.graph if node.op_type == "MatMul"]
        read = [read_weight(node.inputs[1].producer()) for node in products if node.inputs[1] is not None]
        w, u, v = (found[0].dequantize().T for found in read if found is not None)
        c, e = (weight(n, dtype=dtype, scale=1.0).astype(np.float32) for n in (48, 40))
        exact = (np.maximum(_x(5, k, dtype=dtype).astype(np.float32) @ w + c, 0) @ u + e) @ v
        assert relative_error(exact, results[stop]["y"]) <= ROUNDING[dtype]
    assert_equal_outputs(results["quantize_weights"], results[None], ROUNDING[dtype])
    assert_equal_outputs(run(path, {"x": _x(5, k, dtype=dtype)}), results[None], FOUR_BIT)


def test_a_tied_embedding_stays_plain_and_says_why(tmp_path: Path) -> None:
    model = make_model(
        "g (int64[B,S] i) => (float[B,S,40] y) { e = Gather(t, i) q = Transpose<perm=[1,0]>(t) y = MatMul(e, q) }",
        {"t": weight(40, 64)},
    )
    path = save_model(onnx.shape_inference.infer_shapes(model), tmp_path)
    settings = ["head={bits: 4, dtype: nf4, group_size: 64, algorithm: rtn}"]
    made = compile(path, "w4a16-rtn", settings=settings, output=tmp_path / "out")
    (layer,) = made.report.layers
    assert any("nf4: no kernel looks up rows" in note for note in layer.notes)
    feed = {"i": np.arange(6, dtype=np.int64)[None]}
    assert_equal_outputs(run(path, feed), run(made.path, feed), FOUR_BIT)
    ahead = dry_run(path, "w4a16-rtn", settings=settings)
    assert any("nf4: no kernel looks up rows" in note for note in ahead.plan.quantized[0].notes)


def test_segments_after_a_codebook_see_what_it_computes(tmp_path: Path) -> None:
    """Two blocks: the second's statistics come from the first's stored weights, in the middle form."""
    model = make_model(
        "g (float[M,64] x) => (float[M,64] y) { a = MatMul(x, w) b = Relu(a) c = MatMul(b, v) d = Relu(c) y = MatMul(d, u) }",
        {name: weight(64, 64, seed=seed) for seed, name in enumerate("wvu")},
    )
    path = save_model(model, tmp_path)
    made = compile(
        path,
        "w4a16-nf4",
        settings=["head.bits=4", "head.dtype=nf4"],
        output=tmp_path / "out",
        calibration=[{"x": _x(64, 64)}],
    )
    assert made.report.running == {"MatMulBnb4": 3}
    plain = compile(
        path,
        "w4a16-nf4",
        settings=["head.bits=4", "head.dtype=nf4", "head.algorithm=rtn", "algorithm=rtn"],
        output=tmp_path / "rtn",
    )
    feed = {"x": _x(64, 64)}
    wanted = run(path, feed)["y"]
    assert relative_error(wanted, run(made.path, feed)["y"]) < relative_error(
        wanted, run(plain.path, feed)["y"]
    )


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_stopped_compile_goes_on_with_the_same_bytes(
    at: int, double: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, data = decoder_and_data(tmp_path)
    settings = [f"double_quant={double}", "group_size=16"]

    def compile_to(name: str, options: Options) -> CompiledModel:
        return compile(
            path, "w4a16-nf4", settings=settings, calibration=data, output=tmp_path / name, options=options
        )

    assert_goes_on_with_the_same_bytes(compile_to, at, monkeypatch)


def test_other_blocks_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    path = save_model(
        make_model(
            "g (float[M,64] x) => (float[M,24] z) { y = MatMul(x, w) z = Relu(y) }", {"w": weight(64, 24)}
        ),
        tmp_path,
    )
    with pytest.raises(SchemeError, match="MatMulBnb4 has no such blocks"):
        compile(path, "w4a16-nf4", settings=["group_size=48"], output=tmp_path / "out")
    assert not (tmp_path / "out").exists()
