"""What products say of themselves in a compiled model."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from qcompiler.graph.edits import all_nodes
from qcompiler.graph.quantized import ALGORITHM_KEY, REASON_KEY, SCHEME_KEY, SQNR_KEY
from qcompiler.graph.weights import Role
from qcompiler.passes.note_products import NoteProducts
from qcompiler.recipe.plan import Plan, SkippedProduct
from tests.small_models import apply_pass, make_model, op_types, weight

NOTES = {
    SCHEME_KEY: "int8 channel sym",
    ALGORITHM_KEY: "gptq",
    REASON_KEY: "recipe w8a8-static",
    SQNR_KEY: "41.0",
}
TEXT = """g (float[1,4,8,8] x) => (float[1,16] y) {
    k = DequantizeLinear<axis=0>(codes, scale)  s = Reshape(k, shape)
    c = Conv<pads=[1,1,1,1]>(x, s)
    r = ReduceMean<keepdims=0>(c, axes)
    y = MatMul(r, w)
}"""


def _model() -> onnx.ModelProto:
    constants = {
        "codes": np.ones((16, 36), np.int8), "scale": np.ones(16, np.float32), "shape": np.array([16, 4, 3, 3]),
        "axes": np.array([2, 3]), "w": weight(16, 16),
    }  # fmt: skip
    model = make_model(TEXT, constants)
    for node in model.graph.node:
        node.name = f"node_{node.output[0]}"
    for key, text in NOTES.items():
        model.graph.node[0].metadata_props.add(key=key, value=text)
    return model


def _notes(model: ir.Model) -> dict[str, dict[str, str]]:
    return {node.outputs[0].name or "": dict(node.metadata_props) for node in all_nodes(model)}


@pytest.mark.parametrize(("named", "noted"), [("w", True), ("another", False)])
def test_products_have_the_notes_of_their_weights_or_the_reason_of_the_plan(named: str, noted: bool) -> None:
    plan = Plan([], [SkippedProduct(named, Role.LINEAR, "MatMul", (16, 16), "too dear", 1024)])
    transform = NoteProducts(plan)
    source = _model()
    model, modified = apply_pass(transform, source)
    assert modified and op_types(model) == op_types(source)
    notes = _notes(model)
    assert notes["c"] == notes["k"] == NOTES
    assert notes["y"] == ({REASON_KEY: "too dear"} if noted else {})
    assert notes["s"] == notes["r"] == {}
    assert not apply_pass(transform, model)[1]
