import subprocess
import sys
import textwrap
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qcompiler import algorithms
from qcompiler.algorithms import ALGORITHMS, Algorithm, Need, NoOptions
from qcompiler.errors import CalibrationError, SchemeError
from qcompiler.quant.affine_tensor import AffineTensor
from qcompiler.quant.scheme import Granularity, QuantScheme
from qcompiler.quant.two_level import Levels, TwoLevelTensor


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
    (tmp_path / "misspelt_quantizer.py").write_text(
        "from qcompiler.algorithms import Algorithm, NoOptions, rtn\n"
        "mine = Algorithm('mine', 'quantiser', frozenset(), NoOptions, rtn.quantize)\n"
    )
    (tmp_path / "broken_quantizer.py").write_text("def f(:\n")
    (tmp_path / "failing_quantizer.py").write_text("nothing\n")
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
    with pytest.raises(SchemeError, match="did you mean 'coarse'"):
        algorithms.find("coarser")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("mes", "'mes' is not known; did you mean 'mse'?"),
        ("zzzz", "use one of: "),
        ("no_such_module_here:f", "no module no_such_module_here"),
        ("own_quantizer:corse", "did you mean 'coarse'?"),
        (":coarse", "write package.module:function"),
        (".own_quantizer:coarse", "write package.module:function"),
        ("own_quantizer:", "write package.module:function"),
        ("broken_quantizer:f", "cannot be imported: SyntaxError"),
        ("failing_quantizer:f", "cannot be imported: NameError: name 'nothing' is not defined"),
        (
            "misspelt_quantizer:mine",
            "mine: kind 'quantiser' is none of transform, quantizer, refinement, reconstruction",
        ),
        ("own_quantizer:number", "must be a function or an Algorithm, not int"),
    ],
)
def test_errors_name_the_nearest(user_module: str, name: str, told: str) -> None:
    with pytest.raises(SchemeError) as raised:
        algorithms.find(name)
    assert told in str(raised.value) and "\n" not in str(raised.value)


INT4 = QuantScheme(4, True, Granularity.CHANNEL)


def a_tensor(scheme: QuantScheme = INT4, code: int = 3, scale: float = 0.5) -> AffineTensor:
    codes = np.full((2, 16), code, np.uint8)
    return AffineTensor(scheme, codes, np.full((2, 1), scale, np.float32), None)


def a_quantizer(run: Callable[..., object]) -> Algorithm:
    return Algorithm("mine:f", "quantizer", frozenset(), NoOptions, run)


def test_a_result_as_planned_passes() -> None:
    tensor = a_tensor()
    assert algorithms.checked(tensor, INT4, (2, 16), "fc: mine:f") is tensor


@pytest.mark.parametrize(
    ("result", "told"),
    [
        (np.zeros((2, 16)), "returned ndarray; return an AffineTensor"),
        (None, "returned NoneType"),
        (a_tensor(QuantScheme(8, True, Granularity.CHANNEL)), "returned int8 channel sym with float32"),
        (a_tensor(QuantScheme(4, True, Granularity.CHANNEL, None, "float16")), "with float16 scales where"),
        (AffineTensor(INT4, np.zeros((3, 8), np.uint8), np.ones((3, 1), np.float32), None), "(3, 8)"),
        (a_tensor(code=16), "returned the code 16; 4 bits hold 0 to 15"),
        (a_tensor(scale=np.nan), "scale of NaN or infinity"),
    ],
)
def test_a_result_that_was_not_planned_is_refused(result: object, told: str) -> None:
    with pytest.raises(SchemeError) as raised:
        algorithms.checked(result, INT4, (2, 16), "fc: mine:f")
    assert str(raised.value).startswith("fc: mine:f: ") and told in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("which", ["scales", "minima"])
def test_steps_of_two_levels_are_numbers(which: str) -> None:
    scheme = QuantScheme(4, False, Granularity.GROUP, 16, two_level=True)
    one, step = np.ones((2, 1), np.uint8), np.ones(1, np.float32)
    parts = {name: Levels(one, step * (np.inf if name == which else 1), 0) for name in ("scales", "minima")}
    result = TwoLevelTensor(scheme, np.zeros((2, 16), np.uint8), **parts)
    with pytest.raises(SchemeError, match="fc: mine:f: returned a scale of NaN or infinity"):
        algorithms.checked(result, scheme, (2, 16), "fc: mine:f")


def test_what_a_users_function_raises_names_it_and_the_layer() -> None:
    def fails(weight: object) -> object:
        raise KeyError("x\ny")

    with pytest.raises(
        SchemeError, match=r"^fc: algorithm mine:f raised KeyError: 'x\\ny'; correct it"
    ) as raised:
        algorithms.call(a_quantizer(fails), "fc", 1)
    assert isinstance(raised.value.__cause__, KeyError)

    def refuses(weight: object) -> object:
        raise CalibrationError("no Hessian")

    with pytest.raises(CalibrationError, match="^fc: no Hessian$"):
        algorithms.call(a_quantizer(refuses), "fc", 1)

    def is_full(weight: object) -> object:
        raise MemoryError

    with pytest.raises(MemoryError):
        algorithms.call(a_quantizer(is_full), "fc", 1)
    assert algorithms.call(a_quantizer(lambda weight: weight), "fc", 1) == 1


def test_our_own_defects_stay_defects_with_the_place() -> None:
    with pytest.raises(TypeError) as raised:
        algorithms.call(ALGORITHMS[0], "fc")
    assert raised.value.__notes__ == ["it was at fc, algorithm rtn"]


def test_importing_the_table_imports_no_torch() -> None:
    code = "import sys, qcompiler.algorithms; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_option_is_plain(user_module: Any) -> None:
    for algorithm in ALGORITHMS:
        assert algorithm.options() == algorithm.options()
