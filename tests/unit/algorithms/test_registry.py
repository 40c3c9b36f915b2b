import subprocess
import sys
import textwrap
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qcompiler import algorithms
from qcompiler.algorithms import ALGORITHMS, Need
from qcompiler.errors import SchemeError
from qcompiler.quant.scheme import Granularity, QuantScheme


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "own_quantizer.py").write_text(
        textwrap.dedent(
            """
            from dataclasses import dataclass
            from qcompiler.algorithms import Algorithm, rtn

            def coarse(weight, statistics, scheme, options):
                return rtn.quantize(weight.round(), statistics, scheme)

            @dataclass(frozen=True)
            class Options:
                times: int = 2

            described = Algorithm("described", "quantizer", frozenset(), Options, coarse)
            number = 3
            """
        )
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own_quantizer", raising=False)
    return "own_quantizer"


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda algorithm: algorithm.name)
def test_ours_are_found_by_name(algorithm: algorithms.Algorithm) -> None:
    assert algorithms.find(algorithm.name) is algorithm


def test_a_users_function_is_a_quantizer(user_module: str) -> None:
    found = algorithms.find(f"{user_module}:coarse")
    assert (found.kind, found.needs, found.options) == (
        "quantizer",
        frozenset({Need.HESSIAN}),
        algorithms.NoOptions,
    )
    weight = np.random.default_rng(0).normal(size=(2, 16)).astype(np.float32) * 4
    tensor = found.run(weight, None, QuantScheme(8, True, Granularity.CHANNEL), found.options())
    assert tensor.shape == (2, 16)


def test_a_users_algorithm_says_itself_what_it_needs(user_module: str) -> None:
    found = algorithms.find(f"{user_module}:described")
    assert found.needs == frozenset() and found.options().times == 2


def test_an_entry_point_is_found_by_its_name(user_module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("coarse", f"{user_module}:coarse", algorithms.ENTRY_POINTS)

    def installed(*, group: str) -> list[EntryPoint]:
        return [point] if group == algorithms.ENTRY_POINTS else []

    monkeypatch.setattr(algorithms, "entry_points", installed)
    assert algorithms.find("coarse").kind == "quantizer"
    with pytest.raises(SchemeError, match="did you mean coarse"):
        algorithms.find("coarser")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("mes", "'mes' is not known; did you mean mse?"),
        ("zzzz", "there are rtn, mse, awq"),
        ("no_such_module_here:f", "no module no_such_module_here"),
        ("own_quantizer:corse", "did you mean coarse?"),
        ("own_quantizer:number", "must be a function or an Algorithm, not int"),
    ],
)
def test_errors_name_the_nearest(user_module: str, name: str, told: str) -> None:
    with pytest.raises(SchemeError) as raised:
        algorithms.find(name)
    assert told in str(raised.value) and "\n" not in str(raised.value)


def test_importing_the_table_imports_no_torch() -> None:
    code = "import sys, qcompiler.algorithms; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_option_is_plain(user_module: Any) -> None:
    for algorithm in ALGORITHMS:
        assert algorithm.options() == algorithm.options()
