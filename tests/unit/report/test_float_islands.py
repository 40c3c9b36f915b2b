"""Which float nodes are islands between integers, of graphs written down as nodes that run."""

import pytest

from qcompiler.report.float_islands import float_islands
from qcompiler.targets.profiled_session import ProfiledSession, RunningNode

WEIGHTS = {"k": 4, "w": 2, "s": 0, "b": 1}


def _session(*lines: str) -> ProfiledSession:
    """Each line is ``result = Operator(what it reads)``, and takes a microsecond."""
    nodes = []
    for line in lines:
        result, _, call = line.partition(" = ")
        op, _, inputs = call.rstrip(")").partition("(")
        reads = tuple(name.strip() for name in inputs.split(","))
        nodes.append(RunningNode(f"n_{result}", op, reads, (result,), "CPUExecutionProvider", 1.0))
    return ProfiledSession(["CPUExecutionProvider"], False, nodes, WEIGHTS, ["x"], ["y"])


def _islands(*lines: str) -> list[tuple[list[str], str]]:
    return [(island.nodes, island.reason) for island in float_islands(_session(*lines))]


BEFORE = ("q = QuantizeLinear(x, s)", "c = QLinearConv(q, s, k)", "d = DequantizeLinear(c, s)")
AFTER = ("r = QuantizeLinear(e, s)", "y = QLinearConv(r, s, k)")


@pytest.mark.parametrize(
    ("middle", "reason"),
    [
        (["e = Tanh(d)"], "no integer kernel takes Tanh"),
        (["a = ReorderInput(d)", "e = Erf(a)"], "no integer kernel takes Erf"),
        (["a = Add(d, s)", "e = Mul(d, a)"], "what lies between these nodes is not rounded"),
        (["e = Conv(d, k)"], "its weight k is float"),
        (["e = Sigmoid(d)"], "ONNX Runtime did not fuse it"),
    ],
)
def test_what_is_unpacked_computed_and_rounded_again(middle: list[str], reason: str) -> None:
    ((nodes, said),) = _islands(*BEFORE, *middle, *AFTER)
    assert nodes == [f"n_{line.partition(' = ')[0]}" for line in middle]
    assert said.startswith(reason)


def test_time_is_that_of_unpacking_and_rounding_too() -> None:
    (island,) = float_islands(_session(*BEFORE, "e = Tanh(d)", *AFTER))
    assert island.microseconds == 3.0 and island.share == pytest.approx(3 / 6)
    assert island.reads == ["c"]


def test_a_value_that_several_read() -> None:
    (found, _) = _islands(*BEFORE, "e = Sigmoid(d)", *AFTER, "f = AveragePool(d)", "g = QuantizeLinear(f, s)")
    assert found == (
        ["n_e"], "d is unpacked for several nodes; kernels take a value with a DequantizeLinear of its own"
    )  # fmt: skip


@pytest.mark.parametrize(
    "lines",
    [
        [*BEFORE, "y = Tanh(d)"],  # floats are what the model yields
        ["a = Tanh(x)", "r = QuantizeLinear(a, s)", "y = QLinearConv(r, s, k)"],  # and what it is given
        [*BEFORE, "a = Tanh(d)", "e = Add(a, x)", *AFTER],
        ["u = DequantizeLinear(k, s)", "e = Relu(u)", *AFTER],  # a weight
        [*BEFORE, "r = QuantizeLinear(d, s)", "y = QLinearConv(r, s, k)"],  # to another scale
    ],
)
def test_other_floats(lines: list[str]) -> None:
    assert _islands(*lines) == []


def test_products_of_codes_that_yield_floats_bound_an_island() -> None:
    found = _islands(
        *BEFORE, "a = Tanh(d)", "r = QuantizeLinear(a, s)", "m = MatMulIntegerToFloat(r, w, s)", "e = Erf(m)",
        "p = QuantizeLinear(e, s)", "y = QLinearConv(p, s, k)",
    )  # fmt: skip
    assert [nodes for nodes, _ in found] == [["n_a"]]
