"""LeaveRoundingToKernels: only where the kernel rounds by itself, and the unused body goes."""

import numpy as np
import onnx
import pytest

from qcompiler.passes.leave_rounding_to_kernels import LeaveRoundingToKernels
from tests.rounded_product import FAKE_QUANT_ROWS
from tests.small_models import apply_pass, make_model, op_types


def _model(level: int) -> onnx.ModelProto:
    constants = {
        "b": np.full((16, 1, 32), 130, np.uint8),
        "s": np.full((16, 1), 0.01, np.float32),
    }
    return make_model(
        "g (float[M,32] x) => (float[M,16] y) { r = ai.qcompiler.FakeQuantRows(x) "
        f"y = com.microsoft.MatMulNBits<K=32, N=16, bits=8, block_size=32, accuracy_level={level}>(r, b, s) }}",
        constants,
        functions=FAKE_QUANT_ROWS,
        domains={"com.microsoft": 1, "ai.qcompiler": 1},
    )


def test_the_rounding_goes_with_its_body_and_domain() -> None:
    after, modified = apply_pass(LeaveRoundingToKernels(), _model(4))
    assert modified and op_types(after) == ["MatMulNBits"]
    assert after.graph[0].inputs[0] is after.graph.inputs[0]
    assert not after.functions and "ai.qcompiler" not in after.graph.opset_imports
    assert not apply_pass(LeaveRoundingToKernels(), after)[1]


@pytest.mark.parametrize("level", [0, 1])
def test_a_product_in_floats_keeps_it(level: int) -> None:
    after, modified = apply_pass(LeaveRoundingToKernels(), _model(level))
    assert not modified and op_types(after) == ["FakeQuantRows", "MatMulNBits"]
    assert ("ai.qcompiler", "FakeQuantRows", "") in after.functions
