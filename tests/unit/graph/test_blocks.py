"""The block of every node: by names, by repetition, by neighbours."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from models import efficientnet_lite0, minilm, smollm2, tiny_lm
from models.cache import UnavailableError
from qcompiler.graph import model_file
from qcompiler.graph.blocks import blocks
from qcompiler.graph.edits import all_nodes
from tests.small_models import make_model, weight


def _by_output(model: onnx.ModelProto) -> dict[str, str]:
    return {node.outputs[0].name or "": block for node, block in blocks(ir.from_proto(model)).items()}


def _residual(names: list[str]) -> onnx.ModelProto:
    """For each name two products and a residual between two norms that are made of plain nodes; then a head."""
    lines, weights, x = ["x0 = Identity (x)"], {}, "x0"
    for i, name in enumerate(names):
        lines += [
            f"s{i} = Mul ({x}, {x})", f"m{i} = ReduceMean <keepdims = 1> (s{i}, axes)", f"r{i} = Sqrt (m{i})",
            f"n{i} = Div ({x}, r{i})", f"u{i} = MatMul (n{i}, {name}.up.weight)", f"g{i} = Sigmoid (u{i})",
            f"a{i} = Mul (u{i}, g{i})", f"k{i} = Mul (a{i}, mask)", f"d{i} = MatMul (k{i}, {name}.down.weight)",
            f"y{i} = Add ({x}, d{i})",
        ]  # fmt: skip
        weights[f"{name}.up.weight"] = weight(16, 32, seed=i)
        weights[f"{name}.down.weight"] = weight(32, 16, seed=i + 50)
        x = f"y{i}"
    lines += [f"hs = Mul ({x}, {x})", f"hn = Div ({x}, hs)", "logits = MatMul (hn, lm.head.weight)"]
    weights["lm.head.weight"] = weight(16, 40)
    lines.insert(0, "mask = Cos (p)")
    text = "g (float[M,16] x, float[32] p) => (float[M,40] logits) {" + "\n".join(lines) + "}"
    text = text.replace("{", "{ axes = Constant <value_ints = [-1]> ()", 1)
    return make_model(_quoted(text, weights), {_plain(name): array for name, array in weights.items()})


def _plain(name: str) -> str:
    return name.replace(".", "_dot_")


def _quoted(text: str, weights: dict[str, np.ndarray]) -> str:
    """The text form knows no dots in names."""
    for name in weights:
        text = text.replace(name, _plain(name))
    return text


def _dotted(model: onnx.ModelProto) -> onnx.ModelProto:
    for tensor in model.graph.initializer:
        tensor.name = tensor.name.replace("_dot_", ".")
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = name.replace("_dot_", ".")
    return model


EXPECTED = {
    "mask": "", "s0": "A", "m0": "A", "r0": "A", "n0": "A", "u0": "A", "g0": "A", "a0": "A", "k0": "A", "d0": "A", "y0": "A",
    "s1": "B", "m1": "B", "r1": "B", "n1": "B", "u1": "B", "g1": "B", "a1": "B", "k1": "B", "d1": "B", "y1": "B",
    "hs": "", "hn": "", "logits": "",
}  # fmt: skip


def _expected(first: str, second: str) -> dict[str, str]:
    return {name: {"A": first, "B": second}.get(block, block) for name, block in EXPECTED.items()}


def test_nodes_without_names_are_in_the_block_of_the_weights_around_them() -> None:
    found = _by_output(_dotted(_residual(["model.layers.0.mlp", "model.layers.1.mlp"])))
    assert {name: found[name] for name in EXPECTED} == _expected("model.layers.0", "model.layers.1")


def test_without_any_name_stretches_that_repeat_are_numbered() -> None:
    found = _by_output(_residual(["wa", "wb"]))
    assert {name: found[name] for name in EXPECTED} == _expected("block.0", "block.1")


def test_a_weight_that_many_read_tells_no_block() -> None:
    """Exporters merge equal constants: the gains of all norms may have the name of the first."""
    model = _dotted(_residual(["model.layers.0.mlp", "model.layers.1.mlp"]))
    gain = onnx.numpy_helper.from_array(np.ones(16, np.float32), "model.layers.0.norm.weight")
    model.graph.initializer.append(gain)
    for index in (0, 1):
        place = next(i for i, node in enumerate(model.graph.node) if node.output[0] == f"n{index}")
        model.graph.node[place].output[0] = f"plain{index}"
        model.graph.node.insert(
            place + 1, onnx.helper.make_node("Mul", [f"plain{index}", gain.name], [f"n{index}"])
        )
    found = _by_output(model)
    assert (found["n0"], found["n1"], found["plain1"]) == (
        "model.layers.0",
        "model.layers.1",
        "model.layers.1",
    )


def test_a_list_without_products_is_no_list_of_blocks() -> None:
    model = make_model(
        "g (float[M,16] x) => (float[M,16] y) { a = Mul (x, s) b = Mul (a, t) c = MatMul (b, w) y = MatMul (c, v) }",
        {"s": weight(16), "t": weight(16, seed=1), "w": weight(16, 16), "v": weight(16, 16, seed=1)},
    )
    for node, name in zip(
        model.graph.node, ("/scales.0/Mul", "/scales.1/Mul", "/a/MatMul", "/b/MatMul"), strict=True
    ):
        node.name = name
    assert set(_by_output(model).values()) == {""}


def test_bodies_without_names_are_in_the_block_of_their_node() -> None:
    text = """g (float[M,16] x, bool c) => (float[M,16] y) {
        a = MatMul (x, w0)  b = MatMul (a, v0)
        e = If (c) <then_branch = t () => (float[M,16] z) { z = Relu (b) }, else_branch = f () => (float[M,16] q) { q = Neg (b) }>
        d = MatMul (e, w1)  y = MatMul (d, v1)
    }"""
    model = make_model(
        text, {name: weight(16, 16, seed=i) for i, name in enumerate(("w0", "v0", "w1", "v1"))}
    )
    for node in model.graph.node:
        if node.op_type == "MatMul":
            node.name = f"/blocks.{node.input[1][1]}/{node.input[1][0]}/MatMul"
        if node.op_type == "If":
            node.name = "/blocks.0/If"
    found = _by_output(model)
    assert found["z"] == found["q"] == "blocks.0"


def _strip_names(model: ir.Model) -> None:
    for number, node in enumerate(all_nodes(model)):
        node.name = f"n{number}"
        node.metadata_props.clear()
        for place, value in enumerate(node.outputs):
            if not value.is_graph_output():
                value.name = f"v{number}_{place}"
    for number, value in enumerate(list(model.graph.initializers.values())):
        value.name = f"w{number}"


def _built(module: Any) -> Path:
    try:
        return Path(module.build().path)
    except UnavailableError as error:
        pytest.skip(str(error))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "count", "first"),
    [
        (tiny_lm, 4, "model.layers.0"),
        (minilm, 6, "encoder.layer.0"),
        (efficientnet_lite0, 16, "_blocks.0"),
        (smollm2, 30, "model.layers.0"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_real_models(module: Any, count: int, first: str) -> None:
    model = model_file.load(_built(module))
    began = time.perf_counter()
    named = blocks(model)
    assert time.perf_counter() - began < 1.0  # 0.03 s of SmolLM2 where it was written
    assert len(named) == len(list(all_nodes(model)))
    assert len(set(named.values()) - {""}) == count and first in named.values()
    assert blocks(model) == named
    _strip_names(model)
    numbered = blocks(model)
    # The first block of EfficientNet has a product less than the others.
    assert len(set(numbered.values()) - {""}) == count - (module is efficientnet_lite0)
    # Products are together as they were, whatever the blocks are called.
    products = [node for node in model.graph if node.op_type in ("MatMul", "Conv") and named[node]]
    together = {(named[node], numbered[node]) for node in products}
    assert len(together) == count
