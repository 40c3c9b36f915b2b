"""ai.qcompiler::MatMulCodebook in ONNX Runtime: its numbers, what it refuses, and the same model without our library."""

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

from qcompiler.graph.operator_body import OUR_DOMAIN
from qcompiler.graph.own_matmul_codebook import best_multiple, provide, reference
from qcompiler.graph.session_errors import SESSION_ERRORS
from qcompiler.quant import packing
from qcompiler.quant.codebook import TABLES
from qcompiler.runtime import register
from tests.nbits_product import EPSILON, Array, activations

QUANT_TYPES: dict[Any, int] = {"fp4": 0, "nf4": 1}


class Product:
    """A product whose constants and attributes a test may change."""

    def __init__(
        self, n: int, k: int, block_size: int = 64, dtype: Any = "nf4", scale_type: Any = np.float32
    ) -> None:
        rng = np.random.default_rng(n + k)
        self.codes = rng.integers(0, 16, (n, k), np.uint8)
        self.scales = rng.uniform(0.05, 0.1, (n, k // block_size)).astype(scale_type)
        self.table, self.block_size, self.k = TABLES[dtype], block_size, k
        self.constants: dict[str, Array] = {
            "codes": packing.pack_high_first(self.codes), "scales": self.scales.reshape(-1)
        }  # fmt: skip
        self.attributes = {"K": k, "N": n, "block_size": block_size, "quant_type": QUANT_TYPES[dtype]}

    def expected(self, x: Array) -> Array:
        return reference(x, self.codes, self.scales, self.table, block_size=self.block_size)

    def model(self) -> onnx.ModelProto:
        node = helper.make_node(
            "MatMulCodebook", ["x", "codes", "scales"], ["y"], "product", domain=OUR_DOMAIN, **self.attributes
        )
        graph = helper.make_graph(
            [node],
            "g",
            [helper.make_tensor_value_info("x", 1, ["M", self.k])],
            [helper.make_tensor_value_info("y", 1, None)],
            [numpy_helper.from_array(array, name) for name, array in self.constants.items()],
        )
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid(OUR_DOMAIN, 1)]
        loaded = ir.serde.deserialize_model(helper.make_model(graph, opset_imports=opsets, ir_version=10))
        provide(loaded)
        return ir.serde.serialize_model(loaded)


def session(model: onnx.ModelProto, ours: bool = True) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if ours:
        register(options)
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("m", [0, 1, 13, 600])
@pytest.mark.parametrize(
    ("n", "k", "block_size"), [(1, 16, 16), (40, 192, 64), (17, 256, 128), (33, 512, 256)]
)
@pytest.mark.parametrize("dtype", ["nf4", "fp4"])
def test_numbers(dtype: str, n: int, k: int, block_size: int, m: int) -> None:
    product = Product(n, k, block_size, dtype)
    x = activations(m, k)
    found, expected = session(product.model()).run(None, {"x": x})[0], product.expected(x)
    # A rounding for each group's part and one for the sum, in float32.
    parts = k // min(block_size, 128) + 1
    np.testing.assert_allclose(
        found, expected, rtol=0, atol=4 * parts * EPSILON * float(np.abs(expected).max(initial=1))
    )


def test_the_body_computes_the_same_to_the_rounding_of_activations_and_table() -> None:
    for dtype in QUANT_TYPES:
        product = Product(40, 192, dtype=dtype)
        x = activations(30, 192)
        ours, stock = (session(product.model(), ours).run(None, {"x": x})[0] for ours in (True, False))
        weights = product.table[product.codes] * np.repeat(product.scales, product.block_size, 1)
        # Errors of a variance of a twelfth of a step squared, of x times the weights and of the table times x.
        step, whole = float(np.abs(x).max()) / 127, float(product.scales.max()) / best_multiple(product.table)
        spread = np.hypot(
            step * float(np.linalg.norm(weights, axis=1).max()),
            whole * float(np.linalg.norm(x, axis=1).max()),
        )
        np.testing.assert_allclose(ours, stock, rtol=0, atol=6 * np.sqrt(1 / 12) * spread)


def test_the_table_is_rounded_by_less_than_a_256th() -> None:
    for table in TABLES.values():
        multiple = best_multiple(table)
        assert np.abs(np.rint(table * multiple) / multiple - table).max() < 1 / 256


def test_float16_scales() -> None:
    product = Product(40, 192, scale_type=np.float16)
    x = activations(3, 192)
    found, expected = session(product.model()).run(None, {"x": x})[0], product.expected(x)
    np.testing.assert_allclose(found, expected, rtol=0, atol=16 * EPSILON * float(np.abs(expected).max()))


@pytest.mark.parametrize(
    ("attributes", "constants", "said"),
    [
        ({"block_size": 40}, {}, "block_size is 40; a multiple of 16 that divides K = 192 is needed"),
        ({"block_size": 128}, {}, "block_size is 128; a multiple of 16 that divides K = 192"),
        ({"quant_type": 2}, {}, "attribute quant_type is 2"),
        ({"N": -1}, {}, "attribute N is -1"),
        ({"N": 1 << 31, "K": 1 << 31}, {}, "codes has"),
        ({}, {"codes": np.zeros(7, np.uint8)}, "codes has 7 elements; the attributes make it 3840"),
        ({}, {"scales": np.zeros(7, np.float32)}, "scales has 7 elements; the attributes make it 120"),
        ({}, {"scales": np.zeros(120, np.float64)}, "scales are neither float32 nor float16"),
    ],
)
def test_a_bad_node_is_refused_when_the_session_is_created(
    attributes: dict[str, int], constants: dict[str, Array], said: str
) -> None:
    product = Product(40, 192)
    product.attributes |= attributes
    product.constants |= constants
    with pytest.raises(SESSION_ERRORS, match=said):
        session(product.model())
