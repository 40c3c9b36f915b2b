"""qcompile bench: its JSON, its table, bad input."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models import tiny_lm
from models.cache import UnavailableError
from tests import command_models as models
from tests.command_line import RTN, Command

QUICK = ["--runs", "2", "--threads", "1"]
SPREAD = {"median", "p10", "p90"}
RATIO = {"median", "lower_quartile", "upper_quartile", "of_medians"}
LOADS = {
    "seconds", "load_anonymous_bytes", "load_resident_bytes", "run_anonymous_bytes", "run_resident_bytes",
}  # fmt: skip


def _check_schema(found: dict[str, Any], both: bool) -> None:
    assert list(found) == [
        "model", "against", "threads", "onnxruntime", "workloads", "loads", "notes", "qcompiler", "since",
    ]  # fmt: skip
    sides = ["model", "against"] if both else ["model"]
    assert (found["against"] is not None) == both
    assert all(found[side].keys() == {"path", "how"} for side in sides)
    for workload in found["workloads"]:
        assert list(workload) == [
            "name", "tokens", "past", "shapes", "pairs", "model", "against", "times_as_fast",
        ]  # fmt: skip
        for side in sides:
            assert workload[side].keys() == {"seconds", "tokens_per_second", "every", "operators"}
            assert workload[side]["seconds"].keys() == SPREAD
        assert not both or workload["times_as_fast"].keys() == RATIO
    loads = found["loads"]
    if loads is not None:
        assert list(loads) == ["pairs", "model", "against", "times_as_fast"]
        assert all(loads[side].keys() == LOADS and loads[side]["seconds"].keys() == SPREAD for side in sides)


def test_a_tiny_language_model_both_ways(run: Command, tmp_path: Path) -> None:
    try:
        source = tiny_lm.build().path
    except UnavailableError as error:
        pytest.skip(str(error))
    assert run(source, *RTN, "--target", "qcompiler", "-o", "out").status == 0
    own = run("bench", "out", "--tokens", "8", "--loads", "1", *QUICK, "--json")
    assert own.status == 0 and own.err == ""
    found = json.loads(own.out)
    _check_schema(found, both=True)
    (prefill,) = found["workloads"]
    assert (prefill["name"], prefill["tokens"], prefill["pairs"]) == ("prefill", 8, 2)
    assert found["model"]["how"] == "with our library" and found["loads"]["pairs"] == 1
    given = run("bench", "out", "--against", source, "--tokens", "8", "--loads", "0", *QUICK, "--json")
    found = json.loads(given.out)
    _check_schema(found, both=True)
    assert found["against"]["path"] == str(source) and found["loads"] is None


def test_one_model_alone(run: Command, tmp_path: Path) -> None:
    outcome = run("bench", models.mlp(tmp_path), "--loads", "0", "--dim", "M=3", *QUICK, "--json")
    found = json.loads(outcome.out)
    _check_schema(found, both=False)
    assert found["workloads"][0]["shapes"] == {"x": [3, 64]} and found["threads"] == 1


def test_the_table_shows_both_and_the_ratio(run: Command, tmp_path: Path) -> None:
    path = models.decoder(tmp_path)
    out = run("bench", path, "--against", path, "--tokens", "4", "--loads", "1", *QUICK).out
    for words in (
        "the same file",
        "prefill, 4 tokens",
        "2 runs each, in turn",
        "times as fast",
        "1 process each",
        "anonymous",
    ):
        assert words in out
    alone = run("bench", path, "--tokens", "4", "--loads", "0", *QUICK).out
    assert "times as fast" not in alone and "prefill 2 runs" in alone and "measured alone" in alone


def test_data_of_the_users(run: Command, tmp_path: Path) -> None:
    data = models.feeds_file(tmp_path, x=np.ones((5, 64), np.float32))
    found = json.loads(
        run("bench", models.mlp(tmp_path), "--data", data, "--loads", "0", *QUICK, "--json").out
    )
    assert found["workloads"][0]["name"] == "data" and found["workloads"][0]["shapes"] == {"x": [5, 64]}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--against", "missing.onnx"], ["missing.onnx: no such file"]),
        (["--dim", "m=3"], ["--dim m", "use one of: M"]),
        (["--data", "none.npz"], ["none.npz", "float.onnx"]),
    ],
)
def test_bad_input(run: Command, tmp_path: Path, options: list[str], words: list[str]) -> None:
    outcome = run("bench", models.mlp(tmp_path), *options)
    assert outcome.status == 2
    assert all(word in outcome.error for word in words), outcome.error


def test_a_model_that_is_not_there(run: Command) -> None:
    outcome = run("bench", "missing.onnx", "--json")
    assert outcome.status == 2 and "missing.onnx: no such file" in json.loads(outcome.out)["error"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--runs", "3", "--seconds", "1"], "exclude each other"),
        (["--runs", "0"], "--runs"),
        (["--seconds", "0"], "--seconds"),
        (["--threads", "0"], "--threads"),
        (["--dim", "batch"], "NAME=SIZE"),
        (["--dim", "batch=0"], "NAME=SIZE"),
    ],
)
def test_bad_usage(run: Command, options: list[str], words: str) -> None:
    outcome = run("bench", "m.onnx", *options)
    assert outcome.status == 2 and words in outcome.err
