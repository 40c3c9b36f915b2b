"""Products with weights of few bits as models of one node, ai.qcompiler::MatMulNBits, and what they have to compute."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx import helper, numpy_helper

from qcompiler.graph.operator_body import OUR_DOMAIN
from qcompiler.graph.own_matmul_nbits import (
    INT8_ACTIVATIONS,
    LAYOUT,
    LEVEL,
    LINES,
    OP,
    THREE,
    operator,
    provide,
    reference,
)
from qcompiler.passes.lay_out_for_kernels import LayOutForKernels
from qcompiler.quant import packing, three_bits
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
    one_scale: bool = False
    scale_type: type = np.float32
    attributes: dict[str, int] = field(default_factory=dict)
    constants: dict[str, Array] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.n + self.k + self.bits)
        groups = -(-self.k // self.block_size)
        # 3 bits are stored as even codes of 4, without their lowest bits.
        held = 4 if self.bits == 3 else self.bits
        scheme = QuantScheme(held, self.symmetric, Granularity.GROUP, self.block_size)
        codes = rng.integers(0, 1 << self.bits, (self.n, self.k), np.uint8)
        points = None if self.symmetric else rng.integers(0, 1 << self.bits, (self.n, groups), np.uint8)
        scales = rng.uniform(0.01, 0.02, (self.n, groups)).astype(self.scale_type)
        if self.symmetric:  # such scales may have a sign
            scales *= rng.choice([-1, 1], scales.shape).astype(self.scale_type)
        if self.one_scale:  # in all blocks of a row
            scales = np.repeat(scales[:, :1], groups, 1)
        bias = rng.standard_normal(self.n).astype(np.float32) if self.biased else None
        factor = np.uint8(2 if self.bits == 3 else 1)
        twice = None if points is None else points * factor
        stored = {"codes": packing.pack_matmul_nbits(codes * factor, twice, scheme), "scales": scales}
        if self.bits == 3:
            stored["codes"] = three_bits.shorten(stored["codes"])
        if twice is not None:
            stored["zero_points"] = packing.pack_zero_points(twice, held)
        if bias is not None:
            stored["bias"] = bias
        attributes = {"K": self.k, "N": self.n, "bits": self.bits, "block_size": self.block_size}
        object.__setattr__(self, "attributes", {**attributes, **self.attributes})
        object.__setattr__(self, "constants", {**stored, **self.constants})
        object.__setattr__(self, "_numbers", (codes, scales, points, bias))

    @property
    def op(self) -> str:
        return THREE if self.attributes["bits"] == 3 else OP

    @property
    def numbers(self) -> tuple[Array, Array, Array | None, Array | None]:
        """Codes [N, K], scales [N, G], zero points [N, G], bias [N], unpacked."""
        found: tuple[Array, Array, Array | None, Array | None] = self._numbers  # type: ignore[attr-defined]
        return found

    def laid_out(self) -> "Product":
        """The same, its weight in the kernels' own order; its model has no body."""
        model = ir.serde.deserialize_model(self.model())
        LayOutForKernels()(model)
        parts = {name: value.const_value for name, value in model.graph.initializers.items()}
        constants = {name: part.numpy() for name, part in parts.items() if part is not None}
        return replace(self, constants=constants, attributes={**self.attributes, LAYOUT: LINES})

    def expected(self, x: Array) -> Array:
        codes, scales, points, bias = self.numbers
        level = self.attributes.get(LEVEL, INT8_ACTIVATIONS)
        return reference(
            x, codes, scales, points, bias, bits=self.bits, block_size=self.block_size, level=level
        )

    def weights(self) -> Array:
        """float32 [N, K]: the operator's outputs for unit vectors, without the bias; a 1 is held exactly."""
        columns = replace(self, biased=False).expected(np.eye(self.k, dtype=np.float32))
        return columns.T

    def model(
        self, x_shape: list[Any] | None = None, given: tuple[str, ...] = (), dtype: int = 1, opset: int = 21
    ) -> onnx.ModelProto:
        """The product as a model; the constants in ``given`` are inputs of it. Before opset 21, or laid out, it has no body."""
        names = [
            name if name in self.constants else "" for name in ("codes", "scales", "zero_points", "bias")
        ]
        while not names[-1]:
            names.pop()
        node = helper.make_node(
            self.op, ["x", *names], ["y"], "product", domain=OUR_DOMAIN, **self.attributes
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
        opsets = [helper.make_opsetid("", opset), helper.make_opsetid(OUR_DOMAIN, 1)]
        ir_version = 10 if opset >= 21 else 9
        made = helper.make_model(graph, opset_imports=opsets, ir_version=ir_version)
        if opset < 21 or self.attributes.get(LAYOUT) == LINES:
            return made
        loaded = ir.serde.deserialize_model(made)
        provide(loaded, self.op)
        return ir.serde.serialize_model(loaded)


def joined(products: list[Product]) -> onnx.ModelProto:
    """Products of one K, bits and block size as one node, its outputs y_0, y_1 ..."""
    inputs, stored = ["x"], []
    for index, product in enumerate(products):
        for name in ("codes", "scales", "zero_points", "bias"):
            inputs.append(f"{name}_{index}" if name in product.constants else "")
            if name in product.constants:
                stored.append(numpy_helper.from_array(product.constants[name], inputs[-1]))
    numbers = range(len(products))
    attributes = {name: products[0].attributes[name] for name in ("K", "bits", "block_size")}
    attributes |= {LEVEL: products[0].attributes[LEVEL]} if LEVEL in products[0].attributes else {}
    attributes |= {f"N_{index}": products[index].n for index in numbers}
    outputs = [f"y_{index}" for index in numbers]
    op = operator(len(products), products[0].op)
    node = helper.make_node(op, inputs, outputs, "products", domain=OUR_DOMAIN, **attributes)
    x = helper.make_tensor_value_info("x", 1, ["M", products[0].k])
    graph = helper.make_graph(
        [node], "g", [x], [helper.make_tensor_value_info(y, 1, None) for y in outputs], stored
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(OUR_DOMAIN, 1)]
    loaded = ir.serde.deserialize_model(helper.make_model(graph, opset_imports=opsets, ir_version=10))
    provide(loaded, op)
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


def assert_near(product: Product, found: Array, other: Array, x: Array) -> None:
    """Of two kernels that both round activations to 8 bits, each its own way, or of which one does not.

    Errors of a variance of a twelfth of a step squared, times the weights. Of thousands of sums none is six deviations off.
    """
    step = float(np.abs(x).max()) / 127
    tolerance = 6 * step * np.sqrt(2 / 12) * float(np.linalg.norm(product.weights(), axis=1).max())
    np.testing.assert_allclose(found, other, rtol=0, atol=tolerance)


def branches(product: Product, opset: int = 21) -> onnx.ModelProto:
    """The product of x where ``first`` is true, else of -x, each in a body that reads the weight of the outer graph."""
    model = product.model([None, product.k], opset=opset)
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
    return model
