"""The part of the benchmarks that does not measure: kept rows, tables, filling them in."""

import time
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from benchmarks import embeddings, fill_tables, int8_static, memory, quality
from benchmarks.measure import interleaved, ort_int8
from benchmarks.measure.results import Results, markdown
from models import language

MADE = {
    "wall_seconds": 1.0,
    "peak_anonymous_bytes": 10**9,
    "bytes": 10**6,
    "perplexity": 4.0,
    "agreement": 0.5,
}


def test_rows_survive_and_name_the_machine(tmp_path: Path) -> None:
    first = Results(tmp_path / "rows.json")
    first.put("a", {"seconds": 1.5})
    again = Results(tmp_path / "rows.json")
    assert "a" in again and "b" not in again
    assert again.rows["a"]["seconds"] == 1.5
    assert again.rows["a"]["machine"]["cores"] >= 1


def test_markdown() -> None:
    assert markdown(["", "x"], [["a", "1"]]) == "|  | x |\n| --- | ---: |\n| a | 1 |"


def test_quality_table_shows_a_row_once_it_and_its_peer_are_finished(tmp_path: Path) -> None:
    results = Results(tmp_path / "quality.json")
    results.put("off-grid/float", {"perplexity": 3.0, "bytes": 10**7})
    for level, kl in ((0, 0.1), (4, 0.2)):
        results.put(f"off-grid/rtn-float-ends/level{level}", MADE | {"kl": kl})
    assert quality.table(results, ["off-grid"], ["rtn-float-ends"]).count("\n") == 2
    for level, kl in ((0, 0.4), (4, 0.5)):
        results.put(f"off-grid/{quality.G64.key}/level{level}", MADE | {"kl": kl})
    rows = quality.table(results, ["off-grid"], ["rtn-float-ends"]).splitlines()
    assert rows[3].endswith("| 4.00 | 0.1000 | 0.2000 | 0.500 | 1.0 | 1 | 1.00 | 0.250 |")
    assert rows[4].startswith("| peer: ORT RTN, int4 g64 asym")


def test_padding_is_no_part_of_an_embedding() -> None:
    tokens = np.array([[[3.0, 0.0], [5.0, 0.0], [0.0, 100.0]]], np.float32)
    assert embeddings.pooled(tokens, np.array([[1, 1, 0]])).tolist() == [[1.0, 0.0]]


def test_embeddings_table_has_the_peer_beside_a_row(tmp_path: Path) -> None:
    results = Results(tmp_path / "embeddings.json")
    results.put("w4-best", MADE | {"cosine": 0.99, "worst": 0.9})
    assert embeddings.table(results, ["w4-best"]).count("\n") == 1
    results.put(quality.G64.key, MADE | {"cosine": 0.96, "worst": 0.8})
    ours, peer = embeddings.table(results, ["w4-best"]).splitlines()[2:]
    assert ours.endswith("| 0.99000 | 0.90000 | 0.250 | 1.0 | 1 | 1.00 |")
    assert peer.startswith("| peer: ORT RTN") and "| 1.000 |" in peer


def test_memory_table(tmp_path: Path) -> None:
    results = Results(tmp_path / "memory.json")
    results.put("weights/1GB/qcompiler", MADE)
    results.put("weights/1GB/ort-rtn", MADE | {"peak_anonymous_bytes": 4 * 10**9})
    assert "| 1GB of float32 weights, w4a16-rtn | 1 | 1000 | 0.250 |" in memory.table(results)


def test_forecast_table(tmp_path: Path) -> None:
    results = Results(tmp_path / "memory.json")
    sizes = {"hidden": 64, "inner": 256, "weight_bytes": 3 * 10**9, "forecast_bytes": 9 * 10**8}
    results.put("gptq/large 3GB", MADE | sizes)
    assert "| large | 64, 256 | 3.00 | 1 | 1000 | 900 | 0.90 |" in memory.forecast_table(results)


def test_int8_table_has_the_best_peer_beside_each_row(tmp_path: Path) -> None:
    results = Results(tmp_path / "int8.json")
    assert int8_static.table(results).count("\n") == 1
    classified = MADE | {"milliseconds": {"1": 4.0, "2": 3.0}}
    results.put("float", classified | {"kl": 0.0, "milliseconds": {"1": 8.0, "2": 5.0}})
    results.put("ort-entropy", classified | {"what": "peer: entropy", "kl": 0.04})
    results.put("ort-minmax", classified | {"what": "peer: minmax", "kl": 0.02})
    results.put("ours-mine", classified | {"what": "mine", "kl": 0.01})
    lines = int8_static.table(results).splitlines()[2:]
    assert lines[0] == "| float | 0 | 1 |  | 1.0 | 8.00 | 5.00 | 1 |  |  |"
    assert lines[1] == "| peer: minmax | 0.0200 | 0.500 | 1.00 | 1.0 | 4.00 | 3.00 | 2.00 | 1 | 1.00 |"
    assert lines[2].startswith("| peer: entropy | 0.0400 | 0.500 | 2.00 |")
    assert lines[3].startswith("| mine | 0.0100 | 0.500 | 0.50 |")
    assert len(int8_static.table(results, recipes=()).splitlines()) == 5


def test_a_recipe_is_compiled_by_name_or_file() -> None:
    named, filed = map(int8_static.recipe_entry, ("w8a8-dynamic", "/somewhere/mine.yaml"))
    assert (named.key, named.ours, filed.key) == ("ours-w8a8-dynamic", True, "ours-mine")
    given = filed.arguments(Path("model.onnx"), Path("data.npz"), Path("out"))
    assert given == {
        "model": "model.onnx", "output": "out", "recipe": "/somewhere/mine.yaml", "calibration": "data.npz",
    }  # fmt: skip
    assert not any(peer.ours for peer in int8_static.PEERS)


@pytest.mark.parametrize("method", [entry.method for entry in int8_static.ORT])
def test_the_int8_peer_quantizes_convolutions(method: str, tmp_path: Path) -> None:
    weight = np.random.default_rng(0).standard_normal((4, 2, 3, 3)).astype(np.float32)
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 21]> g (float[N, 2, 8, 8] image) => (float[N, 4, 6, 6] y) { y = Conv(image, w) }'
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    images = np.random.default_rng(1).standard_normal((3, 2, 8, 8)).astype(np.float32)
    onnx.save(model, tmp_path / "model.onnx")
    np.savez(tmp_path / "data.npz", image=images)
    ort_int8.quantize(tmp_path / "model.onnx", tmp_path / "data.npz", tmp_path / "out.onnx", method)
    quantized = onnx.load(tmp_path / "out.onnx")
    assert {t.data_type for t in quantized.graph.initializer} & {
        onnx.TensorProto.INT8,
        onnx.TensorProto.UINT8,
    }
    before, after = (
        language.session(tmp_path / name).run(None, {"image": images})[0]
        for name in ("model.onnx", "out.onnx")
    )
    assert (
        0 < np.linalg.norm(after - before) / np.linalg.norm(before) < 0.05
    )  # measured 0.012: 8 bits of each


def test_a_fast_session_runs_more_often_in_its_turn() -> None:
    class Session:
        """Counts its runs; each takes so many seconds."""

        def __init__(self, seconds: float) -> None:
            self.seconds, self.runs = seconds, 0

        def io_binding(self) -> "Session":
            return self

        def get_outputs(self) -> list[None]:
            return []

        def run_with_iobinding(self, _: object) -> None:
            self.runs += 1
            time.sleep(self.seconds)

    fast, slow = Session(0.001), Session(0.02)
    times = interleaved.least_seconds([fast, slow], {}, seconds=0, turn=0.01)  # type: ignore[list-item]
    assert slow.runs == 3 and fast.runs > 3
    assert times[0] >= 0.001 and times[1] >= 0.02


def test_only_tables_with_figures_are_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(fill_tables.TABLES, "full", lambda: "a\nb\nc")
    monkeypatch.setitem(fill_tables.TABLES, "empty", lambda: "head\nrule")
    text = "<!-- table: {} -->\nold\n<!-- end of table -->\n"
    assert fill_tables.filled(text.format("full")) == text.format("full").replace("old", "a\nb\nc")
    assert fill_tables.filled(text.format("empty")) == text.format("empty")


@pytest.mark.slow
def test_sensitivity_takes_a_text_and_averages_runs(tmp_path: Path) -> None:
    """The rows of other scores change with the runs; the diagonal's is what ``mixed`` takes, of one."""
    pytest.importorskip("torch")
    from benchmarks import sensitivity

    text = tmp_path / "mine.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 20, encoding="utf-8")
    once = sensitivity.table("tiny", 64, text).splitlines()
    twice = sensitivity.table("tiny", 64, text, runs=2).splitlines()
    assert "64 tokens of mine.txt, runs: 2" in twice[-1]
    assert [a == b for a, b in zip(once[:6], twice[:6], strict=True)] == [True] * 3 + [False] * 3
