"""Insert QuantizeLinear and DequantizeLinear, so that products with static ranges, and what lies between them, run in integers.

*Given* the middle form of the weights, and the plan, whose settings say ``activations: static`` of products; calibration data.
*Result* pairs of QuantizeLinear and DequantizeLinear (one scale and zero point for a tensor) on the values that ``integer_flow``
finds, with the ranges that the data have there, or the recipe says (``activation_scales``); a convolution's weight as int8 in the shape
of its kernel, its bias as int32 in steps of input scale times weight scale. A Relu or Clip that the rounding does is gone. Names of
values stay.

Products in the bodies of branches and loops are as those of the main graph. A body that the data never reach has no ranges: its products
stay float, and the plan's warnings name it and its tensors; where nothing else is left, that is an error.

A product that no integer kernel takes is left alone: of float16, or of a matrix that is not in 8 bits with a scale for each output or for
all; the notes of its weight say so.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

import onnx_ir as ir

from qcompiler.graph.bodies import Bodies
from qcompiler.graph.edits import input_type
from qcompiler.graph.float8_form import TYPES
from qcompiler.graph.integer_flow import IntegerFlow, find_integer_flow, islands
from qcompiler.graph.kernel_node import LoweredNode
from qcompiler.graph.weights import Role, WeightUse
from qcompiler.passes.activation_scales import (
    Observe,
    absorbs,
    choose_codes,
    float_tensors,
    idle_tensors,
    observed_ranges,
    unreached,
)
from qcompiler.passes.qdq_editor import QdqEditor
from qcompiler.quant.activation_codes import ActivationCodes, bits_of, is_signed
from qcompiler.quant.scheme import Granularity, QuantScheme
from qcompiler.recipe.plan import Plan
from qcompiler.recipe.planned_weight import PlannedWeight
from qcompiler.recipe.tensors import ActivationSettings

LISTED = 12
"""Tensors of a body that a warning names."""


class InsertQdq(ir.passes.InPlacePass):
    """The pass; ``lowered`` lists what has to run in integers, ``hoped`` what may (as one of some operators), ``left`` what then does not.

    Args:
        settings: how ranges become codes.
        observe: runs the model on the calibration data.
    """

    def __init__(self, plan: Plan, settings: ActivationSettings, observe: Observe) -> None:
        super().__init__()
        self._plan = plan
        self._settings = settings
        self._observe = observe
        self._done = False
        self.lowered: list[LoweredNode] = []
        self.hoped: list[tuple[LoweredNode, ...]] = []
        self.left: list[str] = []

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        floats = set() if self._done else float_tensors(model, self._settings)
        wanted = {} if self._done else _static_products(self._plan, floats)
        self._done = True
        if not wanted:
            return ir.passes.PassResult(model, modified=False)
        flow = _flow(model, wanted, floats)
        ranges = observed_ranges(model, flow, self._settings, self._observe)
        kept = self._within_reach(model, wanted, unreached(flow, self._settings, ranges))
        if len(kept) < len(wanted):
            wanted, flow = kept, _flow(model, kept, floats)
        convolutions = [node for node in wanted if node.op_type == "Conv"]
        linears = [node for node in wanted if node.op_type != "Conv"]
        codes = choose_codes(flow, self._settings, ranges, self._plan.warnings.append)
        relus = {value: relu for value, relu in flow.absorbed.items() if absorbs(relu, codes[value])}
        reasons = _why_no_integers(wanted, flow, codes, relus)
        self.left += _said_of_islands(islands(model.graph, flow, wanted))
        codes_read = {node: codes[value] for node in wanted if (value := node.inputs[0]) is not None}
        editor = QdqEditor(model, codes)
        for value, readers in flow.entries.items():
            editor.round_for(value, readers)
        for value in flow.values:
            editor.round_value(value, relus.get(value))
        for node in convolutions:
            editor.prepare_kernel(node, wanted[node])
        for node in dict.fromkeys((*wanted, *flow.makers.values())):
            editor.bring_inside(node)
        for node in convolutions:
            editor.make_room(node)
        for node in convolutions:
            if editor.finish_convolution(node, wanted[node]) and node not in reasons:
                self._expect(node, ("QLinearConv",), editor, signed=is_signed(codes_read[node].kind))
        for node in linears:
            if is_signed(codes_read[node].kind) and node not in reasons:
                # Our own lowering takes unsigned ones alone: a signed by signed product is a slow kernel on x86.
                self._expect(node, ("MatMulIntegerToFloat", "QLinearMatMul"), editor, signed=True)
        self._plan.warnings += idle_tensors([*codes, *_in_float8(model)], self._settings)
        for node, reason in reasons.items():
            wanted[node].notes.append(f"ONNX Runtime's CPU computes it in float: {reason}")
        return ir.passes.PassResult(model, modified=True)

    def _within_reach(
        self, model: ir.Model, wanted: Mapping[ir.Node, PlannedWeight], missing: Sequence[ir.Value]
    ) -> dict[ir.Node, PlannedWeight]:
        """The products but for those of bodies in which calibration saw nothing of ``missing``; all of them where none would be left."""
        bodies = Bodies(model)
        lost: dict[ir.Graph, list[str]] = {}
        for value in missing:
            if value.graph in bodies.names:
                lost.setdefault(value.graph, []).append(value.name or "")
        dropped = {
            node: body
            for node in wanted
            if (body := next((b for b in bodies.around(node) if b in lost), None))
        }
        if len(dropped) == len(wanted):
            return dict(wanted)
        for node, body in dropped.items():
            wanted[node].notes.append(
                f"activations of {node.name} stay float: calibration never reached {bodies.names[body]}"
            )
        self._plan.warnings += [
            f"{bodies.names[body]}: calibration data never reached it, so that its products stay float, for want of ranges of "
            f"{', '.join(names[:LISTED])}{f' and {len(names) - LISTED} more' if len(names) > LISTED else ''}; "
            "give data that do, or ranges (tensors:)"
            for body, names in lost.items()
        ]
        return {node: planned for node, planned in wanted.items() if node not in dropped}

    def _expect(self, node: ir.Node, operators: Sequence[str], editor: QdqEditor, signed: bool) -> None:
        packed = editor.codes_of(node).name or ""
        nodes = tuple(LoweredNode(node.name or "", operator, packed) for operator in operators)
        if signed:
            self.hoped.append(nodes)
        else:
            self.lowered += nodes


def _flow(model: ir.Model, products: Collection[ir.Node], floats: Collection[ir.Value]) -> IntegerFlow:
    convolutions = {node for node in products if node.op_type == "Conv"}
    return find_integer_flow(model.graph, convolutions, set(products) - convolutions, floats)


def _said_of_islands(nodes: Sequence[ir.Node]) -> list[str]:
    counts = Counter(node.op_type for node in nodes)
    if not counts:
        return []
    listed = ", ".join(
        f"{op} ({count})" for op, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    )
    return [
        f"computed in float between integers, for want of integer kernels for them or for what they read: {listed}"
    ]


def _in_float8(model: ir.Model) -> list[ir.Value]:
    """What ``round_to_float8`` rounded."""
    return [
        value
        for node in model.graph
        if node.op_type == "QuantizeLinear" and node.outputs[0].dtype in TYPES.values()
        if (value := node.inputs[0]) is not None
    ]


def _static_products(plan: Plan, floats: Collection[ir.Value]) -> dict[ir.Node, PlannedWeight]:
    """The products that are meant; notes on those that cannot be."""
    found = {}
    for planned in plan.quantized:
        if planned.settings.activations != "static" or planned.scheme.is_float8:
            continue  # those of floats are RoundToFloat8's
        for use in planned.weight.uses:
            if use.role is Role.EMBEDDING:
                continue
            reason = _why_float(planned.scheme, use, floats)
            if reason is None:
                found[use.node] = planned
            else:
                planned.notes.append(f"activations stay float: {reason}")
    return found


def _why_float(scheme: QuantScheme, use: WeightUse, floats: Collection[ir.Value]) -> str | None:
    """What keeps a product from integer kernels."""
    x = use.node.inputs[0]
    if x in floats:
        return f"the recipe leaves {x.name if x else ''} float"
    if use.node.op_type not in ("MatMul", "Conv"):
        return f"{use.node.op_type} has no integer form here"
    dtype = input_type(use.node)
    if dtype != ir.DataType.FLOAT:
        return f"integer kernels are for float32, and they are {dtype.name}"
    plain = scheme.bits == 8 and scheme.granularity is not Granularity.GROUP and scheme.zero_point == "int"
    if not plain:  # ONNX Runtime would make a product of it that fails, or multiply floats
        return f"no integer kernel with a static range takes {scheme.label}; 8 bits and group_size: channel it takes"
    return None


def _why_no_integers(
    products: Collection[ir.Node],
    flow: IntegerFlow,
    codes: Mapping[ir.Value, ActivationCodes],
    relus: Collection[ir.Value],
) -> dict[ir.Node, str]:
    """Products with rounded inputs that ONNX Runtime's CPU has no integer kernel for, as it was tried, and what is in the way."""
    made = {maker: value for value, maker in flow.makers.items()}
    reasons: dict[ir.Node, str] = {}
    for node in products:
        x = node.inputs[0]
        assert x is not None
        kind = codes[x].kind
        if bits_of(kind) != 8:
            reasons[node] = f"its kernels do not take {kind}"
        if node.op_type != "Conv" or node in reasons:
            continue
        result = made.get(node)
        if result is None:
            reasons[node] = "the recipe leaves its output float"
        elif codes[result].kind != kind:
            reasons[node] = f"it reads {kind} and makes {codes[result].kind}"
        elif result in flow.absorbed and result not in relus:
            reasons[node] = (
                f"{flow.absorbed[result].op_type} stays behind it, since codes of {codes[result].kind} reach past what it lets through"
            )
    return reasons
