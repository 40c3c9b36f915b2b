"""Benchmarks of small models: who is measured against whom, in which order, and what the result holds; never how fast."""

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qcompiler
from qcompiler import runtime
from qcompiler.bench import benchmark, contender
from qcompiler.bench.bench_plot import bench_plot
from qcompiler.bench.benchmark import BenchSettings, measure
from qcompiler.bench.result import Benchmark, Spread
from qcompiler.bench.since import beside_earlier, read_earlier
from qcompiler.bench.workloads import Sizes
from qcompiler.errors import InputError, ResourceError
from qcompiler.report.json_text import to_json
from tests import command_models as models
from tests.small_models import make_model, save_model, weight

QUICK = BenchSettings(Sizes(tokens=4), threads=1, runs=3, loads=0)


def _compiled(source: Path, folder: Path, **options: Any) -> Path:
    return qcompiler.compile(source, "w8a16-rtn", output=folder, target="qcompiler", **options).path


def _cached_decoder(folder: Path) -> Path:
    """Two caches beside the tokens; the output needs all of them."""
    graph = """g (int64[B,S] input_ids, float[B,1,P,64] past_key_values_key) => (float[B,S,96] logits) {
        e = Gather(table, input_ids)
        axes = Constant <value_ints = [1, 2]> ()
        held = ReduceSum <keepdims = 0> (past_key_values_key, axes)
        row = Unsqueeze(held, one)
        a = Add(e, row)
        logits = MatMul(a, head)
    }"""
    weights = {
        "table": weight(96, 64, scale=0.5), "head": weight(64, 96, seed=1), "one": np.array([1]),
    }  # fmt: skip
    return save_model(make_model(graph, weights), folder)


def test_our_kernels_against_the_same_file_without_our_library(tmp_path: Path) -> None:
    path = _compiled(models.decoder(tmp_path), tmp_path / "out")
    found = measure(path.parent, settings=QUICK)
    assert found.against is not None and found.model.path == found.against.path == str(path)
    assert found.model.how == "with our library" and found.against.how.startswith("without our library")
    (prefill,) = found.workloads
    assert (prefill.name, prefill.tokens, prefill.pairs) == ("prefill", 4, 3)
    assert prefill.shapes == {"input_ids": [1, 4]}
    assert prefill.against is not None and prefill.times_as_fast is not None
    assert prefill.model.tokens_per_second == pytest.approx(4 / prefill.model.seconds.median, rel=1e-12)
    assert found.loads is None and found.notes == [] and found.threads == 1


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, bool]]]:
    """(what, with our library), for every session that is opened and every run."""
    seen: list[tuple[str, bool]] = []
    kinds: dict[int, bool] = {}
    first = contender.Contender.open
    second = contender.timed_run

    def open_it(self: contender.Contender) -> Any:
        session = first(self)
        kinds[id(session)] = self.library
        seen.append(("open", self.library))
        return session

    def timed(session: Any, feed: Any) -> Any:
        run = second(session, feed)

        def noted() -> float:
            seen.append(("run", kinds[id(session)]))
            return run()

        return noted

    monkeypatch.setattr(contender.Contender, "open", open_it)
    monkeypatch.setattr(benchmark, "timed_run", timed)
    yield seen


def test_both_run_in_turn(tmp_path: Path, opened: list[tuple[str, bool]]) -> None:
    measure(_compiled(models.mlp(tmp_path), tmp_path / "out"), settings=QUICK)
    assert opened[:2] == [("open", True), ("open", False)]
    assert opened[2:4] == [("run", True), ("run", False)]  # whether they can
    assert opened[4:] == [("run", True), ("run", False)] * 5  # two rounds to warm up, three that count


def test_another_model_is_measured_in_turn(tmp_path: Path) -> None:
    source = models.decoder(tmp_path)
    found = measure(_compiled(source, tmp_path / "out"), source, QUICK)
    assert found.model.how == "with our library"
    assert found.against is not None and found.against.path == str(source)
    assert found.against.how == "ONNX Runtime's own operators"


def test_a_model_without_our_operators_is_measured_alone_and_says_so(tmp_path: Path) -> None:
    found = measure(models.mlp(tmp_path), settings=QUICK)
    (batch,) = found.workloads
    assert found.against is None and batch.against is None and batch.times_as_fast is None
    assert batch.tokens is None and batch.model.tokens_per_second is None and batch.shapes == {"x": [1, 64]}
    assert len(found.notes) == 2
    assert "measured alone" in found.notes[0] and "--against MODEL2" in found.notes[0]
    assert "--tokens 4 has no effect" in found.notes[1]


def test_without_function_bodies_a_model_is_measured_alone_and_says_so(tmp_path: Path) -> None:
    path = _compiled(models.mlp(tmp_path), tmp_path / "out", function_body=False)
    found = measure(path, settings=BenchSettings(runs=1, loads=0))
    assert found.against is None and found.model.how == "with our library"
    assert "MatMulNBits has no function body" in found.notes[0]


def test_without_the_library_it_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _compiled(models.mlp(tmp_path), tmp_path / "out")
    monkeypatch.setattr(runtime, "_library_file", lambda: tmp_path / "libqcompiler_ops.so")
    with pytest.raises(
        ResourceError, match=r"holds operators of ours, and .*libqcompiler_ops\.so is missing"
    ):
        measure(path, settings=QUICK)


def test_a_model_with_a_past_is_prefilled_and_decodes(tmp_path: Path) -> None:
    source = _cached_decoder(tmp_path)
    found = measure(source, settings=BenchSettings(Sizes(4, 6, {"B": 2}), runs=1, loads=0))
    assert [(each.name, each.tokens, each.past) for each in found.workloads] == [
        ("prefill", 8, 0),
        ("decode", 2, 6),
    ]


def test_only_what_both_can_run_is_measured(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    found = measure(_cached_decoder(tmp_path), models.decoder(tmp_path / "plain"), QUICK)
    assert [each.name for each in found.workloads] == ["prefill"]
    assert found.notes == ["only one of the models runs decode, which was not measured"]


def test_models_that_share_no_workload_are_refused(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with pytest.raises(InputError, match=r"takes prefill and .* batch: nothing that both can run"):
        measure(models.decoder(tmp_path), models.mlp(tmp_path / "other"), QUICK)


def test_inputs_of_different_sizes_are_refused(tmp_path: Path) -> None:
    graphs = ["float[8,4] x) => (float[8,4] y", "float[N,4] x) => (float[N,4] y"]
    paths = [
        save_model(make_model(f"g ({graph}) {{ y = Neg(x) }}"), tmp_path, f"{place}.onnx")
        for place, graph in enumerate(graphs)
    ]
    with pytest.raises(InputError, match=r"input x is \[8, 4\] in .* and \[1, 4\] in .*--dim NAME=SIZE"):
        measure(*paths, BenchSettings(runs=1, loads=0))
    measure(*paths, BenchSettings(Sizes(dims={"N": 8}), runs=1, loads=0))


def test_different_numbers_of_tokens_are_refused(tmp_path: Path) -> None:
    graphs = ["int64[1,8] input_ids) => (int64[1,8] y", "int64[B,S] input_ids) => (int64[B,S] y"]
    paths = [
        save_model(make_model(f"g ({graph}) {{ y = Neg(input_ids) }}"), tmp_path, f"{place}.onnx")
        for place, graph in enumerate(graphs)
    ]
    with pytest.raises(InputError, match="runs on 8 tokens and .* on 512; give --tokens"):
        measure(*paths, BenchSettings(runs=1, loads=0))
    measure(*paths, BenchSettings(Sizes(tokens=8), runs=1, loads=0))


def test_what_onnx_runtime_refuses_names_the_inputs_and_the_options(tmp_path: Path) -> None:
    graph = "g (float[N,S] x) => (float[N,T] y) { shape = Constant <value_ints = [-1, 48]> () y = Reshape(x, shape) }"
    path = save_model(make_model(graph), tmp_path)
    with pytest.raises(InputError, match=r"cannot run it on batch inputs x \[1, 64\]: .*--dim NAME=SIZE"):
        measure(path, settings=QUICK)
    measure(path, settings=BenchSettings(Sizes(dims={"S": 96}), runs=1, loads=0))


def test_progress_tells_each_part(tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    measure(models.mlp(tmp_path), settings=QUICK, progress=lambda *step: told.append(step))
    assert list(dict.fromkeys(what for what, _, _ in told)) == ["opening", "warming up batch", "batch"]
    assert told[-1] == ("batch", 3, 3)


def test_loads_are_measured_in_fresh_processes(tmp_path: Path) -> None:
    path = _compiled(models.decoder(tmp_path), tmp_path / "out")
    found = measure(path, settings=BenchSettings(Sizes(tokens=4), threads=1, runs=1, loads=2)).loads
    assert found is not None and found.pairs == 2 and found.times_as_fast is not None
    for side in (found.model, found.against):
        assert side is not None and isinstance(side.seconds, Spread) and side.seconds.p10 > 0
        assert 0 < side.load_anonymous_bytes <= side.run_anonymous_bytes
        assert 0 < side.load_resident_bytes <= side.run_resident_bytes


def test_a_load_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qcompiler.bench.loading.WORKER", "qcompiler.no_such_module")
    with pytest.raises(ResourceError, match=r"ended with status 1: .*no_such_module.*--loads 0"):
        measure(models.mlp(tmp_path), settings=BenchSettings(runs=1, loads=1))


def test_the_result_is_plain_values(tmp_path: Path) -> None:
    def check(value: Any) -> None:
        if isinstance(value, dict):
            assert all(isinstance(key, str) for key in value)
            value = list(value.values())
        if isinstance(value, list):
            for item in value:
                check(item)
        else:
            assert value is None or type(value) in (str, int, float, bool), value

    check(asdict(measure(models.mlp(tmp_path), models.mlp(tmp_path), QUICK)))


def test_where_the_time_goes_is_told_for_each_side_by_operator(tmp_path: Path) -> None:
    path = _compiled(models.decoder(tmp_path), tmp_path / "out")
    found = measure(path.parent, settings=replace(QUICK, operators=True))
    (prefill,) = found.workloads
    assert prefill.against is not None
    ours, theirs = prefill.model.operators, prefill.against.operators
    assert any(operator.op.startswith("ai.qcompiler::MatMulNBits") for operator in ours)
    assert any(operator.op == "com.microsoft::MatMulNBits" for operator in theirs)
    for side in (ours, theirs):
        assert sum(operator.share for operator in side) == pytest.approx(1.0)
        assert [operator.seconds for operator in side] == sorted((o.seconds for o in side), reverse=True)
    assert len(prefill.model.every) == 3


def _earlier(found: Benchmark, path: Path, factor: float) -> Path:
    """The same benchmark as JSON, each time so many times as long."""
    told = asdict(found)
    for workload in told["workloads"]:
        workload["model"]["seconds"] = {
            key: factor * value for key, value in workload["model"]["seconds"].items()
        }
    path.write_text(to_json(told))
    return path


def test_beside_an_earlier_one(tmp_path: Path) -> None:
    found = measure(models.decoder(tmp_path), settings=QUICK)
    path = _earlier(found, tmp_path / "then.json", 1000.0)
    since = beside_earlier(found, path, read_earlier(path)).since
    assert since is not None and since.left_out == []
    (change,) = since.changes
    assert change.times_as_fast == pytest.approx(1000.0) and change.apart
    same = _earlier(found, tmp_path / "same.json", 1.0)
    again = beside_earlier(found, same, read_earlier(same)).since
    assert again is not None and not again.changes[0].apart
    other = measure(tmp_path / "float.onnx", settings=replace(QUICK, sizes=Sizes(tokens=5)))
    beside = beside_earlier(other, path, read_earlier(path)).since
    assert beside is not None and beside.changes == [] and beside.left_out == ["prefill"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"workloads": [{"name": "prefill"}]}'])
def test_what_is_no_earlier_benchmark_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "then.json"
    path.write_text(text)
    with pytest.raises(InputError, match="no JSON of qcompile bench"):
        read_earlier(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_earlier(tmp_path / "nowhere.json")


def test_every_run_is_drawn(tmp_path: Path) -> None:
    found = measure(models.decoder(tmp_path), settings=QUICK)
    drawn = bench_plot(found)
    assert drawn.startswith("<svg") and "share of runs" in drawn and "prefill" in drawn
    assert "currentColor" not in drawn  # a file of its own has no page to take colours from
