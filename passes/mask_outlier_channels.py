"""Keep the channels of activations that float columns multiply out of the rounding of the others.

*Given* products of the plan with float columns beside them (``column_form``), each of which picks its channels for itself.
*Result* such a product reads its input times 0 in these channels and 1 in the others, so that they have no say in the scale of a row; its
codes mean 0 there. One Mul, and one Gather, for all products that read an input and have the same columns.

A product in the body of a branch or loop is left as it is: its activations stay float.
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.graph.column_form import ColumnForm
from qcompiler.graph.correction_form import corrections_of
from qcompiler.graph.edits import Names, add_initializer, drop_unused, input_type, replace_value, set_info
from qcompiler.recipe.plan import Plan


class MaskOutlierChannels(ir.passes.InPlacePass):
    """The pass."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self._plan = plan
        self._done = False

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        groups = {} if self._done else self._groups()
        self._done = True
        names = Names(model)
        places = {node: index for index, node in enumerate(model.graph)}
        for group in groups:
            group.products.sort(key=places.__getitem__)
            group.picks.sort(key=places.__getitem__)
            _mask(group, names)
            _pick_once(group.picks)
        return ir.passes.PassResult(model, modified=bool(groups))

    def _groups(self) -> "list[_Group]":
        found: dict[tuple[ir.Value, bytes], _Group] = {}
        for planned in self._plan.quantized:
            for use in planned.weight.uses:
                x = use.node.inputs[0]
                if use.in_body is not None or x is None:
                    continue
                form = next((f for f in corrections_of(use.node) if isinstance(f, ColumnForm)), None)
                if form is None:
                    continue
                kept = np.ones(planned.weight.shape[1], np.bool_)
                kept[form.channels] = False
                group = found.setdefault((x, kept.tobytes()), _Group(x, kept))
                group.products.append(use.node)
                group.picks.append(form.pick)
        return list(found.values())


@dataclass(frozen=True)
class _Group:
    """Products that read ``value`` and have float columns for the channels, bool [K], that are not ``kept``."""

    value: ir.Value
    kept: npt.NDArray[np.bool_]
    products: list[ir.Node] = field(default_factory=list)
    picks: list[ir.Node] = field(default_factory=list)


def _mask(group: _Group, names: Names) -> None:
    value, first = group.value, group.products[0]
    graph, dtype = first.graph, input_type(first)
    assert isinstance(graph, ir.Graph)
    name = names.value(f"{value.name}.kept_channels")
    mask = add_initializer(graph, ir.Tensor(group.kept.astype(dtype.numpy()), dtype=dtype, name=name), name)
    output = ir.Value(name=names.value(f"{value.name}.masked"))
    set_info(output, dtype, value.shape)
    node = ir.node("Mul", [value, mask], outputs=[output], name=names.node(f"{value.name}.mask"))
    graph.insert_before(first, node)
    for product in group.products:
        product.replace_input_with(0, output)


def _pick_once(picks: list[ir.Node]) -> None:
    """The first Gather for all of them."""
    first, *others = picks
    for node in others:
        replace_value(node.outputs[0], first.outputs[0])
        drop_unused(node.outputs[0])
