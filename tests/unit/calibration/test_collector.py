"""Collector: statistics of each segment's inputs, from what the segments before it really compute."""

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from qcompiler.algorithms import Need
from qcompiler.calibration.borders import Borders
from qcompiler.calibration.collector import Collector
from qcompiler.calibration.windows import Tap, Window
from qcompiler.errors import CalibrationError, ResourceError
from qcompiler.quant.statistics import GroupedStatistics, InputStatistics
from tests.small_models import Array, make_model, weight

ALL = frozenset(Need)


def _chain() -> onnx.ModelProto:
    """x -> MatMul -> Relu -> MatMul -> Relu -> MatMul, a skip from x to the end."""
    return make_model(
        "g (float[M,16] x) => (float[M,16] y) { a = MatMul(x, u) b = Relu(a) c = MatMul(b, v) d = Relu(c) e = MatMul(d, w) y = Add(e, x) }",
        {"u": weight(16, 16), "v": weight(16, 16, seed=1), "w": weight(16, 16, seed=2)},
    )


def _feeds(samples: int = 3) -> list[dict[str, Array]]:
    return [
        {"x": np.random.default_rng(i).standard_normal((2 + i, 16)).astype(np.float32)}
        for i in range(samples)
    ]


def _collect(
    folder: Path, limit: int, feeds: list[dict[str, Array]] | None = None
) -> dict[str, InputStatistics]:
    """Statistics of every product's input, by name."""
    model = ir.from_proto(_chain())
    anchors = [n for n in model.graph if n.op_type == "MatMul"]
    collector = Collector(model, anchors, feeds or _feeds(), folder, limit, fewest=1)
    assert len(collector.segments) == 3
    seen: dict[str, InputStatistics] = {}
    for segment in collector.segments:
        taps = {
            Tap(n.inputs[0]): (16, ALL) for n in segment.nodes if n in anchors and n.inputs[0] is not None
        }
        for tap, statistics in collector.observe(segment, taps).items():
            assert isinstance(statistics, InputStatistics)
            seen[tap.value.name or ""] = statistics
        collector.advance(segment)
    return seen


def test_statistics_are_those_of_the_activations(tmp_path: Path) -> None:
    seen = _collect(tmp_path, 1 << 30)
    x = np.concatenate([feed["x"] for feed in _feeds()])
    b = np.maximum(x @ weight(16, 16), 0)
    d = np.maximum(b @ weight(16, 16, seed=1), 0)
    for name, rows in (("x", x), ("b", b), ("d", d)):
        assert seen[name].rows == len(rows)
        # two chained float32 products of 16 terms
        np.testing.assert_allclose(seen[name].hessian, rows.T @ rows / len(rows), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("limit", [0, 300])
def test_borders_in_files_give_the_same_bits(limit: int, tmp_path: Path) -> None:
    in_memory, spilled = _collect(tmp_path, 1 << 30), _collect(tmp_path, limit)
    for name, statistics in in_memory.items():
        np.testing.assert_array_equal(statistics.hessian, spilled[name].hessian)
    assert list(tmp_path.iterdir()) == []


def test_a_segment_sees_what_was_changed_before_it(tmp_path: Path) -> None:
    model = ir.from_proto(_chain())
    anchors = [n for n in model.graph if n.op_type == "MatMul"]
    collector = Collector(model, anchors, _feeds(), tmp_path, 1 << 30, fewest=1)
    first, second, _ = collector.segments
    one_column = np.zeros((16, 16), np.float32)
    one_column[:, 0] = 1
    model.graph.initializers["u"].const_value = ir.Tensor(one_column, name="u")
    collector.advance(first)
    value = anchors[1].inputs[0]
    assert value is not None
    seen = collector.observe(second, {Tap(value): (16, ALL)})[Tap(value)]
    assert seen is not None and seen.hessian is not None
    assert seen.hessian[0, 0] > 0 and not seen.hessian[1:].any()


def test_nodes_put_in_front_of_a_segment_belong_to_it(tmp_path: Path) -> None:
    model = ir.from_proto(_chain())
    anchors = [n for n in model.graph if n.op_type == "MatMul"]
    collector = Collector(model, anchors, _feeds(), tmp_path, 1 << 30, fewest=1)
    for segment in collector.segments:
        first = segment.nodes[0]
        source = first.inputs[0]
        node = ir.node("Neg", [source], name=f"before_{first.name}")
        model.graph.insert_before(first, node)
        first.replace_input_with(0, node.outputs[0])
        assert collector.nodes_of(segment) == [node, *segment.nodes]
        collector.advance(segment)


def test_data_that_does_not_fit_is_an_error_of_calibration(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"^x: the data gives \[2, 5\], the weight takes rows of 16"):
        _collect(tmp_path, 1 << 30, [{"x": np.zeros((2, 5), np.float32)}])
    model = ir.from_proto(_chain())
    collector = Collector(
        model, list(model.graph)[:1], [{"x": np.zeros((2, 5), np.float32)}], tmp_path, 0, fewest=1
    )
    value = model.graph[1].inputs[0]
    assert value is not None
    with pytest.raises(CalibrationError, match=r"^a: ONNX Runtime cannot run the model on this data"):
        collector.observe(collector.segments[0], {Tap(value): (16, ALL)})


@pytest.mark.parametrize("array", [
    np.arange(6, dtype=np.float32).reshape(2, 3), np.array(3.5, np.float16), np.ones((2, 2), ml_dtypes.bfloat16),
    np.array([True, False]), np.zeros((0, 4), np.float32), np.arange(6).reshape(2, 3).T,
])  # fmt: skip
@pytest.mark.parametrize("limit", [0, 1 << 20])
def test_a_border_comes_back_as_it_was(array: Array, limit: int, tmp_path: Path) -> None:
    borders = Borders[ir.Value](1, tmp_path, limit)
    value = ir.Value(name="v")
    borders.put(0, value, array)
    kept = borders.sample(0)[value]
    assert (kept.dtype, kept.shape) == (array.dtype, array.shape)
    np.testing.assert_array_equal(kept, array)
    borders.drop(value)
    assert value not in borders.sample(0)


def test_memory_is_free_again_after_a_drop(tmp_path: Path) -> None:
    borders = Borders[ir.Value](1, tmp_path, 100)
    values = [ir.Value(name=f"v{i}") for i in range(5)]
    for value in values:
        borders.put(0, value, np.zeros(20, np.float32))
        borders.drop(value)
    assert borders.spilled_bytes == 0


@pytest.mark.parametrize(("limit", "spilled"), [(100, 0), (0, 80)])
def test_what_is_put_again_takes_the_place_of_what_was_kept(limit: int, spilled: int, tmp_path: Path) -> None:
    """As a gradient is that several segments add to."""
    borders, value = Borders[ir.Value](1, tmp_path, limit), ir.Value(name="v")
    for number in range(5):
        borders.put(0, value, np.full(20, number, np.float32))
    assert borders.spilled_bytes == spilled
    np.testing.assert_array_equal(borders.array(0, value), np.full(20, 4, np.float32))


def test_a_folder_that_is_gone_is_said(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="cannot be written"):
        Borders[ir.Value](1, tmp_path / "missing", 0).put(0, ir.Value(name="v"), np.ones(3, np.float32))


def _taps(*values: ir.Value | None) -> dict[Tap, tuple[int, frozenset[Need]]]:
    return {Tap(value): (16, ALL) for value in values if value is not None}


def test_stages_go_on_from_what_the_last_one_left(tmp_path: Path) -> None:
    """One segment of three products, each observed after the one before it was changed, each run once."""
    model = ir.from_proto(_chain())
    products = [n for n in model.graph if n.op_type == "MatMul"]
    collector = Collector(model, products, _feeds(), tmp_path, 300)
    (segment,) = collector.segments
    x = np.concatenate([feed["x"] for feed in _feeds()])
    rows = x
    for index, name in enumerate("uvw"):
        value = products[index].inputs[0]
        assert value is not None
        seen = collector.observe_stage(segment, _taps(value))[Tap(value)]
        assert seen is not None
        # up to three chained float32 products of 16 terms
        np.testing.assert_allclose(seen.hessian, rows.T @ rows / len(rows), rtol=1e-4, atol=1e-5)
        changed = weight(16, 16, seed=index) * np.float32(0.5)
        model.graph.initializers[name].const_value = ir.Tensor(changed, name=name)
        rows = np.maximum(rows @ changed, 0)


def test_what_has_run_is_not_run_again(tmp_path: Path) -> None:
    model = ir.from_proto(_chain())
    products = [n for n in model.graph if n.op_type == "MatMul"]
    collector = Collector(model, products, _feeds(), tmp_path, 1 << 30)
    (segment,) = collector.segments
    first = collector.observe_stage(segment, _taps(products[1].inputs[0]))
    zero = ir.Tensor(np.zeros((16, 16), np.float32), name="u")
    model.graph.initializers["u"].const_value = zero  # too late: what it feeds has been kept
    again = collector.observe_stage(segment, _taps(products[2].inputs[0], products[1].inputs[0]))
    for tap, statistics in first.items():
        kept = again[tap]
        assert statistics is not None and kept is not None and statistics.hessian is not None
        assert kept.hessian is not None and kept.hessian.any()
        np.testing.assert_array_equal(statistics.hessian, kept.hessian)


def test_borders_use_freed_places_again(tmp_path: Path) -> None:
    borders = Borders[ir.Value](2, tmp_path, 0)
    for number in range(50):
        value = ir.Value(name=f"v{number}")
        for index in range(2):
            borders.put(index, value, np.full(100, number, np.float32))
        np.testing.assert_array_equal(borders.sample(1)[value], np.full(100, number, np.float32))
        borders.drop(value)
    assert borders.spilled_bytes == 2 * 400


def test_a_convolution_is_told_what_its_windows_see(tmp_path: Path) -> None:
    """A depthwise convolution and a plain one that read the same value."""
    model = ir.from_proto(
        make_model(
            "g (float[B,4,6,6] x) => (float[B,4,6,6] y, float[B,5,6,6] z) "
            "{ y = Conv<group=4, pads=[1,1,1,1]>(x, u) z = Conv(x, v) }",
            {"u": weight(4, 1, 3, 3), "v": weight(5, 4, 1, 1, seed=1)},
        )
    )
    depthwise, plain = (Tap(node.inputs[0], Window.of(node, shape)) for node, shape in zip(  # type: ignore[arg-type]
        model.graph, [(4, 1, 3, 3), (5, 4, 1, 1)], strict=True
    ))  # fmt: skip
    feeds = [
        {"x": np.random.default_rng(i).standard_normal((2, 4, 6, 6)).astype(np.float32)} for i in range(3)
    ]
    collector = Collector(model, list(model.graph), feeds, tmp_path, 1 << 30)
    taps = {depthwise: (9, frozenset({Need.HESSIAN})), plain: (4, ALL)}
    seen = collector.observe(collector.segments[0], taps)
    x = np.concatenate([feed["x"] for feed in feeds]).astype(np.float64)
    rows, groups = seen[plain], seen[depthwise]
    assert isinstance(rows, InputStatistics) and isinstance(groups, GroupedStatistics)
    assert rows.rows == groups.rows == 3 * 2 * 36
    flat = x.transpose(0, 2, 3, 1).reshape(-1, 4)
    # 216 products of order 1 in float32
    np.testing.assert_allclose(rows.hessian, flat.T @ flat / 216, rtol=0, atol=216 * 1.2e-7)
    centre = np.mean(
        x**2, axis=(0, 2, 3)
    )  # the kernel's middle sees every number, its corner all but the last row and column
    np.testing.assert_allclose(groups.hessian[:, 4, 4], centre, rtol=1e-5)
    corner = np.sum(x[:, :, :5, :5] ** 2, axis=(0, 2, 3)) / 216
    np.testing.assert_allclose(groups.hessian[:, 0, 0], corner, rtol=1e-5)
