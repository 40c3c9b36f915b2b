"""Round the activations of products whose weights are 8-bit floats to the same format, with scales from calibration.

*Given* the middle form of the weights, and the plan, whose settings say ``activations: static`` of weights of e4m3 or e5m2.
*Result* QuantizeLinear and DequantizeLinear (FLOAT8E4M3FN or FLOAT8E5M2, one scale, zero point 0) in front of their first inputs: one pair
for all products that read an input. scale = max |x| / the largest number of the format; what is beyond saturates.

A product in the body of a branch or loop is left alone; the notes of its weight say so.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from qcompiler.graph.edits import Names, add_initializer, input_type, set_info
from qcompiler.graph.float8_form import TYPES
from qcompiler.graph.stored_quantized import SCALE_NAMES
from qcompiler.graph.weights import Role
from qcompiler.passes.activation_scales import Observe, check_reached, float_tensors
from qcompiler.quant.float8 import scale_of
from qcompiler.quant.ranges import Range
from qcompiler.quant.scheme import Dtype
from qcompiler.recipe.plan import Plan
from qcompiler.recipe.tensors import ActivationSettings


class RoundToFloat8(ir.passes.InPlacePass):
    """The pass.

    Args:
        settings: which tensors stay float, and which ranges are given.
        observe: runs the model on the calibration data.
    """

    def __init__(self, plan: Plan, settings: ActivationSettings, observe: Observe) -> None:
        super().__init__()
        self._plan = plan
        self._settings = settings
        self._observe = observe
        self._done = False

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        inputs = [] if self._done else self._inputs(model)
        self._done = True
        if not inputs:
            return ir.passes.PassResult(model, modified=False)
        ranges = self._ranges(model, list(dict.fromkeys(each.value for each in inputs)))
        check_reached([each.value.name or "" for each in inputs if each.value.name not in ranges])
        names = Names(model)
        places = {node: index for index, node in enumerate(model.graph)}
        for each in inputs:
            _round(each, ranges[each.value.name or ""], min(each.products, key=places.__getitem__), names)
        return ir.passes.PassResult(model, modified=True)

    def _ranges(self, model: ir.Model, values: Sequence[ir.Value]) -> dict[str, Range]:
        given = {value.name or "": self._settings.fixed(value.name or "") for value in values}
        fixed = {name: range_ for name, range_ in given.items() if isinstance(range_, Range)}
        unknown = [value for value in values if value.name not in fixed]
        return {**self._observe(model, unknown, 8, True), **fixed}

    def _inputs(self, model: ir.Model) -> "list[_Input]":
        floats = float_tensors(model, self._settings)
        found: dict[tuple[ir.Value, Dtype], _Input] = {}
        for planned in self._plan.quantized:
            if planned.settings.activations != "static" or not planned.scheme.is_float8:
                continue
            for use in planned.weight.uses:
                value = use.node.inputs[0]
                if use.role is Role.EMBEDDING or value is None:
                    continue
                if use.in_body is not None:
                    planned.notes.append(f"activations stay float: the product is inside {use.in_body}")
                    continue
                if value in floats:
                    planned.notes.append(f"activations stay float: the recipe leaves {value.name} float")
                    continue
                key = value, planned.scheme.dtype
                found.setdefault(key, _Input(*key)).products.append(use.node)
        return list(found.values())


@dataclass(frozen=True)
class _Input:
    """A value, the format that it is to have, and the products that read it so."""

    value: ir.Value
    dtype: Dtype
    products: list[ir.Node] = field(default_factory=list)


def _round(each: _Input, seen: Range, first: ir.Node, names: Names) -> None:
    value, graph, kind, dtype = each.value, first.graph, TYPES[each.dtype], input_type(first)
    assert isinstance(graph, ir.Graph)
    largest = np.array(max(-seen.lowest, seen.highest, 0.0), np.float32)
    scale = scale_of(largest, each.dtype, SCALE_NAMES[dtype]).astype(dtype.numpy())
    parts = {
        "scale": ir.Tensor(scale, dtype=dtype),
        "zero_point": ir.Tensor(np.zeros((), kind.numpy()), dtype=kind),
    }
    constants = []
    for part, tensor in parts.items():
        tensor.name = names.value(f"{value.name}.{part}")
        constants.append(add_initializer(graph, tensor, tensor.name))
    codes, rounded = (ir.Value(name=names.value(f"{value.name}.{part}")) for part in ("codes", "rounded"))
    set_info(codes, kind, value.shape)
    set_info(rounded, dtype, value.shape)
    made = [
        ir.node("QuantizeLinear", [value, *constants], outputs=[codes], name=names.node(f"{value.name}.quantize")),
        ir.node("DequantizeLinear", [codes, *constants], outputs=[rounded], name=names.node(f"{value.name}.dequantize")),
    ]  # fmt: skip
    graph.insert_before(first, made)
    for product in each.products:
        product.replace_input_with(0, rounded)
