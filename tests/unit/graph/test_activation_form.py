"""activation_behind: activation functions in the nodes that exporters write, and what only looks like one."""

import math
from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from qcompiler.graph.activation import Activation
from qcompiler.graph.activation_form import activation_behind
from tests.small_models import make_model, run

NUMBERS = {
    "half": 0.5, "one": 1.0, "two": 2.0, "three": 3.0, "root": math.sqrt(2), "inverse": math.sqrt(0.5), "slope": math.sqrt(2 / math.pi),
    "short": 0.7978845608, "cubic": 0.044715, "quick": 1.702, "steep": 2 * math.sqrt(2 / math.pi), "other": 0.8,
}  # fmt: skip
BENT = "a = Mul(v, v) b = Mul(a, v) c = Mul(b, cubic) d = Add(v, c)"
GELU, FAST = Activation("Gelu"), Activation("FastGelu")
V = np.concatenate([np.linspace(-8, 8, 401), [-100, 100]]).astype(np.float32).reshape(1, -1)


def _model(nodes: str, outputs: str = "float[M,N] y") -> onnx.ModelProto:
    constants = {name: np.array(number, np.float32) for name, number in NUMBERS.items() if name in nodes}
    constants["one_long"] = np.array([1], np.float32)
    constants["row"] = np.full((1, 1, 1), 0.5, np.float32)
    return make_model(
        f"g (float[M,N] x) => ({outputs}) {{ v = Identity(x) {nodes} }}",
        {name: array for name, array in constants.items() if name in nodes},
        domains={"com.microsoft": 1},
    )


def _found(model: onnx.ModelProto) -> tuple[Activation | None, bool]:
    loaded = ir.serde.deserialize_model(model)
    form = activation_behind(next(node.outputs[0] for node in loaded.graph if node.op_type == "Identity"))
    return (None, False) if form is None else (form.activation, form.shared)


FORMS = {
    "relu": ("y = Relu(v)", Activation("Relu")),
    "one node": ("y = Gelu(v)", GELU),
    "one node, tanh": ('y = Gelu <approximate = "tanh"> (v)', FAST),
    "ONNX Runtime's Gelu": ("y = com.microsoft.Gelu(v)", GELU),
    "ONNX Runtime's FastGelu": ("y = com.microsoft.FastGelu(v)", FAST),
    "ONNX Runtime's QuickGelu": ("y = com.microsoft.QuickGelu <alpha = 1.5> (v)", Activation("QuickGelu", 1.5)),
    "its default": ("y = com.microsoft.QuickGelu(v)", Activation("QuickGelu", 1.702)),
    "silu": ("s = Sigmoid(v) y = Mul(v, s)", Activation("QuickGelu", 1.0)),
    "quick": ("a = Mul(quick, v) s = Sigmoid(a) y = Mul(s, v)", Activation("QuickGelu", 1.702)),
    "erf, torch": ("d = Div(v, root) e = Erf(d) p = Add(e, one) m = Mul(v, p) y = Mul(m, half)", GELU),
    "erf, half first": ("h = Mul(half, v) d = Mul(v, inverse) e = Erf(d) p = Add(one_long, e) y = Mul(h, p)", GELU),
    "erf, divided": ("d = Div(v, root) e = Erf(d) p = Add(e, one) h = Div(v, two) y = Mul(p, h)", GELU),
    "erf, half inside": ("d = Div(v, root) e = Erf(d) p = Add(e, one) h = Mul(p, half) y = Mul(v, h)", GELU),
    "tanh, Pow": (
        "a = Pow(v, three) c = Mul(cubic, a) d = Add(v, c) i = Mul(slope, d) t = Tanh(i) p = Add(one, t) h = Mul(half, v) y = Mul(h, p)",
        FAST,
    ),
    "tanh, Mul": (f"{BENT} i = Mul(d, slope) t = Tanh(i) p = Add(t, one) m = Mul(v, p) y = Mul(half, m)", FAST),
    "tanh, fewer digits, factored": (
        "a = Mul(v, cubic) b = Mul(a, v) c = Add(one, b) d = Mul(v, short) i = Mul(d, c) t = Tanh(i) p = Add(one, t) h = Mul(v, half) "
        "y = Mul(h, p)",
        FAST,
    ),
    "tanh as a sigmoid": (f"{BENT} i = Mul(d, steep) s = Sigmoid(i) y = Mul(v, s)", FAST),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_a_form_is_known_and_has_the_numbers_of_its_function(name: str) -> None:
    nodes, expected = FORMS[name]
    model = _model(nodes)
    activation, shared = _found(model)
    assert activation is not None and not shared
    assert activation.kind == expected.kind and activation.alpha == pytest.approx(expected.alpha, rel=1e-6)
    # ONNX Runtime's functions in float32, with a cancellation of 1 + erf(v), 1 + tanh(u): epsilons of v.
    y = activation.of(V.astype(np.float64))
    np.testing.assert_array_less(np.abs(run(model, {"x": V})["y"] - y), 8 * 1.2e-7 * np.abs(V) + 1e-9)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (torch.nn.ReLU, Activation("Relu")),
        (torch.nn.GELU, GELU),
        (lambda: torch.nn.GELU("tanh"), FAST),
        (torch.nn.SiLU, Activation("QuickGelu", 1.0)),
    ],
)
def test_what_torch_exports_at_an_opset_without_gelu(
    make: Callable[[], torch.nn.Module], expected: Activation
) -> None:
    program = torch.onnx.export(
        make().eval(), (torch.zeros(2, 3),), dynamo=True, opset_version=18, verbose=False
    )
    assert program is not None
    graph = program.model.graph
    # The model's input has no node that makes it; one is put before.
    before = ir.node("Identity", [graph.inputs[0]])
    ir.convenience.replace_all_uses_with(graph.inputs[0], before.outputs[0])
    before.replace_input_with(0, graph.inputs[0])
    graph.insert_before(graph[0], before)
    form = activation_behind(before.outputs[0])
    assert form is not None and form.activation == expected and not form.shared
    assert form.nodes[-1].outputs[0].is_graph_output()


@pytest.mark.parametrize(
    "nodes",
    [
        "s = Sigmoid(v) y = Mul(s, s)",
        "a = Mul(v, v) s = Sigmoid(v) y = Mul(a, s)",
        "s = Sigmoid(v) a = Mul(v, two) y = Mul(a, s)",
        "a = Add(v, one) s = Sigmoid(a) y = Mul(v, s)",
        "d = Mul(v, other) e = Erf(d) p = Add(e, one) m = Mul(v, p) y = Mul(m, half)",
        "d = Div(v, root) e = Erf(d) m = Mul(v, e) y = Mul(m, half)",
        "d = Div(v, root) e = Erf(d) p = Sub(one, e) m = Mul(v, p) y = Mul(m, half)",
        "t = Tanh(v) p = Add(t, one) m = Mul(v, p) y = Mul(half, m)",
        "d = Div(v, root) e = Erf(d) p = Add(e, one) m = Mul(v, p) y = Mul(m, row)",
        "a = Mul(v, two) y = Relu(a)",
        "y = LeakyRelu(v)",
        "y = com.microsoft.FastGelu(v, one_long)",
        "a = Mul(v, v) b = Mul(a, a) c = Mul(b, b) y = Mul(c, c)",
        "y = Pow(v, half)",
        "y = Div(one, v)",
    ],
)
def test_what_is_none_is_not_taken_for_one(nodes: str) -> None:
    outputs = "float[A,M,N] y" if "row" in nodes else "float[M,N] y"
    assert _found(_model(nodes, outputs)) == (None, False)


@pytest.mark.parametrize(
    ("nodes", "outputs"),
    [
        ("s = Sigmoid(v) y = Mul(v, s) z = Neg(v)", "float[M,N] y, float[M,N] z"),
        ("s = Sigmoid(v) y = Mul(v, s) z = Neg(s)", "float[M,N] y, float[M,N] z"),
        ("s = Sigmoid(v) y = Mul(v, s)", "float[M,N] y, float[M,N] s"),
        ("s = Sigmoid(v) y = Mul(v, s)", "float[M,N] y, float[M,N] v"),
    ],
)
def test_what_is_between_and_read_elsewhere_is_told(nodes: str, outputs: str) -> None:
    assert _found(_model(nodes, outputs)) == (Activation("QuickGelu", 1.0), True)
