"""DropOperatorBodies: bodies that the library makes superfluous go, all others stay."""

import onnx

from qcompiler.graph.operator_body import OUR_DOMAIN
from qcompiler.passes.drop_operator_bodies import DropOperatorBodies
from tests.small_models import apply_pass, make_model, op_types

FUNCTIONS = f"""
<domain: "{OUR_DOMAIN}", opset_import: ["" : 21]> Fast (x) => (y) {{ y = Neg (x) }}
<domain: "{OUR_DOMAIN}", opset_import: ["" : 21]> Plain (x) => (y) {{ y = Neg (x) }}
<domain: "theirs", opset_import: ["" : 21]> Fast (x) => (y) {{ y = Neg (x) }}
"""
GRAPH = f"g (float[M] x) => (float[M] y) {{ a = {OUR_DOMAIN}.Fast (x) b = {OUR_DOMAIN}.Plain (a) y = theirs.Fast (b) }}"


def _model(functions: str = FUNCTIONS) -> onnx.ModelProto:
    return make_model(GRAPH, functions=functions, domains={OUR_DOMAIN: 1, "theirs": 1})


def test_only_bodies_of_operators_with_kernels_go() -> None:
    after, modified = apply_pass(DropOperatorBodies(["Fast"]), _model())
    assert modified
    assert [(key[0], key[1]) for key in after.functions] == [(OUR_DOMAIN, "Plain"), ("theirs", "Fast")]
    assert op_types(after) == ["Fast", "Plain", "Fast"]
    assert after.graph.opset_imports[OUR_DOMAIN] == 1  # without it the nodes are of no known version
    assert not apply_pass(DropOperatorBodies(["Fast"]), after)[1]


def test_a_model_without_such_bodies_is_left_alone() -> None:
    after, modified = apply_pass(DropOperatorBodies(["Other"]), _model())
    assert not modified and len(after.functions) == 3
