"""Tables of few bits as models of one node, ai.qcompiler::GatherNBits, and what they have to give."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx import helper, numpy_helper

from qcompiler.graph.operator_body import OUR_DOMAIN
from qcompiler.graph.own_gather_nbits import OP, provide, reference
from qcompiler.quant import packing
from qcompiler.quant.scheme import Granularity, QuantScheme

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class GatheredTable:
    """A table, of which tests change one thing."""

    n: int = 50
    k: int = 100
    bits: int = 4
    block_size: int = 32
    symmetric: bool = False
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
        if self.symmetric:  # such scales may have a sign
            scales *= rng.choice([-1, 1], scales.shape).astype(self.scale_type)
        packed = packing.pack_matmul_nbits(codes, points, scheme)
        stored = {"codes": packed.reshape(self.n, -1), "scales": scales}
        if points is not None:
            stored["zero_points"] = packing.pack_zero_points(points, self.bits)
        attributes = {"K": self.k, "N": self.n, "bits": self.bits, "block_size": self.block_size}
        object.__setattr__(self, "attributes", {**attributes, **self.attributes})
        object.__setattr__(self, "constants", {**stored, **self.constants})
        object.__setattr__(self, "_numbers", (codes, scales, points))

    def expected(self, indices: Array) -> Array:
        codes, scales, points = self._numbers  # type: ignore[attr-defined]
        return reference(indices, codes, scales, points, bits=self.bits, block_size=self.block_size)

    def model(
        self,
        shape: list[Any] | None = None,
        dtype: type = np.int64,
        given: tuple[str, ...] = (),
        opset: int = 21,
    ) -> onnx.ModelProto:
        """The table as a model; the constants in ``given`` are inputs of it. Before opset 21 it has no body."""
        node = helper.make_node(
            OP, ["indices", *self.constants], ["y"], "table", domain=OUR_DOMAIN, **self.attributes
        )
        inputs = [
            helper.make_tensor_value_info(
                "indices",
                helper.np_dtype_to_tensor_dtype(np.dtype(dtype)),
                ["B", "M"] if shape is None else shape,
            )
        ]
        inputs += [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
            for n, a in self.constants.items()
            if n in given
        ]
        y = helper.make_tensor_value_info(
            "y", helper.np_dtype_to_tensor_dtype(np.dtype(self.scale_type)), None
        )
        stored = [numpy_helper.from_array(a, n) for n, a in self.constants.items() if n not in given]
        graph = helper.make_graph([node], "g", inputs, [y], stored)
        opsets = [helper.make_opsetid("", opset), helper.make_opsetid(OUR_DOMAIN, 1)]
        made = helper.make_model(graph, opset_imports=opsets, ir_version=10 if opset >= 21 else 9)
        if opset < 21:
            return made
        loaded = ir.serde.deserialize_model(made)
        provide(loaded)
        return ir.serde.serialize_model(loaded)
