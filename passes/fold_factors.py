"""Fold constant factors and terms around convolutions into them.

*Given* Conv -> Mul, Div, Add or Sub with a constant that is one number or one for each channel, and nothing else reads between; or a Conv
that reads such nodes with one number.
*Result* the Conv with its kernel and bias multiplied and added to; of what stood before it at most one Mul and one Add. Names of values
that others read stay.

    (W x + b) m + a = (m W) x + (m b + a)        behind, m and a for each output
    c (x / d) + a = (c / d) x + a                before: factors meet in one Mul
    c (x + a) = c x + c a                        before, where nothing is padded
    W (x + a) = W x + a sum(W)                   before, where nothing is padded: a padded 0 is no x

Float kernels of such nodes take as long as a depthwise convolution in integers. A Mul stays before the convolution, since
``balance_channels`` gives its channels ranges that are alike through it.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.graph.convolution import (
    bias_of,
    channel_constant,
    has_scalable_outputs,
    kernel_of,
    kernel_shape,
    multiply_kernel,
)
from qcompiler.graph.edits import Names, add_initializer, drop_unused, stand_in
from qcompiler.graph.norm_statistics import move_statistics
from qcompiler.graph.weights import constant_values

Numbers = npt.NDArray[np.float64]
FACTORS = ("Mul", "Div")
TERMS = ("Add", "Sub")
TINY, MOST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)


class FoldFactors(ir.passes.InPlacePass):
    """The pass.

    Attributes:
        reasons: a line for each constant factor or term beside a convolution that stays, but for what is to stay before it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reasons: list[str] = []

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        names: Names | None = None
        modified = False
        convolutions = [node for node in model.graph if node.op_type == "Conv" and node.domain == ""]
        for node in convolutions:
            if _why_fixed(node) is not None:
                continue
            names = names or Names(model)
            before = _meet_factors_before(node, names)
            term = _fold_term_before(node, names)
            behind = _fold_behind(node, names)
            modified = before or term or behind or modified
        self.reasons = [line for node in convolutions for line in _why_left(node)]
        return ir.passes.PassResult(model, modified=modified)


def _why_fixed(convolution: ir.Node) -> str | None:
    """Why its kernel and bias cannot change; None where they can."""
    if not has_scalable_outputs(convolution):
        return "the kernel or bias is computed, or others read it too"
    dtype = kernel_of(convolution).dtype
    return None if dtype == ir.DataType.FLOAT else f"its kernel is {dtype.name}, not FLOAT"


def _why_left(convolution: ir.Node) -> Iterator[str]:
    """A line for each constant factor or term that still stands behind, and for a chain of them in front."""
    name = convolution.name or convolution.outputs[0].name
    made, fixed = convolution.outputs[0], _why_fixed(convolution)
    for node, place in made.uses():
        if _is_candidate(node, 1 - place):
            why = fixed or _why_not_behind(convolution, node, place)
            yield f"{node.name or node.outputs[0].name} ({node.op_type}): not folded into {name} before it: {why}"
    chain = _chain_before(convolution)
    if chain and (len(chain) > 1 or chain[0].op_type in TERMS):
        met = len({node.op_type in FACTORS for node in chain}) == len(chain)
        padded = "zeros are padded around the input behind the term"
        beyond = "together they are no number that float32 holds"
        why = fixed or (padded if met and _pads(convolution) else beyond)
        said = ", ".join(f"{node.name or node.outputs[0].name} ({node.op_type})" for node in chain)
        yield f"{said}: not folded into {name} behind: {why}"


def _is_candidate(node: ir.Node, place: int) -> bool:
    """Whether the node multiplies or adds a constant at ``place``."""
    if node.op_type not in FACTORS + TERMS or node.domain != "" or len(node.inputs) != 2:
        return False
    return constant_values(node.inputs[place]) is not None


def _why_not_behind(convolution: ir.Node, node: ir.Node, place: int) -> str:
    made = convolution.outputs[0]
    if made.is_graph_output() or len(made.uses()) > 1:
        return "other nodes read the convolution too"
    if node.graph is not convolution.graph:
        return "it is inside a body"
    if place == 1 and node.op_type in ("Div", "Sub"):
        return "the convolution is what divides or is subtracted"
    if node.op_type == "Div" and not np.all(constant_values(node.inputs[1])):
        return "it divides by 0"
    return "its constant is neither one number nor one for each channel, of float32"


def _constant(node: ir.Node, shape: tuple[int, ...]) -> tuple[int, Numbers] | None:
    """Where the constant of a Mul, Div, Add or Sub is, and its numbers [1] or [channels]; ``shape`` is (channels, ..), of the rank."""
    channels, rank = shape[0], len(shape)
    for place in (0, 1) if node.op_type in ("Mul", "Add") else (1,):
        found = channel_constant(node.inputs[place], channels, rank)
        if found is not None and found.dtype == np.float32:
            divides_by_zero = node.op_type == "Div" and not found.all()
            return None if divides_by_zero else (place, found.astype(np.float64))
    return None


def _one_number(node: ir.Node) -> tuple[int, float] | None:
    """Where the constant of a Mul, Div, Add or Sub is, and its number; None where it has more, or axes that the other input lacks."""
    found = _constant(node, (1,) * 8)  # more axes than any constant has that fits
    if found is None or len(found[1]) != 1:
        return None
    place, number = found
    held, other = constant_values(node.inputs[place]), node.inputs[1 - place]
    assert held is not None
    rank = 1 if other is None or other.shape is None else len(other.shape)
    return (place, float(number[0])) if held.ndim <= rank else None


def _read_alone(value: ir.Value, graph: ir.Graph | ir.Function | None) -> bool:
    uses = value.uses()
    return len(uses) == 1 and not value.is_graph_output() and all(reader.graph is graph for reader, _ in uses)


def _fold_behind(convolution: ir.Node, names: Names) -> bool:
    """Factors and terms behind a convolution into its kernel and bias."""
    shape = kernel_shape(convolution)
    factor, term = np.ones(shape[0]), np.zeros(shape[0])
    folded = False
    made = convolution.outputs[0]
    while _read_alone(made, convolution.graph):
        ((node, place),) = made.uses()
        if node.op_type not in FACTORS + TERMS or node.domain != "":
            break
        found = _constant(node, shape)
        if found is None or found[0] == place:
            break
        number = found[1]
        if node.op_type in FACTORS:
            times = number if node.op_type == "Mul" else 1 / number
            factor, term = factor * times, term * times
        else:
            term = term + (number if node.op_type == "Add" else -number)
        folded = True
        made = node.outputs[0]
    if not folded:
        return False
    multiply_kernel(convolution, factor)
    bias = bias_of(convolution)
    old = np.zeros(shape[0]) if bias is None else _numbers(bias)
    _set_bias(convolution, old * factor + term, names)
    stand_in(made, convolution.outputs[0])
    move_statistics(convolution.outputs[0], factor, term)
    return True


def _meet_factors_before(convolution: ir.Node, names: Names) -> bool:
    """One Mul for all factors of one number, and one Add behind it, between the convolution and what computes."""
    chain = _chain_before(convolution)
    factor, term = 1.0, 0.0
    current = convolution.inputs[0]
    for node in chain:
        found = _one_number(node)
        assert found is not None
        place, number = found
        if node.op_type in FACTORS:
            factor *= number if node.op_type == "Mul" else 1 / number
        else:
            term += factor * (number if node.op_type == "Add" else -number)
        current = node.inputs[1 - place]
    if not all(number == 0 or TINY <= abs(number) <= MOST for number in (factor, term)):
        return False  # together they are no number that float32 holds
    kinds = ["factor" if node.op_type in FACTORS else "term" for node in chain]
    into_bias = kinds == ["factor", "term"] and not _pads(convolution)  # as a term behind the factor
    if len(kinds) == len(set(kinds)) and not into_bias:
        return False  # one of each at most, as they are
    assert current is not None and isinstance(convolution.graph, ir.Graph)
    last = convolution.inputs[0]
    for op, number, idle in (("Mul", factor, 1.0), ("Add", term, 0.0)):
        if number != idle:
            current = _insert(convolution, op, current, number, names)
    convolution.replace_input_with(0, current)
    if last is not None:
        drop_unused(last)
    return True


def _chain_before(convolution: ir.Node) -> list[ir.Node]:
    """Factors and terms of one number in front of a convolution that nothing else reads, the nearest first."""
    chain: list[ir.Node] = []
    current = convolution.inputs[0]
    while current is not None and _read_alone(current, convolution.graph):
        node = current.producer()
        if node is None or node.op_type not in FACTORS + TERMS or node.domain != "":
            break
        found = _one_number(node)
        if found is None or node.inputs[1 - found[0]] is None:
            break
        chain.append(node)
        current = node.inputs[1 - found[0]]
    return chain


def _insert(convolution: ir.Node, op: str, value: ir.Value, number: float, names: Names) -> ir.Value:
    """The result of a new node in front of the convolution, of ``value`` and a constant."""
    graph = convolution.graph
    assert isinstance(graph, ir.Graph)
    name = names.value(f"{value.name}.{op.lower()}")
    held = names.value(f"{name}.number")
    constant = add_initializer(graph, ir.Tensor(np.array(number, np.float32), name=held), held)
    node = ir.node(op, [value, constant], name=names.node(name))
    made = node.outputs[0]
    made.name, made.type, made.shape = name, value.type, value.shape
    graph.insert_before(convolution, node)
    return made


def _fold_term_before(convolution: ir.Node, names: Names) -> bool:
    """An Add of one number in front of a convolution that pads nothing into its bias."""
    value = convolution.inputs[0]
    node = None if value is None else value.producer()
    if value is None or node is None or node.op_type not in TERMS or node.domain != "" or _pads(convolution):
        return False
    found = _one_number(node)
    if found is None or not _read_alone(value, convolution.graph):
        return False
    number = found[1] if node.op_type == "Add" else -found[1]
    kernel = kernel_of(convolution).numpy().astype(np.float64)
    bias = bias_of(convolution)
    old = np.zeros(len(kernel)) if bias is None else _numbers(bias)
    _set_bias(convolution, old + number * kernel.reshape(len(kernel), -1).sum(1), names)
    convolution.replace_input_with(0, node.inputs[1 - found[0]])
    drop_unused(value)
    return True


def _pads(convolution: ir.Node) -> bool:
    told = convolution.attributes.get_string("auto_pad", "NOTSET")
    return told not in ("NOTSET", "VALID") or any(convolution.attributes.get_ints("pads", []))


def _set_bias(convolution: ir.Node, numbers: Numbers, names: Names) -> None:
    graph, kernel, old = convolution.graph, convolution.inputs[1], bias_of(convolution)
    assert isinstance(graph, ir.Graph) and kernel is not None
    name = names.value(f"{kernel.name}.bias")
    bias = add_initializer(graph, ir.Tensor(numbers.astype(np.float32), name=name), name)
    convolution.resize_inputs(3)
    convolution.replace_input_with(2, bias)
    if old is not None:
        drop_unused(old)


def _numbers(value: ir.Value) -> Numbers:
    found = constant_values(value)
    assert found is not None
    return found.astype(np.float64)
