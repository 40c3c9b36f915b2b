"""ai.qcompiler::GatherNBits in ONNX Runtime: its numbers, what it refuses, and the same model without our library."""

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from qcompiler.graph.session_errors import SESSION_ERRORS
from qcompiler.runtime import register
from tests.gathered_table import GatheredTable


def session(model: onnx.ModelProto, ours: bool = True, optimized: bool = True) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if ours:
        register(options)
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


INDICES = np.array([[0, 49, -1], [-50, 7, 7]])


@pytest.mark.parametrize("scale_type", [np.float32, np.float16])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize(
    ("k", "block_size"), [(96, 32), (100, 32), (100, 16), (64, 128), (300, 256), (33, 48)]
)
def test_numbers(k: int, block_size: int, bits: int, symmetric: bool, scale_type: type) -> None:
    table = GatheredTable(k=k, block_size=block_size, bits=bits, symmetric=symmetric, scale_type=scale_type)
    (found,) = session(table.model()).run(None, {"indices": INDICES})
    assert found.dtype == scale_type
    np.testing.assert_array_equal(found, table.expected(INDICES))  # a difference of integers, one product


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize("shape", [(), (5,), (2, 3, 4), (0,), (2, 0)])
def test_any_shape_of_indices(shape: tuple[int, ...], dtype: type) -> None:
    table = GatheredTable()
    indices = np.random.default_rng(0).integers(-50, 50, shape).astype(dtype)
    (found,) = session(table.model([None] * len(shape), dtype)).run(None, {"indices": indices})
    np.testing.assert_array_equal(found, table.expected(indices))


def test_rows_that_all_threads_share() -> None:
    table = GatheredTable(k=700, bits=8)
    indices = np.random.default_rng(0).integers(-50, 50, (3, 501))
    np.testing.assert_array_equal(
        session(table.model()).run(None, {"indices": indices})[0], table.expected(indices)
    )


@pytest.mark.parametrize(
    ("scale_type", "said"), [(np.float32, "tensor(float)"), (np.float16, "tensor(float16)")]
)
def test_the_shape_of_the_output_is_inferred(scale_type: type, said: str) -> None:
    (output,) = session(GatheredTable(scale_type=scale_type).model()).get_outputs()
    assert output.shape == ["B", "M", 100] and output.type == said


@pytest.mark.parametrize("optimized", [True, False])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("k", [96, 100])
def test_without_our_library_the_body_runs(k: int, bits: int, symmetric: bool, optimized: bool) -> None:
    table = GatheredTable(k=k, bits=bits, symmetric=symmetric)
    (found,) = session(table.model(), ours=False, optimized=optimized).run(None, {"indices": INDICES})
    np.testing.assert_array_equal(found, table.expected(INDICES))


@pytest.mark.parametrize("index", [50, -51, 1 << 40, -(1 << 63)])
def test_an_index_out_of_range_is_refused(index: int) -> None:
    running = session(GatheredTable().model())
    with pytest.raises(SESSION_ERRORS, match=f"table: index {index} is not one of the 50 rows"):
        running.run(None, {"indices": np.array([[0, index]])})
    assert running.run(None, {"indices": INDICES})[0].shape == (2, 3, 100)


def _without(name: str) -> onnx.ModelProto:
    model = GatheredTable().model()
    (attribute,) = (a for a in model.graph.node[0].attribute if a.name == name)
    model.graph.node[0].attribute.remove(attribute)
    return model


REFUSED: list[tuple[Callable[[], onnx.ModelProto], str]] = [
    (lambda: _without("bits"), "attribute bits is missing"),
    (lambda: _without("N"), "attribute N is missing"),
    (lambda: GatheredTable(attributes={"K": 0}).model(), "attribute K is 0"),
    (lambda: GatheredTable(attributes={"N": -1}).model(), "attribute N is -1"),
    (lambda: GatheredTable(attributes={"K": 1 << 31, "N": 1 << 31}).model(), "codes has"),
    (lambda: GatheredTable(attributes={"bits": 3}).model(), "bits are 3"),
    (lambda: GatheredTable(attributes={"block_size": 24}).model(), "block_size is 24"),
    (lambda: GatheredTable(attributes={"N": 51}).model(), "codes has"),
    (lambda: GatheredTable(constants={"scales": np.ones(7, np.float32)}).model(), "scales has 7 elements"),
    (lambda: GatheredTable(constants={"zero_points": np.ones(7, np.uint8)}).model(), "zero_points has 7 elements"),
    (lambda: GatheredTable(constants={"codes": np.zeros((0,), np.uint8)}).model(), "codes has 0 elements"),
    (lambda: GatheredTable(constants={"scales": np.ones((50, 4))}).model(), "double"),
    (lambda: GatheredTable().model(given=("codes",)), "codes is not constant"),
    (lambda: GatheredTable().model(given=("scales",)), "scales is not constant"),
    (lambda: GatheredTable().model(given=("zero_points",)), "zero_points is not constant"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "said"), REFUSED, ids=[said for _, said in REFUSED])
def test_a_bad_node_is_refused_when_the_session_is_created(
    make: Callable[[], onnx.ModelProto], said: str
) -> None:
    with pytest.raises(SESSION_ERRORS, match=said):
        session(make(), optimized=False)


def test_indices_of_another_type_are_refused() -> None:
    with pytest.raises(SESSION_ERRORS, match="indices are neither int32 nor int64"):
        session(GatheredTable().model(dtype=np.uint8)).run(None, {"indices": np.zeros((1, 1), np.uint8)})
