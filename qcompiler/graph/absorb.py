"""Find what can take over a per-channel factor of a linear's input, on any graph, by asking the graph itself.

Dividing a linear's input X by s per channel is free where something upstream can be divided instead: a norm's weight, or the output
channels of an earlier linear. Between the two may lie anything that passes positive per-channel factors through: reshapes, head
merging and repeating, attention's convex sums, elementwise products, Relu. No pattern lists that: the piece of graph from a candidate P
to X is run with P's channels multiplied by known factors, and what comes out at X says which channel of P each channel of X follows, or
that it follows none. That the rest of the model does not see P changed is checked on the graph.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.graph.edits import Names, add_initializer, drop_unused
from qcompiler.graph.extract import Piece, is_constant
from qcompiler.graph.reads import node_reads
from qcompiler.graph.weights import Weight, constant_view

Array = npt.NDArray[Any]
Factors = npt.NDArray[np.float32]

# Past these a factor does not come out as the same factor; the search upstream stops there.
NOT_HOMOGENEOUS = frozenset(
    {"Softmax", "LogSoftmax", "Sigmoid", "Tanh", "Erf", "Exp", "Log", "Gelu", "Elu", "Selu", "HardSigmoid", "HardSwish", "Swish",
     "Softplus", "Clip", "Mish", "Cos", "Sin", "LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization", "Pow",
     "Sqrt", "Reciprocal", "QuickGelu", "FastGelu", "BiasGelu", "Celu",
     # These bound or compare: the same function until some value crosses the bound, so no probe can clear them.
     "Min", "Max", "Where", "ThresholdedRelu", "Shrink", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "QuantizeLinear"}
)  # fmt: skip
# Inputs that scale and shift a norm's output; the last input of the Skip forms is added before the norm, so it is none.
NORMS = {"LayerNormalization": (1, 2), "RMSNormalization": (1,), "SimplifiedLayerNormalization": (1,), "SkipLayerNormalization": (2, 3),
         "SkipSimplifiedLayerNormalization": (2,)}  # fmt: skip
LEVELS = 32  # factors of one probe lie 2^(1/32) apart: told apart in float16 too
MOST_CANDIDATES = 6


@dataclass
class Absorber:
    """A value whose C channels can be multiplied, and how the input's channels follow it.

    Attributes:
        follows: int [K], the channel of the absorber that each input channel follows. Channels that follow one must share a factor.
        scale: what is multiplied.
    """

    follows: npt.NDArray[np.int64]
    scale: "ChannelScale"
    names: Names

    @property
    def channels(self) -> int:
        """C."""
        return self.scale.channels

    @property
    def what(self) -> str:
        """For the report."""
        return self.scale.what

    def apply(self, factors: Factors) -> None:
        """Multiply the absorber's channels by factors [C]."""
        for node, indices in self.scale.vectors:
            scale_vectors(node, indices, factors, self.names)
        if self.scale.weight is not None:
            self.scale.weight.scale_rows(factors)


@dataclass(frozen=True)
class ChannelScale:
    """How the C channels of a value are multiplied by changing constants alone.

    Attributes:
        what: for the report.
        vectors: nodes with the inputs of theirs that are vectors [C] to multiply.
        weight: whose rows are to be multiplied, or None.
    """

    channels: int
    what: str
    vectors: tuple[tuple[ir.Node, tuple[int, ...]], ...] = ()
    weight: Weight | None = None


def find_absorber(
    model: ir.Model,
    nodes: Sequence[ir.Node],
    value: ir.Value,
    consumers: Collection[ir.Node],
    inputs: Sequence[ir.Value],
    sample: Mapping[ir.Value, Array],
    weight_of: Callable[[ir.Node], Weight | None],
    names: Names,
) -> Absorber | None:
    """What can take a factor of ``value``, or None.

    Args:
        model: the graph belongs to it; read for its opsets and functions.
        nodes: the segment around ``value``; everything that is changed lies in it.
        value: input X [..., K] of the linears.
        consumers: the linears whose columns will take the inverse factor; any other reader of X forbids absorbing.
        inputs, sample: the segment's inputs and one sample of their values.
        weight_of: the weight of an upstream linear whose rows may be scaled, or None.
        names: free names in the model, for the scaled copies of a norm's vectors.
    """
    segment = set(nodes)
    if (
        any(user not in consumers and user.op_type != "Shape" for user in value.consumers())
        or value.is_graph_output()
    ):
        return None
    tried = 0
    for candidate, scale in _candidates(value, segment, weight_of):
        if tried >= MOST_CANDIDATES:
            return None
        path = _path(candidate, value, segment)
        if path is None or any(node.op_type in NOT_HOMOGENEOUS for node in path):
            continue
        tried += 1
        if candidate is value:
            return Absorber(np.arange(int(scale.channels)), scale, names)
        follows = _probe(model, nodes, path, candidate, value, inputs, sample)
        if follows is not None:
            return Absorber(follows, scale, names)
    return None


def _candidates(
    value: ir.Value, segment: set[ir.Node], weight_of: Callable[[ir.Node], Weight | None]
) -> Iterator[tuple[ir.Value, ChannelScale]]:
    """Values upstream whose channels can be scaled, nearest first."""
    queue, seen = [value], {value}
    while queue:
        current = queue.pop(0)
        scale = _scalable(current, segment, weight_of)
        if scale is not None:
            yield current, scale
            continue
        node = current.producer()
        if node is None or node not in segment or node.op_type in NOT_HOMOGENEOUS:
            continue
        for source in node.inputs:
            if (
                source is not None
                and source not in seen
                and not source.is_initializer()
                and constant_view(source) is None
            ):
                seen.add(source)
                queue.append(source)


def _scalable(
    value: ir.Value, segment: set[ir.Node], weight_of: Callable[[ir.Node], Weight | None]
) -> ChannelScale | None:
    """How the channels (last axis) of ``value`` can be multiplied by changing constants alone."""
    node = value.producer()
    if node is None or node not in segment or node.outputs[0] is not value:
        return None
    if node.op_type in NORMS:
        vectors = tuple(i for i in NORMS[node.op_type] if i < len(node.inputs) and node.inputs[i] is not None)
        channels = [_vector_length(node.inputs[i]) for i in vectors]
        if not channels or channels[0] is None or any(c != channels[0] for c in channels):
            return None
        return ChannelScale(channels[0], f"norm {node.name}", ((node, vectors),))
    if node.op_type == "MatMul":
        weight = weight_of(node)
        if weight is None:
            return None
        return ChannelScale(weight.shape[0], f"output channels of {weight.name}", weight=weight)
    if node.op_type not in ("Mul", "Add"):
        return None
    for index in (0, 1):
        length = _vector_length(node.inputs[index])
        if length is None:
            continue
        if node.op_type == "Mul":
            return ChannelScale(length, f"weight {_name(node, index)}", ((node, (index,)),))
        other = node.inputs[1 - index]
        inner = _scalable(other, segment, weight_of) if other is not None else None
        if (
            other is None
            or inner is None
            or inner.channels != length
            or len(other.consumers()) != 1
            or other.is_graph_output()
        ):
            return None
        return replace(inner, vectors=((node, (index,)), *inner.vectors))
    return None


def _name(node: ir.Node, index: int) -> str:
    value = node.inputs[index]
    return "" if value is None or value.name is None else value.name


def _vector_length(value: ir.Value | None) -> int | None:
    """C of a constant float vector [C] (leading ones allowed), or None."""
    if value is None:
        return None
    view = constant_view(value)
    if view is None or not view.shape or view.transposed or not view.dtype.is_floating_point():
        return None
    size = int(np.prod(view.shape))
    return size if size > 1 and view.shape[-1] == size else None


def scale_vectors(node: ir.Node, indices: Sequence[int], factors: Factors, names: Names) -> None:
    """Give the node scaled copies: the originals may be shared with other nodes."""
    graph = node.graph
    assert graph is not None
    for index in indices:
        value = node.inputs[index]
        assert value is not None
        view = constant_view(value)
        assert view is not None
        dtype = view.dtype.numpy()
        old = view.array().astype(np.float32)
        scaled = (old * factors.reshape((1,) * (old.ndim - 1) + (-1,))).astype(dtype)
        name = names.value(f"{value.name}.scaled")
        fresh = add_initializer(graph, ir.Tensor(scaled, dtype=view.dtype, name=name), name)
        node.replace_input_with(index, fresh)
        drop_unused(value)


def _path(candidate: ir.Value, target: ir.Value, segment: set[ir.Node]) -> set[ir.Node] | None:
    """The nodes between the two, or None where ``candidate`` reaches the rest of the model by another way than ``target``."""
    stack, seen = [candidate], {candidate}
    path: set[ir.Node] = set()
    while stack:
        value = stack.pop()
        if value is target:
            continue
        if value.is_graph_output():
            return None
        for user in value.consumers():
            if user.op_type in ("Shape", "Size"):
                continue
            if user not in segment:
                return None  # a later segment, or a control-flow body
            path.add(user)
            for output in user.outputs:
                if output not in seen:
                    seen.add(output)
                    stack.append(output)
    return path if target in seen else None


def _probe(
    model: ir.Model,
    nodes: Sequence[ir.Node],
    path: Collection[ir.Node],
    candidate: ir.Value,
    target: ir.Value,
    inputs: Sequence[ir.Value],
    sample: Mapping[ir.Value, Array],
) -> npt.NDArray[np.int64] | None:
    """For each channel of ``target`` the channel of ``candidate`` whose factor it follows, or None."""
    beside = _read_beside(path, candidate)
    # What joins the path from the side is computed once: only the path itself runs again for each probe.
    computed = Piece(model, nodes, inputs, [candidate, *(v for v in beside if v not in inputs)]).run(sample)
    sample = {**sample, **computed}
    real = computed[candidate]
    if real.size == 0:
        return None  # an expert that no token of the sample chose: nothing is seen
    if not np.isfinite(real).all():
        return None  # float16 that overflows (a Relu may clear it): there is no size to probe with
    between = Piece(model, nodes, [candidate, *beside], [target])
    random = np.random.default_rng(0)
    spread = max(float(np.std(real.astype(np.float32))), 1e-3)
    probe = (random.standard_normal(real.shape) * spread).astype(real.dtype)
    channels = real.shape[-1]

    def passed(values: Array, factors: Array | float = 1.0) -> Array:
        scaled = (values * np.asarray(factors, values.dtype)).astype(values.dtype)
        result = between.run({**sample, candidate: scaled})[target].astype(np.float64)
        return result.reshape(-1, result.shape[-1])

    base = passed(probe)
    k = base.shape[-1]
    strongest = np.argmax(np.abs(base), axis=0), np.arange(k)  # the row in which rounding weighs least
    if not base[strongest].all():
        return None
    follows = np.zeros(k, np.int64)
    place = 1
    while place < channels:
        digits = (np.arange(channels) // place) % LEVELS
        ratio = passed(probe, np.exp2(digits / LEVELS))[strongest] / base[strongest]
        with np.errstate(invalid="ignore", divide="ignore"):
            level = np.rint(np.log2(ratio) * LEVELS)
        if not np.isfinite(level).all() or (level < 0).any() or (level >= LEVELS).any():
            return None
        follows += level.astype(np.int64) * place
        place *= LEVELS
    if (follows >= channels).any():
        return None
    factors = np.exp2(random.uniform(-1.0, 1.0, channels))
    # Rounding of a few chained operations; a miss is of order 1.
    tolerance = 1e-4 if real.dtype == np.float32 else 1e-2
    for values in (probe, real):  # the real ones reach bounds that normal numbers do not
        expected = passed(values) * factors[follows]
        error = np.linalg.norm(passed(values, factors) - expected)
        if not error <= tolerance * np.linalg.norm(expected):  # NaN is no either
            return None
    return follows


def _read_beside(path: Collection[ir.Node], candidate: ir.Value) -> list[ir.Value]:
    """Values that nodes on the path read and that neither the path nor a constant makes."""
    made = {output for node in path for output in node.outputs} | {candidate}
    read = dict.fromkeys(value for node in path for value in node_reads(node))
    return [value for value in read if value not in made and not is_constant(value)]
