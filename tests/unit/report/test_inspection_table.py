"""The three views of an inspection, and what is picked out of it."""

import re
from pathlib import Path

import onnx
import pytest
from rich.console import Console

import qcompiler
from qcompiler.errors import InputError
from qcompiler.report.inspect_model import Inspection, inspect
from qcompiler.report.inspection_table import View, inspection_table, matching
from tests import command_models as models
from tests.small_models import make_model, save_model, weight


def _deep(folder: Path, layers: int) -> Path:
    """x [M, 32] -> layers of two linears with residuals, as an exporter names them -> a head."""
    lines, weights, x = [], {}, "x"
    for i in range(layers):
        lines.append(
            f"u{i} = MatMul ({x}, up{i}) a{i} = Relu (u{i}) d{i} = MatMul (a{i}, down{i}) y{i} = Add ({x}, d{i})"
        )
        weights |= {f"up{i}": weight(32, 64, seed=i), f"down{i}": weight(64, 32, seed=i + 100)}
        x = f"y{i}"
    text = "g (float[M,32] x) => (float[M,48] z) {" + "\n".join(lines) + f" z = MatMul ({x}, head) }}"
    model = make_model(text, {**weights, "head": weight(32, 48)})
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = _path(name)
    for tensor in model.graph.initializer:
        tensor.name = _path(tensor.name)
    return save_model(model, folder)


def _path(name: str) -> str:
    if name == "head":
        return "lm_head.weight"
    found = re.fullmatch(r"(up|down)(\d+)", name)
    return f"model.layers.{found[2]}.mlp.{found[1]}.weight" if found else name


def _shown(found: Inspection, view: View | None = None, pattern: str | None = None) -> list[str]:
    shown = None if pattern is None else matching(found, re.compile(pattern))
    console = Console(width=200)
    with console.capture() as capture:
        console.print(inspection_table(found, shown, view))
    return [line.rstrip() for line in capture.get().splitlines()]


def test_blocks_of_a_compiled_model(tmp_path: Path) -> None:
    made = qcompiler.compile(_deep(tmp_path, 3), "w4a16-rtn", output=tmp_path / "out")
    products = inspect(made.path).products
    assert [product.block for product in products] == [
        *(f"model.layers.{i}" for i in range(3) for _ in range(2)), ""
    ]  # fmt: skip
    # A layer of 4 bits is about 20 dB, of 8 bits about 44 dB; the report says the same.
    layers = {layer.name: layer.sqnr_db for layer in made.report.layers}
    for product in products:
        assert product.sqnr_db == pytest.approx(layers[product.name], abs=0.051)  # a digit is noted


def test_many_weights_are_folded_by_block(tmp_path: Path) -> None:
    few, many = (inspect(_deep(_folder(tmp_path, n), n)) for n in (3, 31))
    assert _shown(few) == _shown(few, "flat")
    lines = _shown(many)
    rows = lines[1 : lines.index("")]
    assert len(rows) == 32 and rows[7].split()[:5] == ["model.layers.7", "linear", "MatMul", "2", "4"]
    assert rows[-1].split()[:2] == ["lm_head.weight", "head"]
    assert len(_shown(many, "flat")) > 63


def _folder(parent: Path, number: int) -> Path:
    made = parent / str(number)
    made.mkdir()
    return made


def test_a_tree_has_modules_and_what_they_hold(tmp_path: Path) -> None:
    lines = _shown(inspect(_deep(tmp_path, 2)), "tree")
    assert [line.split()[0] for line in lines[1:7]] == [
        "model.layers.0.mlp", "up.weight", "down.weight", "model.layers.1.mlp", "up.weight", "down.weight",
    ]  # fmt: skip
    assert "16.4 kB" in lines[1]  # 2 * 32 * 64 * 4 bytes


def test_a_filter_reads_names_and_blocks(tmp_path: Path) -> None:
    found = inspect(_deep(tmp_path, 2))
    assert [product.name for product in matching(found, re.compile("down"))] == [
        "model.layers.0.mlp.down.weight", "model.layers.1.mlp.down.weight",
    ]  # fmt: skip
    assert len(matching(found, re.compile(r"layers\.1$"))) == 2
    assert "shown are 2 of 5 products" in _shown(found, pattern="down")
    with pytest.raises(InputError, match="matches 'nothing'"):
        matching(found, re.compile("nothing"))


def test_a_tied_weight_is_called_so(tmp_path: Path) -> None:
    found = inspect(models.decoder(tmp_path))
    assert _shown(found)[1].endswith("tied")
    assert len(found.products[0].nodes) == 2
    assert any("1 tied" in line for line in _shown(found))


def test_what_stays_float_says_why_in_the_model_itself(tmp_path: Path) -> None:
    settings = ["rules=[{match: fc2, quantize: false, reason: too dear}]"]
    made = qcompiler.compile(models.mlp(tmp_path), "w4a16-rtn", output=tmp_path / "out", settings=settings)
    moved = tmp_path / "alone.onnx"
    onnx.save(onnx.load(made.path), moved)  # without the report beside it
    fc1, fc2 = inspect(moved).products
    assert (fc1.granularity, fc2.granularity, fc2.reason) == ("group", None, "rule 1 (name=fc2): too dear")
