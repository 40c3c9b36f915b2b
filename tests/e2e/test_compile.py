"""compile() on small models: what runs afterwards, what of the model stays, and what is said when it cannot."""

import json
from pathlib import Path

import numpy as np
import pytest

from qcompiler.api import Options, dry_run
from qcompiler.errors import InputError, PromiseError, SchemeError
from qcompiler.graph import model_file
from tests.compiled_models import (
    EIGHT_BIT,
    MLP,
    Compile,
    check_outputs,
    loaded_model,
    normal,
    tied_decoder,
    two_layers,
)
from tests.small_models import make_model, op_types, save_model, weight

# ---- opsets ----


@pytest.mark.parametrize("opset", [11, 13, 17, 18, 20])
def test_older_opsets_are_raised(opset: int, quantize: Compile) -> None:
    model = make_model(
        "g (float[M,64] x) => (float[M,32] y) { h = MatMul(x, w1) u = ReduceMean<axes=[1], keepdims=1>(h) d = Sub(h, u)"
        " s = Softmax<axis=1>(d) y = Gemm<transB=1>(s, w2, b) }"
        if opset < 18
        else "g (float[M,64] x) => (float[M,32] y) { h = MatMul(x, w1) s = Softmax<axis=1>(h) y = Gemm<transB=1>(s, w2, b) }",
        {"w1": weight(64, 96), "w2": weight(32, 96, seed=1), "b": weight(32)},
        opset=opset, ir_version=4 if opset == 11 else 8,
    )  # fmt: skip
    compiled = quantize(model)
    after = loaded_model(compiled)
    assert {entry.domain: entry.version for entry in after.opset_import}[""] >= 21
    assert compiled.report.running == {"MatMulNBits": 2}
    check_outputs(model, {"x": normal(5, 64)}, compiled, EIGHT_BIT)


# ---- refusals ----


def test_nothing_to_quantize(quantize: Compile) -> None:
    model = make_model("g (float[M,64] x) => (float[M,64] y) { y = Relu(x) }")
    with pytest.raises(InputError, match="nothing to quantize: the model has no MatMul"):
        quantize(model)
    products = make_model("g (float[M,64] x, float[64,8] z) => (float[M,8] y) { y = MatMul(x, z) }")
    with pytest.raises(InputError, match="both factors are activations"):
        quantize(products)


@pytest.mark.parametrize("recipe", ["w4a16-rtn", "w4a16-awq"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_weight_that_is_not_finite(bad: float, recipe: str, quantize: Compile, tmp_path: Path) -> None:
    broken = weight(64, 96)
    broken[3, 4] = bad
    model = make_model(MLP, {"w1": broken, "w2": weight(96, 32)})
    with pytest.raises(SchemeError, match=r"^w1: "):
        quantize(model, recipe, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.work").exists()


@pytest.mark.parametrize("recipe", ["w4a16-rtn", "w8a16-rtn", "w4a16-awq"])
def test_a_compiled_model_has_nothing_left(recipe: str, quantize: Compile) -> None:
    compiled = quantize(tied_decoder(), recipe)
    with pytest.raises(InputError, match=r"nothing to quantize.*already quantized") as caught:
        quantize(compiled.path, recipe)
    assert caught.value.exit_status == 2


def test_the_output_is_refused_where_it_exists(quantize: Compile, tmp_path: Path) -> None:
    from qcompiler.errors import ResourceError

    quantize(two_layers(), output=tmp_path / "out")
    with pytest.raises(ResourceError, match="exists"):
        quantize(two_layers(), output=tmp_path / "out")
    quantize(two_layers(), output=tmp_path / "out", options=Options(force=True))


def test_a_lost_product_breaks_the_promise(quantize: Compile, monkeypatch: pytest.MonkeyPatch) -> None:
    from qcompiler.targets import running_nodes as target

    real = target._optimized_nodes
    monkeypatch.setattr(
        target,
        "_optimized_nodes",
        lambda path, prepare: [n for n in real(path, prepare) if n.name != "second"],
    )
    model = make_model("g (float[M,64] x) => (float[M,64] y) { [first] h = MatMul(x, v) [second] y = MatMul(h, w) }",
                       {"v": weight(64, 64), "w": weight(64, 64, seed=1)})  # fmt: skip
    with pytest.raises(PromiseError, match=r"^second: should run as MatMulNBits"):
        quantize(model)


# ---- what stays ----


def _contents(folder: Path) -> dict[str, bytes]:
    names = ("model.onnx", "model.onnx.data", "recipe.yaml", "manifest.json")
    return {name: (folder / name).read_bytes() for name in names if (folder / name).exists()}


@pytest.mark.parametrize("recipe", ["w4a16-rtn", "w4a16-awq"])
def test_the_same_run_gives_the_same_bytes(recipe: str, quantize: Compile, tmp_path: Path) -> None:
    path = save_model(tied_decoder(), tmp_path)
    settings = ["calib.samples=2", "calib.length=16"]
    first = quantize(path, recipe, settings=settings)
    second = quantize(path, recipe, settings=settings)
    assert _contents(first.folder) == _contents(second.folder)
    assert {"model.onnx", "recipe.yaml", "manifest.json"} <= set(_contents(first.folder))
    manifest = json.loads((first.folder / "manifest.json").read_text())
    assert manifest["output"] == model_file.sha256_of(first.path)


def test_the_input_is_not_written_to(quantize: Compile, tmp_path: Path) -> None:
    path = save_model(two_layers(), tmp_path)
    before = path.read_bytes()
    quantize(path, "w4a16-awq")
    assert path.read_bytes() == before


def test_names_types_and_metadata_stay(quantize: Compile) -> None:
    model = make_model(
        "g (float[batch,64] x) => (float[batch,96] h, float[batch,32] y) { h = MatMul(x, w1) r = Relu(h) y = Gemm(r, w2, b) }",
        {"w1": weight(64, 96), "w2": weight(96, 32, seed=1), "b": weight(32)},
    )
    entry = model.metadata_props.add()
    entry.key, entry.value = "author", "someone"
    model.doc_string, model.producer_name = "words", "exporter"
    names = ["first", "between", "second"]
    for name, node in zip(names, model.graph.node, strict=True):
        node.name = name
        note = node.metadata_props.add()
        note.key, note.value = "pkg.torch.onnx.name_scopes", f"['', '{name}', 'call']"
    compiled = quantize(model)
    after = loaded_model(compiled)
    assert [(node.op_type, node.name) for node in after.graph.node] == [
        ("MatMulNBits", "first"),
        ("Relu", "between"),
        ("MatMulNBits", "second"),
    ]
    for name, node in zip(names, after.graph.node, strict=True):
        notes = {note.key: note.value for note in node.metadata_props}
        assert notes["pkg.torch.onnx.name_scopes"] == f"['', '{name}', 'call']"
    assert list(after.graph.input) == list(model.graph.input)
    assert list(after.graph.output) == list(model.graph.output)
    assert {e.key: e.value for e in after.metadata_props}["author"] == "someone"
    assert (after.doc_string, after.producer_name) == ("words", "exporter")
    check_outputs(model, {"x": normal(3, 64)}, compiled, EIGHT_BIT)


@pytest.mark.parametrize("opset", [11, 17, 21])
def test_products_declare_their_outputs(opset: int, quantize: Compile) -> None:
    model = make_model(
        "g (float[M,64] x) => (float[M,32] z) { h = MatMul(x, w1) r = Relu(h) y = Gemm(r, w2, b) z = Relu(y) }",
        {"w1": weight(64, 96), "w2": weight(96, 32, seed=1), "b": weight(32)}, opset=opset, ir_version=7,
    )  # fmt: skip
    after = loaded_model(quantize(model))
    declared = {
        v.name: [d.dim_value or d.dim_param for d in v.type.tensor_type.shape.dim]
        for v in after.graph.value_info
    }
    outputs = [n.output[0] for n in after.graph.node if n.op_type == "MatMulNBits"]
    assert [declared[name] for name in outputs] == [["M", 96], ["M", 32]]


def test_a_plan_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = save_model(two_layers(), tmp_path)
    made = dry_run(path, "w4a16-awq").plan
    assert [planned.weight.name for planned in made.quantized] == ["w1", "w2"]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["normalize", "quantize_weights"])
def test_stopping_after_a_pass_leaves_a_valid_model(name: str, quantize: Compile) -> None:
    model = two_layers()
    compiled = quantize(model, options=Options(stop_after=name))
    assert ("DequantizeLinear" in op_types(loaded_model(compiled))) == (name == "quantize_weights")
    check_outputs(model, {"x": normal(5, 64)}, compiled, EIGHT_BIT)


# ---- graphs that ONNX Runtime's optimizer changes ----


def test_nodes_without_names_and_with_equal_names(quantize: Compile) -> None:
    model = make_model(
        "g (float[M,64] x) => (float[M,64] y) { [n] h = MatMul(x, v) [n] r = MatMul(h, w) y = MatMul(r, u) }",
        {"v": weight(64, 64), "w": weight(64, 64, seed=1), "u": weight(64, 64, seed=2)},
    )
    compiled = quantize(model)
    assert compiled.report.running == {"MatMulNBits": 3}


def test_a_product_that_nothing_reads(quantize: Compile) -> None:
    model = make_model(
        "g (float[M,64] x) => (float[M,64] y) { dead = MatMul(x, v) y = MatMul(x, w) }",
        {"v": weight(64, 64), "w": weight(64, 64, seed=1)},
    )
    compiled = quantize(model)
    assert compiled.report.running == {"MatMulNBits": 1}


def test_a_product_of_a_constant(quantize: Compile) -> None:
    model = make_model(
        "g (float[M,64] x) => (float[M,64] y) { c = MatMul(table, v) d = Add(x, c) y = MatMul(d, w) }",
        {"table": weight(1, 64), "v": weight(64, 64), "w": weight(64, 64, seed=1)},
    )
    compiled = quantize(model)
    check_outputs(model, {"x": normal(5, 64)}, compiled, EIGHT_BIT)


def test_the_same_product_twice(quantize: Compile) -> None:
    model = make_model(
        "g (float[M,64] x) => (float[M,64] y) { a = MatMul(x, w) r = Relu(a) b = MatMul(x, w) y = Add(r, b) }",
        {"w": weight(64, 64)},
    )
    compiled = quantize(model)
    check_outputs(model, {"x": normal(5, 64)}, compiled, EIGHT_BIT)


def test_a_branch_on_a_constant(quantize: Compile) -> None:
    model = make_model(
        """g (float[M,64] x) => (float[M,64] y) {
        c = Cast<to=9>(flag)
        y = If(c) <then_branch = t () => (float[M,64] z) { z = MatMul(x, v) }, else_branch = e () => (float[M,64] q) { q = Neg(x) }> }""",
        {"v": weight(64, 64), "flag": np.array(1, np.int64)},
    )
    compiled = quantize(model)
    check_outputs(model, {"x": normal(5, 64)}, compiled, EIGHT_BIT)


@pytest.mark.parametrize("shape", [(1, 32), (1, 1, 32), (1,), (5, 1)])
def test_biases_of_other_shapes(shape: tuple[int, ...], quantize: Compile) -> None:
    model = make_model(
        "g (float[5,64] x) => (float[A,B,C] q) { h = MatMul(x, w) y = Add(h, b) q = Relu(y) }".replace(
            "[A,B,C]", "[1,5,32]" if len(shape) == 3 else "[5,32]"
        ),
        {"w": weight(64, 32), "b": weight(*shape)},
    )
    compiled = quantize(model)
    assert compiled.report.running == {"MatMulNBits": 1}
    check_outputs(model, {"x": normal(5, 64)}, compiled, EIGHT_BIT)
