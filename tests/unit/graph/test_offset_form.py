"""offset_form: what was emitted is found, and what looks like it but computes something else is not."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from qcompiler.graph.float_zero_points import float_zero_point_nodes
from qcompiler.graph.offset_form import offset_form
from qcompiler.graph.stored_quantized import Layout, store_quantized
from qcompiler.graph.weight_store import WeightStore
from qcompiler.quant.affine_tensor import AffineTensor
from qcompiler.quant.scheme import Granularity, QuantScheme

FLOAT, FLOAT16 = ir.DataType.FLOAT, ir.DataType.FLOAT16
N, K, GROUP = 24, 72, 16  # the last group is short
GROUPS = -(-K // GROUP)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[WeightStore]:
    with WeightStore(tmp_path) as opened:
        yield opened


def _nodes(store: WeightStore, layout: Layout, dtype: ir.DataType) -> dict[str, ir.Node]:
    """A weight with float zero points, each node by what its name says after the weight's."""
    rng = np.random.default_rng(0)
    scheme = QuantScheme(
        4,
        False,
        Granularity.GROUP,
        GROUP,
        "float32" if dtype == FLOAT else "float16",
        zero_point="float",
    )
    scale, point = (rng.uniform(0.5, 1, (N, GROUPS)).astype(np.float32) for _ in range(2))
    codes = rng.integers(0, 16, (N, K), dtype=np.uint8)
    stored = store_quantized(store, AffineTensor(scheme, codes, scale, point), "w")
    nodes = float_zero_point_nodes(stored, layout, "w", dtype)
    return {(node.name or "").removeprefix("w."): node for node in nodes}


@pytest.mark.parametrize("dtype", [FLOAT, FLOAT16])
@pytest.mark.parametrize("layout", ["kn", "nk"])
def test_what_was_emitted_is_found(layout: Layout, dtype: ir.DataType, store: WeightStore) -> None:
    nodes = _nodes(store, layout, dtype)
    form = offset_form(nodes["dequantize"])
    assert form is not None
    assert (form.shape, form.layout, form.bits, form.group) == ((N, K), layout, 4, GROUP)
    found = [node for node in nodes.values() if offset_form(node) is not None]
    assert found[-1] is nodes["dequantize"]


def _constant(array: object) -> ir.Value:
    return ir.Value(name="other", const_value=ir.Tensor(np.array(array, np.int64)))


Change = Callable[[dict[str, ir.Node]], None]


def _input(name: str, index: int, array: object) -> Change:
    return lambda nodes: nodes[name].replace_input_with(index, _constant(array))


def _with_steps(nodes: dict[str, ir.Node]) -> None:
    cut = nodes["rows.cut"]
    cut.resize_inputs(5)
    cut.replace_input_with(4, _constant([2]))


def _without_axes(nodes: dict[str, ir.Node]) -> None:
    nodes["rows.cut"].resize_inputs(3)


def _turned_offset(nodes: dict[str, ir.Node]) -> None:
    offset = nodes["offset.column"].inputs[0]
    assert offset is not None
    offset.shape = ir.Shape([GROUPS, N])


NEAR_MISSES: dict[str, Change] = {
    "a Slice that begins later": _input("rows.cut", 1, [1]),
    "a Slice of rows": _input("rows.cut", 3, [0]),
    "a Slice of every second column": _with_steps,
    "a Slice of rows and columns alike": _without_axes,
    "a Slice of more than the filling": _input("rows.cut", 2, [K - GROUP]),
    "offsets in another order": _turned_offset,
    "one offset for a column of groups": _input("offset.column", 1, [1, N * GROUPS, 1]),
    "other groups": _input("groups", 1, [N * GROUPS // 2, 2, GROUP]),
    "other rows": _input("rows", 1, [GROUPS * GROUP, N]),
}


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_near_misses(name: str, store: WeightStore) -> None:
    nodes = _nodes(store, "kn", FLOAT)
    NEAR_MISSES[name](nodes)
    assert offset_form(nodes["dequantize"]) is None


def test_scales_of_another_type_than_the_weight(store: WeightStore) -> None:
    nodes = _nodes(store, "kn", FLOAT16)
    nodes["rows.cast"].attributes.add(ir.AttrInt64("to", ir.DataType.BFLOAT16.value))
    assert offset_form(nodes["dequantize"]) is None
