"""FoldBatchNorm: the same function without the norm, and norms that stay."""

import numpy as np
import pytest

from qcompiler.passes.fold_batch_norm import FoldBatchNorm
from tests.small_models import Array, apply_pass, assert_equal_outputs, make_model, op_types, run, weight

# float32 sums of 27 products, once multiplied before and once after.
ROUNDING = 1e-5
SIGNATURE = "g (float[B,3,6,6] x) => (float[B,5,4,4] y)"


def _constants() -> dict[str, Array]:
    rng = np.random.default_rng(0)
    return {
        "k": weight(5, 3, 3, 3, scale=0.3), "b": weight(5, seed=1), "gamma": rng.uniform(-2, 2, 5).astype(np.float32),
        "beta": weight(5, seed=2), "mean": weight(5, seed=3), "var": rng.uniform(0.1, 2, 5).astype(np.float32),
    }  # fmt: skip


def _x() -> Array:
    return np.random.default_rng(1).standard_normal((2, 3, 6, 6)).astype(np.float32)


@pytest.mark.parametrize("inputs", ["x, k", "x, k, b"])
def test_the_norm_goes_into_the_convolution(inputs: str) -> None:
    body = f"c = Conv({inputs}) y = BatchNormalization<epsilon=0.01>(c, gamma, beta, mean, var)"
    model = make_model(f"{SIGNATURE} {{ {body} }}", _constants())
    after, modified = apply_pass(FoldBatchNorm(), model)
    assert modified and op_types(after) == ["Conv"]
    assert_equal_outputs(run(model, {"x": _x()}, optimize=False), run(after, {"x": _x()}), ROUNDING)
    assert not apply_pass(FoldBatchNorm(), after)[1]


@pytest.mark.parametrize(
    "body",
    [
        "c = Conv(x, k) n = BatchNormalization(c, gamma, beta, mean, var) y = Add(n, c)",
        "c = Conv(x, k) m = Relu(c) y = BatchNormalization(m, gamma, beta, mean, var)",
        "c = Conv(x, k) v = ReduceMean<keepdims=0>(c, axes) y = BatchNormalization(c, v, beta, mean, var)",
    ],
    ids=["another reader", "not behind a convolution", "a computed factor"],
)
def test_others_stay(body: str) -> None:
    model = make_model(f"{SIGNATURE} {{ {body} }}", {**_constants(), "axes": np.array([0, 2, 3])})
    after, modified = apply_pass(FoldBatchNorm(), model)
    assert not modified and "BatchNormalization" in op_types(after)
