"""JoinProducts: which products become one node, and that each output stays what it was."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from qcompiler.graph.operator_body import OUR_DOMAIN
from qcompiler.passes.join_products import JoinProducts
from qcompiler.passes.use_own_kernels import UseOwnKernels
from qcompiler.report.quantized_products import read_products
from tests.small_models import Array, apply_pass, assert_equal_outputs, make_model, op_types, run

SAME = 0.0  # the body has the nodes that were there


def _model(nodes: str, outputs: str, more_inputs: str = "") -> onnx.ModelProto:
    """``nodes`` may read codes a, b, c, d [N, 1, 32] of 8 bits for N = 16, 8, 40 and 16, scales sa .. sd, zero points za and biases ba, bb."""
    rng = np.random.default_rng(0)
    constants: dict[str, Array] = {}
    for name, n in (("a", 16), ("b", 8), ("c", 40), ("d", 16)):
        constants[name] = rng.integers(0, 256, (n, 1, 32)).astype(np.uint8)
        constants[f"s{name}"] = rng.uniform(0.01, 0.02, (n, 1)).astype(np.float32)
        constants[f"z{name}"] = rng.integers(0, 256, (n, 1)).astype(np.uint8)
        constants[f"b{name}"] = rng.standard_normal(n).astype(np.float32)
    used = {name: array for name, array in constants.items() if name in nodes}
    text = f"g (float[M,32] x{more_inputs}) => ({outputs}) {{ {nodes} }}"
    return make_model(text, used, domains={"com.microsoft": 1})


def _product(name: str, n: int, x: str = "x", more: str = "", block_size: int = 32, level: int = 4) -> str:
    sizes = f"K=32, N={n}, bits=8, block_size={block_size}, accuracy_level={level}"
    return f"y{name} = com.microsoft.MatMulNBits<{sizes}>({x}, {name}, s{name}{more})"


def _outputs(**columns: int) -> str:
    return ", ".join(f"float[M,{n}] y{name}" for name, n in columns.items())


def _joined(model: onnx.ModelProto) -> tuple[ir.Model, JoinProducts]:
    ours, _ = apply_pass(UseOwnKernels(), model)
    entry = JoinProducts()
    return apply_pass(entry, ours)[0], entry


def _feed() -> dict[str, Array]:
    return {"x": np.random.default_rng(1).standard_normal((3, 32)).astype(np.float32)}


def test_two_and_three_products_on_one_x_become_one_node() -> None:
    for names in ({"a": 16, "b": 8}, {"a": 16, "b": 8, "c": 40}):
        model = _model(" ".join(_product(name, n) for name, n in names.items()), _outputs(**names))
        after, entry = _joined(model)
        (node,) = after.graph
        op = {2: "MatMulNBitsPair", 3: "MatMulNBitsTriple"}[len(names)]
        assert (node.domain, node.op_type, len(node.outputs)) == (OUR_DOMAIN, op, len(names))
        assert [function.name for function in after.functions.values()] == [op]
        assert [lowered.packed for lowered in entry.lowered] == list(names)
        assert_equal_outputs(run(model, _feed()), run(after, _feed()), SAME)
        assert not apply_pass(JoinProducts(), after)[1]


@pytest.mark.parametrize("level", [1, 4])
def test_the_level_goes_along(level: int) -> None:
    products = f"{_product('a', 16, level=level)} {_product('b', 8, level=level)}"
    model = _model(products, _outputs(a=16, b=8))
    after, _ = _joined(model)
    assert after.graph[0].attributes.get_int("accuracy_level") == level
    assert_equal_outputs(run(model, _feed()), run(after, _feed()), SAME)


def test_zero_points_and_biases_go_along_where_there_are_any() -> None:
    model = _model(
        f"{_product('a', 16, more=', za, , ba')} {_product('b', 8)} {_product('c', 40, more=', , , bc')}",
        _outputs(a=16, b=8, c=40),
    )
    after, _ = _joined(model)
    assert op_types(after) == ["MatMulNBitsTriple"]
    assert_equal_outputs(run(model, _feed()), run(after, _feed()), SAME)


def test_of_four_products_three_are_joined() -> None:
    model = _model(
        " ".join(_product(name, n) for name, n in (("a", 16), ("b", 8), ("c", 40), ("d", 16))),
        _outputs(a=16, b=8, c=40, d=16),
    )
    after, _ = _joined(model)
    assert sorted(op_types(after)) == ["MatMulNBits", "MatMulNBitsTriple"]
    assert sorted(function.name for function in after.functions.values()) == [
        "MatMulNBits",
        "MatMulNBitsTriple",
    ]
    assert_equal_outputs(run(model, _feed()), run(after, _feed()), SAME)


@pytest.mark.parametrize(
    ("nodes", "outputs"),
    [
        (f"h = Neg(x) {_product('a', 16)} {_product('b', 8, x='h')}", _outputs(a=16, b=8)),
        (f"{_product('a', 16)} {_product('b', 8, block_size=64)}", _outputs(a=16, b=8)),
        (f"{_product('a', 16)} {_product('b', 8, level=1)}", _outputs(a=16, b=8)),
        (f"h = Neg(bb) {_product('a', 16)} {_product('b', 8, more=', , , h')}", _outputs(a=16, b=8)),
    ],
    ids=["another x", "another block size", "another level", "a bias that is computed"],
)
def test_what_differs_stays_apart(nodes: str, outputs: str) -> None:
    model = _model(nodes, outputs)
    ours, _ = apply_pass(UseOwnKernels(), model)
    after, modified = apply_pass(JoinProducts(), ours)
    assert not modified and op_types(after).count("MatMulNBits") == 2


def test_a_reader_between_the_products_still_has_what_it_reads() -> None:
    model = _model(f"{_product('a', 16)} r = Relu(ya) {_product('d', 16)} y = Add(r, yd)", "float[M,16] y")
    after, _ = _joined(model)
    assert op_types(after) == ["MatMulNBitsPair", "Relu", "Add"]
    assert_equal_outputs(run(model, _feed()), run(after, _feed()), SAME)


def test_every_weight_is_still_reported() -> None:
    model = _model(f"{_product('a', 16, more=', za')} {_product('b', 8)}", _outputs(a=16, b=8))
    after, _ = _joined(model)
    found = [(w.name, w.shape, w.bits, w.group_size, w.symmetric) for w in read_products(after)]
    assert found == [("a", (16, 32), 8, 32, False), ("b", (8, 32), 8, 32, True)]


@pytest.mark.parametrize("second", ["rtn", "gptq"])
def test_products_are_joined_where_our_notes_agree(second: str) -> None:
    model = ir.serde.deserialize_model(_model(f"{_product('a', 16)} {_product('b', 8)}", _outputs(a=16, b=8)))
    for node, algorithm, other in zip(model.graph, ("rtn", second), "ab", strict=True):
        node.metadata_props.update({"qcompiler.algorithm": algorithm, "another's": other})
    after, _ = _joined(ir.serde.serialize_model(model))
    if second == "gptq":
        assert op_types(after) == ["MatMulNBits", "MatMulNBits"]
    else:
        assert after.graph[0].metadata_props == {"qcompiler.algorithm": "rtn", "qcompiler.products": "\n"}
