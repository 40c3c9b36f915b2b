"""Correct biases for what rounding does to weights, by the inputs that statistics of BatchNormalizations let expect; no data are run.

    b += (W - W') E[x],      W the weight, W' as rounded, x the input: the same at all places, its mean that of ``ExpectedChannels``

Analytical bias correction: Nagel et al. 2019, *Data-Free Quantization Through Weight Equalization and Bias Correction*, section 4.2. What
rounding does to activations is not seen, and zeros that are padded around an image are taken for its mean.

*Given* the middle form of the weights, biases still float, of products with static ranges in the main graph.
*Result* other biases; a convolution without one gets one. ``reasons`` says which products stay as they are, and why.
"""

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.graph.convolution import bias_of
from qcompiler.graph.edits import Names, add_initializer, drop_unused
from qcompiler.graph.weight_form import read_weight
from qcompiler.graph.weights import Role, WeightUse, constant_values
from qcompiler.passes.expected_channels import ExpectedChannels
from qcompiler.recipe.plan import Plan
from qcompiler.recipe.planned_weight import PlannedWeight

Float = npt.NDArray[np.float64]


class CorrectBiasesAnalytically(ir.passes.InPlacePass):
    """The pass.

    Args:
        wanted: whether the recipe asks for it.

    Attributes:
        corrected: names of the products whose biases make up for their weights.
        reasons: a line for each other.
    """

    def __init__(self, plan: Plan, wanted: bool) -> None:
        super().__init__()
        self._plan = plan
        self._done = not wanted
        self.corrected: list[str] = []
        self.reasons: list[str] = []

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        if self._done:
            return ir.passes.PassResult(model, modified=False)
        self._done = True
        names, expected = Names(model), ExpectedChannels()
        for planned in self._plan.quantized:
            if planned.settings.activations != "static":
                continue
            for use in planned.weight.uses:
                name = use.node.name or use.node.outputs[0].name or ""
                refusal = _correct(planned, use, expected, model.graph, names)
                if refusal is None:
                    self.corrected.append(name)
                else:
                    self.reasons.append(f"{name}: bias not corrected: {refusal}")
        return ir.passes.PassResult(model, modified=bool(self.corrected))


def _correct(
    planned: PlannedWeight, use: WeightUse, expected: ExpectedChannels, graph: ir.Graph, names: Names
) -> str | None:
    """Corrects one product's bias; returns why not."""
    node, x = use.node, use.node.inputs[0]
    if use.role is Role.EMBEDDING or x is None:
        return "rows are looked up, nothing is multiplied"
    if use.in_body is not None:
        return f"it is inside {use.in_body}"
    if planned.settings.transforms:
        return "its inputs are scaled, so that their means are not those of the statistics"
    if any(step.algorithm.beside is not None for step in planned.settings.algorithm):
        return "what stands beside its codes makes up for the rounding"
    place = _bias_place(node)
    if isinstance(place, str):
        return place
    moments = expected.of(x)
    if isinstance(moments, str):
        return moments
    rounded = _rounded(node)
    if rounded is None or rounded.shape != planned.weight.shape:
        return "its weight is stored in a form that is not read back here"
    inputs = _rows_of_inputs(moments.mean, planned, node)
    if inputs is None:
        return f"its input has {len(moments.mean)} known means, which its weight does not go with"
    shift = np.einsum("nk,nk->n", planned.weight.array().astype(np.float32) - rounded, inputs)
    _add(*place, shift, graph, names)
    return None


def _rows_of_inputs(means: Float, planned: PlannedWeight, node: ir.Node) -> Float | None:
    """The mean that each number of a weight [N, K] is multiplied by: of a convolution that of its channel, of its output's group."""
    n, k = planned.weight.shape
    kernel = planned.weight.kernel
    if kernel is None:
        return np.broadcast_to(means, (n, k)) if len(means) == k else None
    groups = node.attributes.get_int("group", 1)
    if len(means) != groups * kernel[1]:
        return None
    by_group = means.reshape(groups, kernel[1]).repeat(k // kernel[1], axis=1)
    return by_group.repeat(n // groups, axis=0)


def _rounded(node: ir.Node) -> npt.NDArray[np.float32] | None:
    """What the product's codes mean, [N, K]."""
    value = node.inputs[1]
    maker = None if value is None else value.producer()
    if maker is not None and maker.op_type in ("Reshape", "Transpose"):
        source = maker.inputs[0]
        maker = None if source is None else source.producer()
    found = read_weight(maker)
    return None if found is None else found[0].dequantize()


def _bias_place(node: ir.Node) -> tuple[ir.Node, int] | str:
    """The node and its input that adds the bias, None yet of a convolution without one; or why there is none."""
    if node.op_type == "Conv":
        bias = bias_of(node)
        return (node, 2) if bias is None or constant_values(bias) is not None else "its bias is computed"
    result, without = node.outputs[0], "no bias is added to what it makes"
    if len(result.uses()) != 1 or result.is_graph_output():
        return without
    ((add, index),) = result.uses()
    place = 1 - index
    if add.op_type != "Add" or add.domain != "":
        return without
    held = constant_values(add.inputs[place])
    if held is None or held.ndim == 0 or held.size != held.shape[-1]:
        return without
    return add, place


def _add(node: ir.Node, place: int, shift: Float, graph: ir.Graph, names: Names) -> None:
    """Puts the bias plus ``shift`` [N] in place of the bias."""
    old = node.inputs[place] if len(node.inputs) > place else None
    held = constant_values(old)
    kind = node.outputs[0].dtype or ir.DataType.FLOAT
    start = np.zeros(len(shift), kind.numpy()) if held is None else held
    moved = (start.astype(np.float64) + shift).astype(start.dtype)
    name = names.value(f"{node.outputs[0].name if old is None else old.name}.corrected")
    bias = add_initializer(graph, ir.Tensor(moved, name=name), name)
    node.resize_inputs(max(len(node.inputs), place + 1))
    node.replace_input_with(place, bias)
    if old is not None:
        drop_unused(old)
