"""Two-level scales from numbers to nodes and back: equal bit for bit in memory, in the spill file, in a saved model and in ONNX Runtime."""

import itertools
import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from qcompiler.graph import model_file
from qcompiler.graph.quantized import register_constants
from qcompiler.graph.weight_form import emit_weight, read_weight, record_of, restore_weight
from qcompiler.graph.weight_store import WeightStore
from qcompiler.quant.affine import store_scale
from qcompiler.quant.scheme import Granularity, QuantScheme, ScaleDtype
from qcompiler.quant.two_level import Levels, TwoLevelTensor
from tests.small_models import run

FLOAT, FLOAT16 = ir.DataType.FLOAT, ir.DataType.FLOAT16
SCHEMES = [
    QuantScheme(bits, symmetric, Granularity.GROUP, group, two_level=True)
    for bits, symmetric, group in itertools.product((2, 3, 4), (True, False), (16, 32))
]
SHAPES = [(8, 128), (7, 50), (1, 16)]  # N, K: whole groups and super-blocks; short ones of both; one row


def random_two_level(scheme: QuantScheme, n: int, k: int, seed: int = 0) -> TwoLevelTensor:
    rng = np.random.default_rng(seed)
    shape, supers = scheme.scale_shape(n, k), scheme.supers(n, k)

    def levels(bias: int) -> Levels:
        step = store_scale(rng.uniform(1e-4, 1e-2, supers).astype(np.float32), "float16")
        return Levels(rng.integers(0, 1 << scheme.level_bits, shape, dtype=np.uint8), step, bias)

    bias = 1 << (scheme.level_bits - 1) if scheme.symmetric else 0
    codes = rng.integers(0, scheme.max_code + 1, (n, k), dtype=np.uint8)
    return TwoLevelTensor(scheme, codes, levels(bias), None if scheme.symmetric else levels(0))


def _model(nodes: list[ir.Node], dtype: ir.DataType) -> ir.Model:
    """y is the weight that the nodes yield."""
    last = nodes[-1].outputs[0]
    y = ir.Value(name="y", type=ir.TensorType(dtype), shape=last.shape)
    graph = ir.Graph(
        [],
        [y],
        nodes=[*nodes, ir.node("Identity", [last], outputs=[y], name="out")],
        opset_imports={"": 25},
        name="g",
    )
    for node in nodes:
        register_constants(graph, node)
    return ir.Model(graph, ir_version=11)


@pytest.mark.parametrize("dtype", [FLOAT, FLOAT16])
@pytest.mark.parametrize("layout", ["kn", "nk"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.label)
def test_the_same_numbers_everywhere(scheme: QuantScheme, shape, layout, dtype, tmp_path: Path) -> None:
    held: ScaleDtype = "float32" if dtype == FLOAT else "float16"
    scheme = QuantScheme(
        scheme.bits, scheme.symmetric, scheme.granularity, scheme.group_size, held, two_level=True
    )
    weight = random_two_level(scheme, *shape)
    expected = weight.dequantize()
    with WeightStore(tmp_path / "store") as store:
        nodes = emit_weight(store, weight, layout, "w", dtype)
        again = restore_weight(store, json.loads(json.dumps(record_of(nodes[-1]))), "w", dtype)
    for made in (nodes, again):
        found = read_weight(made[-1])
        assert found is not None and found[1] == layout
        np.testing.assert_array_equal(found[0].dequantize(), expected)
        assert found[0].scheme == scheme
        np.testing.assert_array_equal(found[0].dequantize(slice(0, 1)), expected[:1])
    path = model_file.save(_model(nodes, dtype), tmp_path / "out")
    wanted = expected.T if layout == "kn" else expected
    for optimize in (False, True):
        np.testing.assert_array_equal(run(path, {}, optimize)["y"], wanted.astype(dtype.numpy()))
    loaded = model_file.load(path)
    read = read_weight(list(loaded.graph)[-2])
    assert read is not None and read[1] == layout
    np.testing.assert_array_equal(read[0].dequantize(), expected)


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.label)
def test_bytes_in_the_file_are_those_of_the_scheme(scheme: QuantScheme, tmp_path: Path) -> None:
    n, k = 32, 256
    with WeightStore(tmp_path) as store:
        nodes = emit_weight(store, random_two_level(scheme, n, k), "kn", "w", FLOAT)
        assert (
            abs(store.nbytes - scheme.stored_bytes(n, k)) < 7 * 64
        )  # 7 parts at the most, each aligned to 64
    assert record_of(nodes[-1])["shape"] == [n, k]
