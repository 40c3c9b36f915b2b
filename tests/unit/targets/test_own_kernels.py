"""Target qcompiler: the saved model has to load with our library and without it."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from qcompiler.errors import PromiseError
from qcompiler.graph.operator_body import OUR_DOMAIN
from qcompiler.graph.own_matmul_nbits import provide
from qcompiler.targets import own_kernels
from tests.small_models import make_model, save_model

N, GROUPS = 16, 2


def _saved(scales: tuple[int, ...], folder: Path) -> Path:
    """One product on our operator, with its body; our kernels only count the scales, the body needs [N, G]."""
    constants = {
        "codes": np.full((N, GROUPS, 16), 0x5A, np.uint8), "scales": np.full(scales, 0.01, np.float32),
    }  # fmt: skip
    sizes = f"K=64, N={N}, bits=4, block_size=32"
    model = make_model(
        f"g (float[M,64] x) => (float[M,{N}] y) {{ y = {OUR_DOMAIN}.MatMulNBits<{sizes}>(x, codes, scales) }}",
        constants,
        domains={OUR_DOMAIN: 1},
    )
    loaded = ir.serde.deserialize_model(model)
    provide(loaded)
    made: onnx.ModelProto = ir.serde.serialize_model(loaded)
    return save_model(made, folder)


def test_a_model_that_loads_both_ways_is_verified(tmp_path: Path) -> None:
    assert own_kernels.verify(_saved((N, GROUPS), tmp_path), []) == {}


def test_a_model_that_needs_our_library_breaks_the_promise(tmp_path: Path) -> None:
    with pytest.raises(
        PromiseError, match=r"^float\.onnx: .* cannot load the compiled model without our library: "
    ):
        own_kernels.verify(_saved((N * GROUPS,), tmp_path), [])
