"""Overlays for Model Explorer."""

import json
from pathlib import Path

import onnx
import pytest

import qcompiler
from qcompiler.errors import InputError
from qcompiler.report.inspect_model import inspect
from qcompiler.report.inspect_session import inspect_session
from qcompiler.report.node_data import OVERLAYS, node_data
from tests import command_models as models
from tests.small_models import make_model, save_model, weight


def test_every_kind_of_number_names_nodes_of_the_model(tmp_path: Path) -> None:
    settings = ["rules=[{match: fc2, quantize: false}]"]
    made = qcompiler.compile(
        models.decoder(tmp_path), "w4a16-rtn", output=tmp_path / "out", settings=settings
    )
    names = {node.name for node in onnx.load(made.path).graph.node}
    found = inspect_session(inspect(made.path))
    written = {what: node_data(found, what) for what in OVERLAYS}
    for content in written.values():
        assert set(content["results"]) <= names
        assert [entry["stop"] for entry in content["gradient"]] == [0, 1]
        assert json.loads(json.dumps(content)) == content
    bits = {name: entry["value"] for name, entry in written["bits"]["results"].items()}
    assert sorted(bits.values()) == [4, 8, 8, 32]  # of the tied weight two nodes
    assert len(written["sqnr"]["results"]) == 3 and len(written["time"]["results"]) == 4


def test_products_of_one_node_count_together(tmp_path: Path) -> None:
    text = "g (float[M,64] x) => (float[M,32] y) { a = MatMul(x, v) b = MatMul(x, w) y = Add(a, b) }"
    source = save_model(make_model(text, {"v": weight(64, 32), "w": weight(64, 32, seed=1)}), tmp_path)
    made = qcompiler.compile(
        source, "w4a16-rtn", output=tmp_path / "out", target="qcompiler", settings=["head.bits=4"]
    )
    found = inspect(made.path)
    results = node_data(found, "bytes")["results"]
    assert sum(entry["value"] for entry in results.values()) == sum(
        product.bytes for product in found.products
    )
    noted = {product.name: product.sqnr_db for product in found.products}
    assert noted == {layer.name: pytest.approx(layer.sqnr_db, abs=0.051) for layer in made.report.layers}


def test_numbers_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no sqnr to write: the model has no notes"):
        node_data(inspect(models.mlp(tmp_path)), "sqnr")
