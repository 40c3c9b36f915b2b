"""Weights with offsets to MatMulNBits beside sums over groups: equal numbers, shared sums, and what is left alone."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from qcompiler.graph.offset_product import offset_of
from qcompiler.graph.quantized import register_constants
from qcompiler.graph.weight_form import emit_weight
from qcompiler.graph.weight_store import WeightStore
from qcompiler.passes.lower_with_offsets import LowerWithOffsets
from qcompiler.quant.affine_tensor import AffineTensor
from qcompiler.quant.scheme import Granularity, QuantScheme
from tests.small_models import assert_equal_outputs, op_types, run

FLOAT = ir.DataType.FLOAT
K, N = 72, 24


def _weight(group: int, seed: int) -> AffineTensor:
    rng = np.random.default_rng(seed)
    scheme = QuantScheme(4, False, Granularity.GROUP, group, zero_point="float")
    scale, point = (
        rng.uniform(*ends, scheme.scale_shape(N, K)).astype(np.float32) for ends in ((0.01, 0.1), (-3, 18))
    )
    return AffineTensor(scheme, rng.integers(0, 16, (N, K), dtype=np.uint8), scale, point)


def _model(store: WeightStore, groups: tuple[int, ...], rank_known: bool = True) -> ir.Model:
    """A product of one input with a weight of each group size."""
    x = ir.Value(name="x", type=ir.TensorType(FLOAT), shape=ir.Shape(["B", "M", K]) if rank_known else None)
    graph = ir.Graph([x], [], nodes=[], opset_imports={"": 21}, name="g")
    for index, group in enumerate(groups):
        nodes = emit_weight(store, _weight(group, index), "kn", f"w{index}", FLOAT)
        graph.extend(nodes)
        for node in nodes:
            register_constants(graph, node)
        y = ir.Value(name=f"y{index}", type=ir.TensorType(FLOAT), shape=ir.Shape(["B", "M", N]))
        graph.append(ir.node("MatMul", [x, nodes[-1].outputs[0]], outputs=[y], name=f"product{index}"))
        graph.outputs.append(y)
    return ir.Model(graph, ir_version=10)


@pytest.mark.parametrize("rank_known", [True, False])
@pytest.mark.parametrize("group", [16, 32])  # of K = 72 the last group is short for both
def test_the_same_numbers(group: int, rank_known: bool, tmp_path: Path) -> None:
    feed = {"x": np.random.default_rng(9).standard_normal((2, 5, K)).astype(np.float32)}
    with WeightStore(tmp_path) as store:
        model = _model(store, (group, group), rank_known)
        before = run(model, feed)
        lowering = LowerWithOffsets(0)
        assert lowering(model).modified
        assert len(lowering.lowered) == 2
        assert_equal_outputs(before, run(model, feed), 1e-6)  # float32 sums of 72 in another order
        assert not LowerWithOffsets(0)(model).modified


def test_products_of_one_activation_share_its_sums(tmp_path: Path) -> None:
    with WeightStore(tmp_path) as store:
        model = _model(store, (16, 16, 32))
        LowerWithOffsets(0)(model)
    kernels = [node for node in model.graph if node.op_type == "MatMulNBits"]
    sums = {offset_of(node) is not None for node in kernels}
    assert len(kernels) == 3 and sums == {True}
    # three products' offsets, and one product of sums for each of two group sizes (K = 72 has a short last group)
    assert op_types(model).count("MatMul") == 3 + 2


def test_a_weight_that_something_else_reads_stays(tmp_path: Path) -> None:
    with WeightStore(tmp_path) as store:
        model = _model(store, (16,))
        product = next(node for node in model.graph if node.op_type == "MatMul")
        other = ir.node("Abs", [product.inputs[1]], name="other")
        model.graph.append(other)
        other.outputs[0].name, other.outputs[0].type = "z", ir.TensorType(FLOAT)
        model.graph.outputs.append(other.outputs[0])
        lowering = LowerWithOffsets(0)
        assert not lowering(model).modified
        assert lowering.left == ["w0: stored as plain ONNX: other (Abs) reads it, and is no product with it"]


def test_groups_that_no_kernel_takes_are_told(tmp_path: Path) -> None:
    with WeightStore(tmp_path) as store:
        model = _model(store, (24,))
        lowering = LowerWithOffsets(0)
        assert not lowering(model).modified
        assert lowering.left == ["w0: stored as plain ONNX: MatMulNBits has no blocks of 24"]
