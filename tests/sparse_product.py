"""Products with a sparse matrix as models of one node, ai.qcompiler::SparseMatMul."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx import helper, numpy_helper

from qcompiler.graph.operator_body import OUR_DOMAIN
from qcompiler.graph.sparse_matmul import OP, provide

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class SparseProduct:
    """A product and its matrix, of which tests change one thing. Every 7th row of the matrix is full, every 5th empty."""

    n: int = 40
    k: int = 100
    values_type: Any = np.float16
    columns_type: type = np.uint16
    x_type: type = np.float32
    constants: dict[str, Array] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.n + self.k)
        mask = rng.random((self.n, self.k)) < 0.1
        mask[::7], mask[::5] = True, False
        rows, columns = np.nonzero(mask)
        values = rng.standard_normal(len(rows)).astype(np.float32).astype(self.values_type)
        made = {
            "values": values,
            "columns": columns.astype(self.columns_type),
            "offsets": np.searchsorted(rows, np.arange(self.n + 1)).astype(np.int32),
        }
        object.__setattr__(self, "constants", {**made, **self.constants})

    def dense(self) -> npt.NDArray[np.float64]:
        """[N, K]."""
        made = np.zeros((self.n, self.k))
        counts = np.diff(self.constants["offsets"])
        made[np.repeat(np.arange(self.n), counts), self.constants["columns"]] = self.constants[
            "values"
        ].astype(np.float64)
        return made

    def assert_close(self, found: Array, x: Array) -> None:
        """Up to a rounding in float32 for each product and each addition, and one in the type of y."""
        dense, exact = self.dense(), x.astype(np.float64)
        expected, sizes = exact @ dense.T, np.abs(exact) @ np.abs(dense).T
        numbers = np.diff(self.constants["offsets"])
        allowed = (numbers / 4 + 4) * np.finfo(np.float32).eps * sizes
        if self.x_type == np.float16:
            allowed = allowed + np.abs(expected) * 2.0**-11 + 2.0**-25
        assert found.shape == expected.shape and found.dtype == x.dtype
        assert (np.abs(found - expected) <= allowed).all()

    def model(
        self, x_shape: list[Any] | None = None, given: tuple[str, ...] = (), opset: int = 21
    ) -> onnx.ModelProto:
        """The product as a model; the constants in ``given`` are inputs of it. Before opset 21 it has no body."""
        dtype = helper.np_dtype_to_tensor_dtype(np.dtype(self.x_type))
        node = helper.make_node(OP, ["x", *self.constants], ["y"], "product", domain=OUR_DOMAIN)
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
        if opset < 21:
            return made
        loaded = ir.serde.deserialize_model(made)
        provide(loaded)
        return ir.serde.serialize_model(loaded)
