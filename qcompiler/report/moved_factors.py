"""Factors of a value's channels that the weights which read it take back, as AWQ, SmoothQuant and balancing move them.

*Given* what is known of the difference between a value of the reference and the other model's. *Result* for each channel what the other
model's readers multiply it by, beside the reference's: of their weights W and W' [N, K] the factor of column k that fits best,
<W'_k, W_k> / <W_k, W_k>. It is read from the weights alone, so noise of the activations cannot pass for a factor, nor a wrong scale that
nothing takes back. Of a value with many channels those are read that matter most; the others count as they are.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.errors import InputError
from qcompiler.graph.extract import is_constant
from qcompiler.graph.weights import Weight
from qcompiler.quant.tensor_difference import ChannelAxis, TensorDifference
from qcompiler.report.alignment import named_weights, products_of
from qcompiler.report.quantized_products import StoredWeight
from qcompiler.report.stored_values import Indices, StoredValues, sampled, stored_values

Floats = npt.NDArray[np.float32]
Factors = npt.NDArray[np.float64]
AnyWeight = Weight | StoredWeight
GAIN_DB = 1.5
"""What factors explain at least: with less, the figure says nearly the same without them."""
READ_NUMBERS = 1 << 19
"""Of one weight: 30 of 576 x 1536 and 30 of 576 x 576 in packed codes take 0.4 s in all (one core of a server)."""
_SAME_WEIGHT = (
    0.5  # of the other weight's power, at least, that the reference's columns explain: 2 bits leave more
)


@dataclass(frozen=True)
class _Readers:
    """Products that a value's channels reach unmixed; ``widths``: of heads, as far as shapes on the way say."""

    nodes: list[ir.Node]
    widths: list[int]


class MovedFactors:
    """Of two normalized models; values are asked for from the end on, since a reader's rows may have factors of their own."""

    def __init__(self, reference: ir.Model, other: ir.Model) -> None:
        self._models = reference, other
        self._values = {output.name: output for node in reference.graph for output in node.outputs}
        self._values |= {value.name: value for value in reference.graph.inputs}
        self._outputs = {product.node: product.output.name or "" for product in products_of(reference)}
        self._theirs: dict[ir.Node, list[tuple[str, AnyWeight]]] = {}
        for name, node, weight in named_weights(reference):
            self._theirs.setdefault(node, []).append((name, weight))
        self._ours: dict[str, AnyWeight | None] = {}  # None: of one name there are several
        for name, _, weight in named_weights(other):
            self._ours[name] = None if self._ours.get(name, weight) is not weight else weight
        self._rows: dict[str, Factors] = {}

    def rescaled_sqnr_db(self, name: str, difference: TensorDifference) -> float | None:
        """SQNR of a value as its readers see it, where they take back factors that gain ``GAIN_DB`` or more; None of any other."""
        least = difference.sqnr_db + GAIN_DB
        value = self._values.get(name)
        if value is None or difference.unlike or difference.rescaled_sqnr_db < least:
            return None
        readers = _readers(value, set(self._outputs))
        if readers is None:
            return None
        axes: tuple[ChannelAxis, ...] = ("last", "both", "first")
        for axis in axes:
            factors = self._taken_back(readers, difference, axis)
            if factors is not None and (found := difference.scaled_sqnr_db(axis, factors)) >= least:
                if axis != "both":
                    self._rows[name] = factors
                return found
        return None

    def _taken_back(
        self, readers: _Readers, difference: TensorDifference, axis: ChannelAxis
    ) -> Factors | None:
        """[C], in each channel of the reader with which it is worst; None where no reader's weights can be compared."""
        count = difference.channels(axis)
        if not count:
            return None
        found = np.full(count, np.nan)
        for node in readers.nodes:
            for name, weight in self._theirs.get(node, ()):
                factors = self._of_reader(node, name, weight, readers.widths, difference, axis)
                if factors is not None:
                    noise = [difference.scaled_noise(axis, np.nan_to_num(each)) for each in (found, factors)]
                    found = np.where(
                        np.isnan(factors) | (~np.isnan(found) & (noise[0] >= noise[1])), found, factors
                    )
        return None if np.isnan(found).all() else np.nan_to_num(found, nan=1.0)

    def _of_reader(
        self,
        node: ir.Node,
        name: str,
        theirs: AnyWeight,
        widths: list[int],
        difference: TensorDifference,
        axis: ChannelAxis,
    ) -> Factors | None:
        """[C], NaN for channels that were not read; None where the weights cannot be compared."""
        ours = self._ours.get(name)
        count = difference.channels(axis)
        if ours is None or _plane(ours) != _plane(theirs):
            return None
        rows, _ = _plane(theirs)
        chosen = difference.most_rescaled(axis, max(1, READ_NUMBERS // rows))
        places = _places(theirs, chosen, count, widths, axis)
        if places is None:
            return None
        try:
            read = [
                _columns(model, weight, places.reshape(-1))
                for model, weight in zip(self._models, (theirs, ours), strict=True)
            ]
        except InputError:  # its operator hides the weight: nothing is known of this reader
            return None
        some = np.intersect1d(read[0].rows, read[1].rows)
        before, after = (each.values[np.searchsorted(each.rows, some)].astype(np.float64) for each in read)
        own = self._rows.get(self._outputs[node])
        if own is not None and len(own) == rows:
            after *= own[some, None]  # factors that were moved out of its rows, into what reads them
        dot, signal, square = (
            sums.reshape(places.shape).sum(axis=1)
            for sums in (
                (before * after).sum(axis=0),
                np.square(before).sum(axis=0),
                np.square(after).sum(axis=0),
            )
        )
        fits = (dot > 0) & (signal > 0)
        factor = np.where(fits, dot / np.where(signal > 0, signal, 1.0), 1.0)
        if float((factor * dot)[fits].sum()) < _SAME_WEIGHT * float(square.sum()):
            return None  # another weight
        factors = np.full(count, np.nan)
        factors[chosen] = factor
        return factors


def _plane(weight: AnyWeight) -> tuple[int, int]:
    """(N, K), of a convolution K is channels x kernel."""
    return weight.shape[0], int(np.prod(weight.shape[1:]))


def _columns(model: ir.Model, weight: AnyWeight, channels: Indices) -> StoredValues:
    """Of N all rows, or some of a large weight."""
    if isinstance(weight, StoredWeight):
        return stored_values(model, weight, channels)
    return sampled(weight.array(), channels)


def _places(
    weight: AnyWeight, chosen: Indices, count: int, widths: list[int], axis: ChannelAxis
) -> Indices | None:
    """Which of K belong to each of the ``chosen`` channels of ``count``: [chosen, several]; None where that is not known."""
    shape = weight.shape if isinstance(weight, StoredWeight) else weight.kernel or weight.shape
    if len(shape) > 2:
        size = int(np.prod(shape[2:]))
        of_images = axis == "first" and shape[1] == count
        return chosen[:, None] * size + np.arange(size) if of_images else None
    k = shape[1]
    if axis == "first" or k % count:
        return None
    if k == count:
        return chosen[:, None]
    width = next((each for each in widths if count % each == 0), None)
    if width is None:
        return None
    head, place = np.divmod(
        chosen, width
    )  # a head of keys and values is read by several of queries, one after another
    return (head * (k // count) * width + place)[:, None]


_UNMIXED: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(
        ("Relu", "LeakyRelu", "Identity", "Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Expand", "Transpose",
         "Div", "MaxPool", "AveragePool", "GlobalAveragePool", "QuantizeLinear", "DequantizeLinear"), (0,)),
    "Mul": (0, 1),
    "MatMul": (1,),
    "Attention": (2,),
    "MultiHeadAttention": (2,),
    "GroupQueryAttention": (2,),
}  # fmt: skip
"""Operators through which positive factors of channels pass, and the input that they pass from; of attention, the values."""
_OF_SHAPES = frozenset({"Shape", "Size"})
_MOST_NODES = 64


def _readers(value: ir.Value, products: set[ir.Node]) -> _Readers | None:
    """The products that read a value's channels; None where anything else does too, which would not take factors back."""
    found: list[ir.Node] = []
    widths: list[int] = []
    level, seen = [value], {value}
    while level:
        reached = level.pop()
        if reached.is_graph_output() or len(seen) > _MOST_NODES:
            return None
        if reached.shape is not None and len(reached.shape) == 4 and isinstance(reached.shape[3], int):
            widths.append(reached.shape[3])
        for node, place in reached.uses():
            if node.op_type in _OF_SHAPES:
                continue
            if node in products and place == 0 and any(is_constant(each) for each in node.inputs[1:] if each):
                found.append(node)
                continue
            both = node.op_type == "Mul" and node.inputs[0] is node.inputs[1]
            if place not in _UNMIXED.get(node.op_type, ()) or both or not node.outputs:
                return None
            if node.outputs[0] not in seen:
                seen.add(node.outputs[0])
                level.append(node.outputs[0])
    return _Readers(list(dict.fromkeys(found)), widths) if found else None
