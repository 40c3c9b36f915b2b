"""FakeQuantRows: its body, which is what runs, against the numbers that it stands for."""

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from qcompiler.graph import fake_quant_rows
from qcompiler.graph.edits import Names
from qcompiler.quant.activations import rounded_rows
from tests.small_models import make_model, run


@pytest.mark.parametrize(("kind", "dtype"), [("float", np.float32), ("float16", np.float16)])
def test_the_body_rounds_rows(kind: str, dtype: Any) -> None:
    model = ir.serde.deserialize_model(
        make_model(f"g ({kind}[B,M,8] x) => ({kind}[B,M,8] y) {{ y = Identity(x) }}")
    )
    x = model.graph.inputs[0]
    assert x.dtype is not None
    node = fake_quant_rows.fake_quant_rows(x, x.dtype, Names(model))
    model.graph.insert_before(model.graph[0], node)
    model.graph[1].replace_input_with(0, node.outputs[0])
    fake_quant_rows.provide(model)
    values = np.random.default_rng(0).standard_normal((2, 3, 8)).astype(dtype)
    values[1, 1] = 0
    (found,) = run(model, {"x": values}).values()
    np.testing.assert_allclose(
        found, rounded_rows(values).astype(dtype), rtol=1e-3 if dtype == np.float16 else 1e-6
    )
