"""ai.qcompiler::MatMulNBits in ONNX Runtime: its numbers, what it refuses, and the same model without our library."""

import platform
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

from qcompiler.graph.operator_body import OUR_DOMAIN
from qcompiler.graph.own_matmul_nbits import provide, reference
from qcompiler.graph.session_errors import SESSION_ERRORS
from qcompiler.quant import packing
from qcompiler.quant.scheme import Granularity, QuantScheme
from qcompiler.runtime import register

Array = npt.NDArray[Any]
EPSILON = float(np.finfo(np.float32).eps)


@dataclass(frozen=True)
class Product:
    """A product and its weight, of which tests change one thing."""

    n: int = 40
    k: int = 100
    bits: int = 4
    block_size: int = 32
    symmetric: bool = False
    biased: bool = False
    scale_type: type = np.float32
    attributes: dict[str, int] = field(default_factory=dict)
    constants: dict[str, Array] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.n + self.k + self.bits)
        groups = -(-self.k // self.block_size)
        scheme = QuantScheme(self.bits, self.symmetric, Granularity.GROUP, self.block_size)
        codes = rng.integers(0, 1 << self.bits, (self.n, self.k), np.uint8)
        points = None if self.symmetric else rng.integers(0, 1 << self.bits, (self.n, groups), np.uint8)
        scales = rng.uniform(0.01, 0.02, (self.n, groups)).astype(self.scale_type)
        bias = rng.standard_normal(self.n).astype(np.float32) if self.biased else None
        stored = {"codes": packing.pack_matmul_nbits(codes, points, scheme), "scales": scales}
        if points is not None:
            stored["zero_points"] = packing.pack_zero_points(points, self.bits)
        if bias is not None:
            stored["bias"] = bias
        attributes = {"K": self.k, "N": self.n, "bits": self.bits, "block_size": self.block_size}
        object.__setattr__(self, "attributes", {**attributes, **self.attributes})
        object.__setattr__(self, "constants", {**stored, **self.constants})
        object.__setattr__(self, "_numbers", (codes, scales, points, bias))

    def expected(self, x: Array) -> Array:
        codes, scales, points, bias = self._numbers  # type: ignore[attr-defined]
        return reference(x, codes, scales, points, bias, bits=self.bits, block_size=self.block_size)

    def weights(self) -> Array:
        """float32 [N, K]: the operator's outputs for unit vectors, without the bias; a 1 is held exactly."""
        columns = replace(self, biased=False).expected(np.eye(self.k, dtype=np.float32))
        return columns.T

    def model(
        self, x_shape: list[Any] | None = None, given: tuple[str, ...] = (), dtype: int = 1
    ) -> onnx.ModelProto:
        """The product as a model; the constants in ``given`` are inputs of it."""
        names = [
            name if name in self.constants else "" for name in ("codes", "scales", "zero_points", "bias")
        ]
        while not names[-1]:
            names.pop()
        node = helper.make_node(
            "MatMulNBits", ["x", *names], ["y"], "product", domain=OUR_DOMAIN, **self.attributes
        )
        x = helper.make_tensor_value_info("x", dtype, ["B", "M", self.k] if x_shape is None else x_shape)
        more = [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
            for n, a in self.constants.items()
            if n in given
        ]
        y = helper.make_tensor_value_info("y", dtype, None)
        stored = [numpy_helper.from_array(a, n) for n, a in self.constants.items() if n not in given]
        graph = helper.make_graph([node], "g", [x, *more], [y], stored)
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid(OUR_DOMAIN, 1)]
        loaded = ir.serde.deserialize_model(helper.make_model(graph, opset_imports=opsets, ir_version=10))
        provide(loaded)
        return ir.serde.serialize_model(loaded)


def session(model: onnx.ModelProto, ours: bool = True, optimized: bool = True) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if ours:
        register(options)
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def activations(*shape: int) -> Array:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


def assert_close(product: Product, found: Array, x: Array) -> None:
    expected = product.expected(x)
    assert found.shape == expected.shape
    # A rounding for each group's part and one for the sum, in float32.
    groups = -(-product.k // min(product.block_size, 128)) + 1
    np.testing.assert_allclose(
        found, expected, rtol=0, atol=4 * groups * EPSILON * float(np.abs(expected).max(initial=1))
    )


@pytest.mark.parametrize("m", [1, 3, 13, 600])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_numbers(bits: int, symmetric: bool, m: int) -> None:
    product = Product(bits=bits, symmetric=symmetric, biased=True)
    x = activations(2, m, 100)
    assert_close(product, session(product.model()).run(None, {"x": x})[0], x)


@pytest.mark.parametrize("block_size", [16, 32, 64, 128, 256])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (17, 300), (64, 256)])
def test_blocks(block_size: int, n: int, k: int) -> None:
    product = Product(n, k, block_size=block_size)
    x = activations(1, 5, k)
    assert_close(product, session(product.model()).run(None, {"x": x})[0], x)


def test_a_matrix_that_all_threads_share() -> None:
    product = Product(2000, 1200, block_size=64)
    x = activations(1, 30, 1200)
    assert_close(product, session(product.model()).run(None, {"x": x})[0], x)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
def test_optional_inputs_and_float16_scales(symmetric: bool, biased: bool) -> None:
    product = Product(symmetric=symmetric, biased=biased, scale_type=np.float16)
    x = activations(1, 2, 100)
    assert_close(product, session(product.model()).run(None, {"x": x})[0], x)


@pytest.mark.parametrize("shape", [(100,), (2, 3, 4, 100), (0, 3, 100), (1, 0, 100)])
def test_any_rank_and_no_rows(shape: tuple[int, ...]) -> None:
    product = Product()
    x = activations(*shape)
    assert_close(product, session(product.model([None] * (len(shape) - 1) + [100])).run(None, {"x": x})[0], x)


def test_numbers_that_are_none_make_their_row_nan() -> None:
    product = Product()
    x = activations(1, 3, 100)
    x[0, 1, 99] = np.inf
    found = session(product.model()).run(None, {"x": x})[0]
    assert np.isnan(found[0, 1]).all() and np.isfinite(found[0, [0, 2]]).all()


def test_the_shape_of_the_output_is_inferred() -> None:
    (output,) = session(Product().model()).get_outputs()
    assert output.shape == ["B", "M", 40] and output.type == "tensor(float)"


@pytest.mark.parametrize("optimized", [True, False])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_without_our_library_the_body_runs(bits: int, symmetric: bool, optimized: bool) -> None:
    product = Product(bits=bits, symmetric=symmetric, biased=symmetric)
    x = activations(1, 6, 100)
    stock = session(product.model(), ours=False, optimized=optimized).run(None, {"x": x})[0]
    ours = session(product.model(), optimized=optimized).run(None, {"x": x})[0]
    # For any CPU: both round activations to 8 bits, each its own way, or ours alone: errors of a variance of a twelfth of a step squared,
    # times the weights. Of 240 sums none is six deviations off. The next test is the tight one.
    step = float(np.abs(x).max()) / 127
    tolerance = 6 * step * np.sqrt(2 / 12) * float(np.linalg.norm(product.weights(), axis=1).max())
    np.testing.assert_allclose(ours, stock, rtol=0, atol=tolerance)


def _with_level(product: Product, level: int) -> onnx.ModelProto:
    """The model with another accuracy_level in its body."""
    model = product.model()
    (attribute,) = (a for a in model.functions[0].node[-1].attribute if a.name == "accuracy_level")
    attribute.i = level
    return model


@pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"),
    reason="ONNX Runtime's rounding of activations was measured on x86-64 alone; Arm's kernels may round whole rows",
)
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(
    ("bits", "block_size"), [(bits, size) for bits in (2, 4, 8) for size in (16, 32, 64, 128) if (bits, size) != (2, 16)]
)  # fmt: skip
def test_the_body_has_our_numbers_where_it_rounds_activations(
    bits: int, block_size: int, symmetric: bool
) -> None:
    product = Product(40, 300, bits, block_size, symmetric)
    x = activations(1, 6, 300)
    rounding, floating = (
        session(_with_level(product, level), ours=False).run(None, {"x": x})[0] for level in (4, 0)
    )
    if np.array_equal(rounding, floating):
        pytest.skip(
            "ONNX Runtime has no kernel with activations in 8 bits for this CPU: accuracy_level 4 computes as 0 does"
        )
    assert_close(product, rounding, x)


def test_runs_side_by_side_on_one_session() -> None:
    product = Product(400, 600, block_size=64)
    running = session(product.model())
    inputs = [activations(1, m, 600) for m in (1, 2, 7, 33, 64, 90)] * 8
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda x: running.run(None, {"x": x})[0], inputs))
    for x, y in zip(inputs, found, strict=True):
        assert_close(product, y, x)


def test_branches_read_a_weight_of_the_outer_graph() -> None:
    # Blocks of 256: ONNX Runtime's kernel, which has one activation scale for each, would be thousands of epsilons off.
    product = Product(40, 600, block_size=256)
    model = product.model([None, 600])
    bodies = []
    for source, output in (("x", "same"), ("minus", "opposite")):
        node = onnx.NodeProto.FromString(model.graph.node[0].SerializeToString())
        node.input[0], node.output[0], node.name = source, output, f"product_{output}"
        nodes = [node] if source == "x" else [helper.make_node("Neg", ["x"], [source]), node]
        bodies.append(
            helper.make_graph(
                nodes, output, [], [helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, None)]
            )
        )
    del model.graph.node[:]
    model.graph.node.append(
        helper.make_node("If", ["first"], ["y"], then_branch=bodies[0], else_branch=bodies[1])
    )
    model.graph.input.append(helper.make_tensor_value_info("first", onnx.TensorProto.BOOL, []))
    running = session(model)
    x = activations(5, 600)
    for first, rows in ((True, x), (False, -x)):
        assert_close(product, running.run(None, {"x": x, "first": np.array(first)})[0], rows)


def _without(product: Product, name: str) -> onnx.ModelProto:
    model = product.model()
    (attribute,) = (a for a in model.graph.node[0].attribute if a.name == name)
    model.graph.node[0].attribute.remove(attribute)
    return model


REFUSED: list[tuple[Callable[[], onnx.ModelProto], str]] = [
    (lambda: _without(Product(), "bits"), "attribute bits is missing"),
    (lambda: _without(Product(), "K"), "attribute K is missing"),
    (lambda: Product(attributes={"N": 0}).model(), "attribute N is 0"),
    (lambda: Product(attributes={"N": -40}).model(), "attribute N is -40"),
    (lambda: Product(attributes={"K": 1 << 62}).model(), "attribute K is"),
    (lambda: Product(attributes={"K": 1 << 31, "N": 1 << 31}).model(), "codes has"),
    (lambda: Product(attributes={"bits": 5}).model(), "bits are 5"),
    (lambda: Product(attributes={"bits": 8}).model(), "codes has"),
    (lambda: Product(attributes={"block_size": 24}).model(), "block_size is 24"),
    (lambda: Product(attributes={"block_size": 0}).model(), "block_size is 0"),
    (lambda: Product(attributes={"block_size": 64}).model(), "scales has 160 elements"),
    (lambda: Product(attributes={"N": 41}).model(), "codes has"),
    (lambda: Product(constants={"scales": np.ones((40, 5), np.float32)}).model(), "scales has 200 elements"),
    (lambda: Product(constants={"scales": np.ones((40, 4), np.int32)}).model(), "scales are neither float32 nor float16"),
    (lambda: Product(constants={"zero_points": np.zeros(79, np.uint8)}).model(), "zero_points has 79 elements"),
    (lambda: Product(constants={"codes": np.zeros((0,), np.uint8)}).model(), "codes has 0 elements"),
    (lambda: Product().model(given=("codes",)), "codes is not constant"),
    (lambda: Product().model(given=("scales",)), "scales is not constant"),
    (lambda: Product().model(given=("zero_points",)), "zero_points is not constant"),
    (lambda: Product().model(dtype=onnx.TensorProto.FLOAT16), r"tensor\(float16\)"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "said"), REFUSED, ids=[said for _, said in REFUSED])
def test_a_bad_node_is_refused_when_the_session_is_created(
    make: Callable[[], onnx.ModelProto], said: str
) -> None:
    with pytest.raises(SESSION_ERRORS, match=said):
        session(make(), optimized=False)


def test_rows_of_another_length_are_refused() -> None:
    running = session(Product().model([None, None, None]))
    with pytest.raises(SESSION_ERRORS, match="product: the last dimension of x is not K = 100"):
        running.run(None, {"x": activations(1, 2, 99)})
    assert running.run(None, {"x": activations(1, 2, 100)})[0].shape == (1, 2, 40)


def test_a_scalar_is_refused() -> None:
    running = session(Product().model([]))
    with pytest.raises(SESSION_ERRORS, match="the last dimension of x is not K = 100"):
        running.run(None, {"x": np.array(1, np.float32)})


def test_a_bias_of_another_length_is_refused() -> None:
    product = replace(Product(), constants={"bias": np.zeros(39, np.float32)})
    running = session(product.model(given=("bias",)))
    with pytest.raises(SESSION_ERRORS, match="bias has not N = 40 elements"):
        running.run(None, {"x": activations(1, 2, 100), "bias": np.zeros(39, np.float32)})
