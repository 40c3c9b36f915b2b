"""Round the activations of products whose weights are 8-bit floats to the same format, with scales from calibration.

*Given* the middle form of the weights, and the plan, whose settings say ``activations: static`` of weights of e4m3 or e5m2.
*Result* QuantizeLinear and DequantizeLinear (FLOAT8E4M3FN or FLOAT8E5M2, one scale, zero point 0) in front of their first inputs: one pair
for all products that read an input. scale = max |x| / the largest number of the format; what is beyond saturates.

What the recipe says of a tensor (``tensors:``) is a range, or the scale itself, whose zero point is 0.
A product in the body of a branch or loop is left alone; the notes of its weight say so.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.errors import RecipeError
from qcompiler.graph.edits import Names, add_initializer, input_type, set_info
from qcompiler.graph.float8_form import TYPES
from qcompiler.graph.stored_quantized import SCALE_NAMES
from qcompiler.graph.weights import Role
from qcompiler.passes.activation_scales import Observe, check_reached, float_tensors, idle_tensors
from qcompiler.quant.affine import store_scale
from qcompiler.quant.float8 import scale_of
from qcompiler.quant.ranges import Range
from qcompiler.quant.scheme import Dtype
from qcompiler.recipe.plan import Plan
from qcompiler.recipe.tensors import ActivationSettings, TensorSettings


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
        self._refuse_zero_points(inputs)
        self._tell(inputs)
        scales = self._scales(model, inputs)
        names = Names(model)
        places = {node: index for index, node in enumerate(model.graph)}
        for each in inputs:
            _round(each, scales[each], min(each.products, key=places.__getitem__), names)
        return ir.passes.PassResult(model, modified=True)

    def check(self, model: ir.Model) -> None:
        """What the recipe says of tensors that are to be 8-bit floats.

        Raises:
            RecipeError: it has a zero point.
        """
        self._refuse_zero_points(self._inputs(model))

    def _refuse_zero_points(self, inputs: "list[_Input]") -> None:
        for each in inputs:
            said = self._said(each)
            if said is not None and said.zero_point:
                raise RecipeError(
                    f"tensors: {said.name}: {each.value.name} becomes {each.dtype}, which has no zero point; "
                    "give zero_point: 0, or range: [LOWEST, HIGHEST]"
                )

    def _tell(self, inputs: "list[_Input]") -> None:
        """Warns of what the recipe says of tensors without effect."""
        for each in inputs:
            said = self._said(each)
            idle = [] if said is None else [key for key in ("type", "symmetric") if key in said.given()]
            if said is not None and idle:
                self._plan.warnings.append(
                    f"tensors: {said.name}: {each.value.name} becomes {each.dtype}, so that its {' and '.join(idle)} has no effect"
                )
        if not any(
            p.settings.activations == "static" and not p.scheme.is_float8 for p in self._plan.quantized
        ):
            self._plan.warnings += idle_tensors([each.value for each in inputs], self._settings)

    def _scales(self, model: ir.Model, inputs: "list[_Input]") -> "dict[_Input, npt.NDArray[Any]]":
        """Of each input, in the type of its products' floats: what the recipe says, else of what calibration saw."""
        said = {each: self._said(each) for each in inputs}
        unknown = [
            each.value
            for each, given in said.items()
            if given is None or (given.scale is None and given.range is None)
        ]
        ranges = self._observe(model, list(dict.fromkeys(unknown)), 8, True)
        check_reached([value.name or "" for value in unknown if value.name not in ranges])
        scales = {}
        for each, given in said.items():
            kind = input_type(each.products[0])
            if given is not None and given.scale is not None:
                scale = store_scale(np.array(given.scale, np.float32), SCALE_NAMES[kind])
            else:
                fixed = None if given is None or given.range is None else Range(*given.range)
                seen = fixed or ranges[each.value.name or ""]
                largest = np.array(max(-seen.lowest, seen.highest, 0.0), np.float32)
                scale = scale_of(largest, each.dtype, SCALE_NAMES[kind])
            scales[each] = scale.astype(kind.numpy())
        return scales

    def _said(self, each: "_Input") -> TensorSettings | None:
        return self._settings.of(each.value.name or "")

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


@dataclass(frozen=True, eq=False)
class _Input:
    """A value, the format that it is to have, and the products that read it so."""

    value: ir.Value
    dtype: Dtype
    products: list[ir.Node] = field(default_factory=list)


def _round(each: _Input, scale: npt.NDArray[Any], first: ir.Node, names: Names) -> None:
    value, graph, kind, dtype = each.value, first.graph, TYPES[each.dtype], input_type(first)
    assert isinstance(graph, ir.Graph)
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
