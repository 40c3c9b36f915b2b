"""How the activations that a product reads are rounded, as its nodes say it: QDQ, and the operators that read integers."""

from dataclasses import dataclass

import onnx_ir as ir

from qcompiler.graph import own_dynamic_matmul, own_qlinear_matmul
from qcompiler.graph.fake_quant_rows import is_fake_quant_rows
from qcompiler.graph.operator_body import OUR_DOMAIN
from qcompiler.graph.weights import constant_values


@dataclass(frozen=True)
class InputCodes:
    """Codes of a product's first input.

    Attributes:
        dtype: of a code: "uint8".
        granularity: what shares a scale: "tensor" or "row".
        scale, zero_point: where they are constant; None where every run finds them.
    """

    dtype: str
    granularity: str
    scale: float | None = None
    zero_point: int | None = None

    @property
    def label(self) -> str:
        """``uint8 0.0235 zp 114``, ``uint8 dynamic``, ``int8 row``."""
        if self.scale is None:
            return f"{self.dtype} {'row' if self.granularity == 'row' else 'dynamic'}"
        return f"{self.dtype} {self.scale:.4g}" + (f" zp {self.zero_point}" if self.zero_point else "")


_SCALE_AND_ZERO_POINT = {
    "QLinearConv": (1, 2),
    "QLinearMatMul": (1, 2),
    "QGemm": (1, 2),
    "MatMulIntegerToFloat": (2, 4),
}
_BY_TENSOR = InputCodes("uint8", "tensor")
_BY_ROW = InputCodes("int8", "row")


def input_codes(node: ir.Node) -> InputCodes | None:
    """Of a product with a weight; None where it reads floats, or nothing here knows."""
    x = node.inputs[0] if node.inputs else None
    if x is None or "Gather" in node.op_type:
        return None
    if node.domain == OUR_DOMAIN and node.op_type == own_dynamic_matmul.OP:
        return _BY_ROW
    if node.op_type == "DynamicQuantizeMatMul" or _is_rounded_in_each_run(x):
        return _BY_TENSOR
    if node.op_type in _SCALE_AND_ZERO_POINT or (node.domain, node.op_type) == (
        OUR_DOMAIN,
        own_qlinear_matmul.OP,
    ):
        scale, zero_point = _SCALE_AND_ZERO_POINT.get(node.op_type, (1, 2))
        return _BY_ROW if _is_scaled_row(x) else _constant(x, node, scale, zero_point)
    if is_fake_quant_rows(x):
        return _BY_ROW
    restored = x.producer()
    if restored is None or restored.op_type != "DequantizeLinear" or restored.inputs[0] is None:
        return None
    if _is_rounded_in_each_run(restored.inputs[0]):
        return _BY_TENSOR
    return _constant(restored.inputs[0], restored, 1, 2)


def _is_rounded_in_each_run(codes: ir.Value) -> bool:
    rounding = codes.producer()
    return rounding is not None and rounding.op_type == "DynamicQuantizeLinear"


def _constant(codes: ir.Value, node: ir.Node, scale: int, zero_point: int) -> InputCodes | None:
    """With one scale; None where it is not constant."""
    steps = constant_values(node.inputs[scale])
    point = node.inputs[zero_point] if len(node.inputs) > zero_point else None
    middle = constant_values(point)
    dtype = codes.dtype or (None if point is None else point.dtype)
    if steps is None or steps.size != 1 or dtype is None:
        return None
    return InputCodes(
        str(dtype.name).lower(),
        "tensor",
        float(steps.reshape(-1)[0]),
        0 if middle is None else int(middle.reshape(-1)[0]),
    )


def _is_scaled_row(codes: ir.Value) -> bool:
    """Codes of rows that were divided by scales of their own beforehand (``lower_to_integers``)."""
    rounding = codes.producer()
    if rounding is None or rounding.op_type != "QuantizeLinear" or rounding.inputs[0] is None:
        return False
    scaled, one = rounding.inputs[0].producer(), constant_values(rounding.inputs[1])
    computed = scaled is not None and scaled.op_type == "Mul" and constant_values(scaled.inputs[1]) is None
    return computed and one is not None and one.size == 1 and float(one.reshape(-1)[0]) == 1
