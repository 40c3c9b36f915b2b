"""compile() with groups of rows: plain ONNX that computes what is stored, and what the plan, inspect and resume make of it."""

import io
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from qcompiler.algorithms import hqq
from qcompiler.api import Options, compile, dry_run
from qcompiler.graph import checkpoints
from qcompiler.quant.scheme import Granularity, QuantScheme, ZeroPoint
from qcompiler.report.compile_summary import compile_summary
from qcompiler.report.inspect_model import inspect
from tests.small_models import Array, make_model, relative_error, run, save_model, weight

KINDS: dict[str, tuple[bool, ZeroPoint]] = {
    "sym": (True, "int"),
    "asym": (False, "int"),
    "asym float-zp": (False, "float"),
}
# The same products summed in another order; float16 results are rounded.
ROUNDING = {np.float32: 1e-5, np.float16: 4e-3}
NAMES: dict[Any, str] = {np.float32: "float", np.float16: "float16"}


def _x(*shape: int, dtype: Any = np.float32) -> Array:
    return np.random.default_rng(1).standard_normal(shape).astype(dtype)


def _settings(kind: str, bits: int, group: int) -> list[str]:
    symmetric, zero_point = KINDS[kind]
    return [
        "group_axis=output",
        "algorithm=hqq",
        f"zero_point={zero_point}",
        f"symmetric={str(symmetric).lower()}",
        f"bits={bits}",
        f"group_size={group}",
        "group_fallback=pad",
        "scale_dtype=auto",
    ]


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("group", [16, 32, 128])
@pytest.mark.parametrize(
    ("bits", "kind"), [pair for pair in itertools.product((1, 2, 3, 4, 8), KINDS) if pair != (1, "sym")]
)
def test_what_runs_is_what_hqq_found(bits: int, kind: str, group: int, dtype: Any, tmp_path: Path) -> None:
    """A MatMul with short and odd groups of rows, and a Gemm that reads its weight transposed."""
    name, w, v = NAMES[dtype], weight(48, 75, dtype=dtype), weight(64, 75, seed=1, dtype=dtype)
    model = make_model(
        f"g ({name}[M,48] x) => ({name}[M,64] z) {{ y = MatMul(x, w) r = Relu(y) h = Gemm<transB=1>(r, v) z = Neg(h) }}",
        {"w": w, "v": v},
    )
    path = save_model(model, tmp_path)
    made = compile(
        path, "w4a16-hqq", settings=_settings(kind, bits, group), output=tmp_path / "out", options=Options(verify_each=True)
    )  # fmt: skip
    assert made.report.running == {}
    symmetric, zero_point = KINDS[kind]
    scheme = QuantScheme(
        bits,
        symmetric,
        Granularity.GROUP,
        group,
        "float32" if dtype == np.float32 else "float16",
        zero_point=zero_point,
        group_axis="output",
    )
    first, second = (hqq.quantize(each, None, scheme).dequantize() for each in (w.T, v))
    x = _x(5, 48, dtype=dtype)
    expected = -np.maximum(x.astype(np.float32) @ first.T, 0) @ second.T
    for optimize in (True, False):
        assert relative_error(expected, run(made.path, {"x": x}, optimize=optimize)["z"]) <= ROUNDING[dtype]
    seen = inspect(made.path).products
    stored = {1: 2, 3: 4}.get(bits, bits)
    assert [product.label for product in seen] == [f"int{stored} g{group}-out {kind}"] * 2
    assert [product.shape for product in seen] == [(75, 48), (64, 75)]
    assert [layer.scheme for layer in made.report.layers] == [scheme.label] * 2
    # A file's uintB tensors pad no row and no short group to whole bytes.
    assert all(
        product.bytes <= layer.stored_bytes for product, layer in zip(seen, made.report.layers, strict=True)
    )
    assert all(any("no kernel reads groups of rows" in note for note in layer.notes) for layer in made.report.layers)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_an_embedding_tied_to_its_head(kind: str, tmp_path: Path) -> None:
    model = make_model(
        "g (int64[B,S] i) => (float[B,S,80] y) { e = Gather(t, i) h = MatMul(e, w) a = Add(e, h) u = Transpose<perm=[1,0]>(t) y = MatMul(a, u) }",
        {"t": weight(80, 64, scale=1.0), "w": weight(64, 64, seed=1)},
    )
    path = save_model(model, tmp_path)
    symmetric, zero_point = KINDS[kind]
    scheme = f"{{bits: 8, group_size: 16, group_axis: output, symmetric: {str(symmetric).lower()}, zero_point: {zero_point}, algorithm: rtn}}"
    settings = ["bits=8", f"head={scheme}", f"embedding={scheme}"]
    made = compile(path, "w4a16-rtn", settings=settings, output=tmp_path / "out")
    assert made.report.running == {"MatMulNBits": 1}
    labels = {product.role: product.label for product in inspect(made.path).products}
    assert labels["embedding/head"] == f"int8 g16-out {kind}"
    told = [note for layer in made.report.layers for note in layer.notes] + list(made.report.warnings)
    assert sum("plain ONNX" in line for line in told) == 1
    feed = {"i": np.arange(6, dtype=np.int64)[None]}
    # 8 bits move a weight by 0.4 % of its spread, in four products; int8 activations add as much
    assert relative_error(run(path, feed)["y"], run(made.path, feed)["y"]) <= 0.02


@pytest.mark.parametrize(
    ("stop", "told"),
    [(None, "plain ONNX: no kernel reads the weights"), ("quantize_weights", "not checked: stopped before")],
)
def test_the_summary_says_what_runs(stop: str | None, told: str, tmp_path: Path) -> None:
    model = make_model(
        "g (float[M,64] x) => (float[M,96] z) { y = MatMul(x, w) z = Relu(y) }", {"w": weight(64, 96)}
    )
    made = compile(
        save_model(model, tmp_path),
        "w4a16-hqq",
        settings=["group_axis=output"],
        output=tmp_path / "out",
        options=Options(stop_after=stop),
    )
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(compile_summary(made.report, "out"))
    assert told in console.export_text()


def test_it_is_said_beforehand(tmp_path: Path) -> None:
    model = make_model(
        "g (float[M,64] x) => (float[M,96] z) { y = MatMul(x, w) z = Relu(y) }", {"w": weight(64, 96)}
    )
    ahead = dry_run(save_model(model, tmp_path), "w4a16-hqq", settings=["group_axis=output"])
    (planned,) = ahead.plan.quantized
    assert planned.notes == [
        "group_size 64 does not divide N=96: 32 used",
        "int4 g32-out asym float-zp: no kernel reads groups of rows; stored as plain ONNX, which ONNX Runtime unpacks in every run; "
        "set group_axis: input for one",
    ]
    assert planned.stored_bytes == 64 * (48 + 2 * 3 * 2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stopped_compile_goes_on_with_the_same_bytes(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = checkpoints.Checkpoints.add

    def stopping(self: checkpoints.Checkpoints, part: str, content: Any) -> None:
        add(self, part, content)
        raise KeyboardInterrupt

    model = make_model(
        "g (float[M,48] x) => (float[M,64] z) { y = MatMul(x, w) r = Relu(y) h = MatMul(r, v) z = Neg(h) }",
        {"w": weight(48, 80), "v": weight(80, 64, seed=1)},
    )
    path = save_model(model, tmp_path)
    settings = _settings(kind, 4, 32)
    whole = compile(path, "w4a16-hqq", settings=settings, output=tmp_path / "whole").folder
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoints.Checkpoints, "add", stopping)
        compile(path, "w4a16-hqq", settings=settings, output=tmp_path / "out")
    again = compile(
        path, "w4a16-hqq", settings=settings, output=tmp_path / "out", options=Options(resume=True)
    )
    assert again.report.resumed == 1
    for file in ("model.onnx", "model.onnx.data"):
        assert (whole / file).read_bytes() == (again.folder / file).read_bytes()
