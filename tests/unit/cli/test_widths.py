"""What the verbs print on terminals of 80 and 100 columns, and in a pipe."""

import re
from pathlib import Path

import onnx
import pytest

from tests import command_models as models
from tests.command_line import RTN, Command

LAYERS = 3
_PARTS = {"wv": "self_attn.v_proj", "wo": "self_attn.o_proj", "wu": "mlp.up_proj", "wd": "mlp.down_proj"}
NAMES = [f"model.layers.{i}.{part}" for i in range(LAYERS) for part in _PARTS.values()]


def _named(folder: Path) -> Path:
    """The deep decoder with names of a real one."""
    path = models.deep_decoder(folder, layers=LAYERS)
    model = onnx.load(path)
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = _name(name)
    for tensor in model.graph.initializer:
        tensor.name = _name(tensor.name)
    onnx.save(model, path)
    return path


def _name(name: str) -> str:
    found = re.fullmatch(r"(w[voud])(\d)", name)
    if found:
        return f"model.layers.{found[2]}.{_PARTS[found[1]]}"
    return {"table": "model.embed_tokens", "head": "lm_head"}.get(name, name)


@pytest.fixture(params=[80, 100, 160])
def width(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Of the terminal; 160 is a pipe."""
    columns: int = request.param
    if columns < 160:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("COLUMNS", str(columns))
    else:
        monkeypatch.delenv("FORCE_COLOR", raising=False)
    return columns


def _lines(run: Command, width: int, *words: str | Path) -> list[str]:
    outcome = run(*words)
    assert outcome.status == 0, outcome.err
    lines = re.sub(r"\x1b\[[0-9;]*m", "", outcome.out).splitlines()
    assert max(map(len, lines)) <= width, lines
    return lines


def _rows(lines: list[str]) -> dict[str, int]:
    """Of the first table: how many lines each row takes."""
    rows: dict[str, int] = {}
    for line in lines[1:]:
        if not line or line.startswith("left out"):
            break
        if not line.startswith(" "):
            name = line.split()[0]
            rows[name] = 0
        rows[name] += 1
    return rows


def test_every_product_is_a_row(run: Command, tmp_path: Path, width: int) -> None:
    path = _named(tmp_path)
    for words in ((path, *RTN, "--dry-run"), ("inspect", path), ("inspect", "out", "--flat")):
        if words[:2] == ("inspect", "out"):
            summary = _lines(run, width, path, *RTN, "-o", "out")
            assert any(line.startswith("model.layers.0.") and " dB" in line for line in summary)
        lines = _lines(run, width, *words)
        rows = _rows(lines)
        assert set(NAMES) <= set(rows) and max(rows.values()) <= 2, lines
        assert "stored as" in lines[0] and "bytes" in lines[0]
        assert all(rows[name] == 1 for name in NAMES), lines
        said = [line for line in lines if line.startswith("left out: ")]
        assert bool(said) == (width == 80 or (width == 100 and words != ("inspect", path)))
    assert "dB" in lines[0]


def test_a_tree_is_a_line_each(run: Command, tmp_path: Path, width: int) -> None:
    path = _named(tmp_path)
    run(path, *RTN, "-o", "out")
    lines = _lines(run, width, "inspect", "out", "--tree")
    (end,) = [place for place, line in enumerate(lines) if not line]
    leaves = [line.split()[0] for line in lines[1:end]]
    assert [name for name in leaves if name.endswith("_proj")] == [
        part.split(".")[1] for _ in range(LAYERS) for part in _PARTS.values()
    ]
    assert end <= 2 * (1 + LAYERS * 7 + 2)


def test_other_verbs(run: Command, tmp_path: Path, width: int) -> None:
    path = _named(tmp_path)
    run(path, *RTN, "-o", "out")
    diff = _lines(run, width, "diff", path, "out")
    assert any("float.onnx" in line for line in diff[:5]) and "out/model.onnx" in "".join(diff[:5])
    assert any(line.startswith("model.layers.2.mlp.down_proj  ") and " dB" in line for line in diff)
    trace = _lines(run, width, "trace", "out", "--reference", path)
    assert set(NAMES) <= set(_rows(trace)) and max(_rows(trace).values()) == 1 and "SQNR" in trace[0]
    _lines(run, width, "eval", "out", "--reference", path)
    assert any("layers" in line for line in _lines(run, width, "bisect", path, "out"))
    assert "parity" in _lines(run, width, "check", "out")[0]
    bench = _lines(run, width, "bench", "out", "--loads", "0", "--runs", "2", "--tokens", "4")
    assert any("median" in line for line in bench)
    _lines(run, width, "doctor")
