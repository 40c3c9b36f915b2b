"""The middle form of a codebook: it computes the stored weight, is found again, and nothing else is taken for it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from qcompiler.algorithms import find
from qcompiler.errors import SchemeError
from qcompiler.graph import model_file
from qcompiler.graph.codebook_form import codebook_form, emit_codebook, read_codebook
from qcompiler.graph.quantized import SCHEME_KEY, register_constants
from qcompiler.graph.weight_form import read_weight, record_of, restore_weight
from qcompiler.graph.weight_store import WeightStore
from qcompiler.quant.codebook import TABLES, CodebookTensor
from qcompiler.quant.scheme import Granularity, QuantScheme
from tests.small_models import run, weight

FLOATS: dict[Any, Any] = {"float32": ir.DataType.FLOAT, "float16": ir.DataType.FLOAT16}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[WeightStore]:
    with WeightStore(tmp_path / "work") as opened:
        yield opened


def _tensor(
    n: int, k: int, dtype: Any = "nf4", double: bool = False, kind: Any = "float32", group: int = 16
) -> CodebookTensor:
    scheme = QuantScheme(4, True, Granularity.GROUP, group, kind, dtype, double)
    found = find("rtn").run(weight(n, k), None, scheme, None)
    assert isinstance(found, CodebookTensor)
    return found


def _model(nodes: list[ir.Node]) -> ir.Model:
    """Yields the weight."""
    output = nodes[-1].outputs[0]
    graph = ir.Graph([], [output], nodes=nodes, opset_imports={"": 21}, name="g")
    for node in nodes:
        register_constants(graph, node)
    return ir.Model(graph, ir_version=10)


def _last(model: ir.Model) -> ir.Node:
    node = model.graph.outputs[0].producer()
    assert node is not None
    return node


@pytest.mark.parametrize("kind", ["float32", "float16"])
@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("layout", ["kn", "nk"])
@pytest.mark.parametrize("k", [1, 15, 16, 17, 64])
@pytest.mark.parametrize("dtype", sorted(TABLES))
def test_it_computes_the_weight_and_is_read_back(
    dtype: str, k: int, layout: Any, double: bool, kind: str, store: WeightStore, tmp_path: Path
) -> None:
    tensor = _tensor(9, k, dtype, double, kind)
    expected = tensor.dequantize().astype(kind)
    model = _model(emit_codebook(store, tensor, layout, "w", FLOATS[kind]))
    path = model_file.save(model, tmp_path)
    onnx.checker.check_model(path, full_check=True)
    for optimize in (False, True):
        (computed,) = run(path, {}, optimize).values()
        assert np.array_equal(computed.T if layout == "kn" else computed, expected)  # the same products
    loaded = model_file.load(path)
    assert _last(loaded).metadata_props[SCHEME_KEY] == tensor.scheme.label
    for last in (_last(model), _last(loaded)):
        form = codebook_form(last)
        assert form is not None
        assert (form.dtype, form.shape, form.layout, form.block) == (dtype, (9, k), layout, 16)
        assert (form.double is not None) is double
        found = read_codebook(form)
        assert found.scheme == tensor.scheme
        assert np.array_equal(found.codes, tensor.codes) and np.array_equal(found.scale, tensor.scale)


@pytest.mark.parametrize("blocks", [255, 256, 257])
def test_8_bit_scales_fill_up_their_last_block(blocks: int, store: WeightStore, tmp_path: Path) -> None:
    tensor = _tensor(blocks, 16, double=True)
    (computed,) = run(_model(emit_codebook(store, tensor, "nk", "w", ir.DataType.FLOAT)), {}).values()
    assert np.array_equal(computed, tensor.dequantize())


@pytest.mark.parametrize("double", [False, True])
def test_a_record_finds_the_weight_again(double: bool, store: WeightStore) -> None:
    tensor = _tensor(9, 33, double=double)
    first = emit_codebook(store, tensor, "kn", "w", ir.DataType.FLOAT)
    record = json.loads(json.dumps(record_of(first[-1])))
    again = restore_weight(store, record, "w", ir.DataType.FLOAT)
    found = read_weight(again[-1])
    assert found is not None
    kept, layout = found
    assert isinstance(kept, CodebookTensor) and layout == "kn"
    assert np.array_equal(kept.codes, tensor.codes) and np.array_equal(kept.scale, tensor.scale)


def test_scales_of_another_type_than_a_half_weight_are_refused(store: WeightStore) -> None:
    with pytest.raises(SchemeError, match="set scale_dtype: float16"):
        emit_codebook(store, _tensor(4, 32), "nk", "w", ir.DataType.FLOAT16)


@pytest.mark.parametrize(
    ("spoiled", "into"),
    [
        ("w.table", np.linspace(-1, 1, 16).astype(np.float32)),
        ("w.table", TABLES["nf4"][:8].copy()),
        ("w.rows.shape", np.array([-1, 32], np.int64)),
        ("w.rows.shape", np.array([9, 4, 8], np.int64)),
    ],
)
def test_near_misses_are_left_alone(spoiled: str, into: Any, store: WeightStore) -> None:
    model = _model(emit_codebook(store, _tensor(9, 32), "nk", "w", ir.DataType.FLOAT))
    assert codebook_form(_last(model)) is not None
    model.graph.initializers[spoiled].const_value = ir.Tensor(into, name=spoiled)
    assert codebook_form(_last(model)) is None
    assert codebook_form(None) is None
